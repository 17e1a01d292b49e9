"""Results of an audit: `AuditReport`, its parts, and their JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldmark.core import io
from fieldmark.data.catalog import UnreadableFile

PathGroups = tuple[tuple[str, ...], ...]
"""Sets of paths below the catalog's root."""


@dataclass(frozen=True)
class Outlier:
    """An image that differs from all others in quality or shape.

    Attributes:
        kind: dark, bright, blank, blurred, small or long.
        detail: the measurement behind it, as text.
    """

    path: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Shortcut:
    """A property of the files that predicts a class without looking at the images.

    Attributes:
        attribute: size, format, mode, camera, border, width, height, aspect ratio, JPEG quality, resolution (pixels an
            inch), progressive encoding, EXIF data or ICC profiles.
        value: the value that images of `label` share; of numbers a bound, as `at most 800` or `over 800`.
        share: part of the images of `label` that have it, 0..1.
        elsewhere: part of all other images that have it, 0..1.
    """

    label: str
    attribute: str
    value: str
    share: float
    elsewhere: float

    def to_dict(self) -> dict[str, Any]:
        return {"what" if name == "attribute" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Shortcut":
        return cls(data["label"], data["what"], data["value"], data["share"], data["elsewhere"])


@dataclass(frozen=True)
class MetadataScore:
    """How well the metadata of the files alone tell the classes apart: a shallow decision tree, cross-validated.

    Classes of few images or groups are left out.

    Attributes:
        balanced_accuracy: mean of the classes' recalls out of fold, 0..1.
        standard_error: its standard error, by the number of groups.
        chance: balanced accuracy without any information, 1 / classes.
        attributes: the one or two most important attributes of the tree, as those of `Shortcut`.
        label: the class that is best distinguished from the others.
        label_accuracy: balanced accuracy of telling it from the others, whose chance is 0.5.
        label_error: the standard error of that.
        evidence: the property that distinguishes it best.
    """

    balanced_accuracy: float
    standard_error: float
    chance: float
    attributes: tuple[str, ...]
    label: str
    label_accuracy: float
    label_error: float
    evidence: Shortcut

    @property
    def tells_all(self) -> bool:
        """Whether the classes are distinguished far better than by chance: at least half of the way to certainty."""
        return self.balanced_accuracy - 2 * self.standard_error >= (1 + self.chance) / 2

    @property
    def is_shortcut(self) -> bool:
        """Whether all classes, or one class from the others, are distinguished far better than by chance."""
        return self.tells_all or self.label_accuracy - 2 * self.label_error >= 0.75

    def to_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        own = {"attributes": list(self.attributes), "evidence": self.evidence.to_dict(), "shortcut": self.is_shortcut}
        return fields | own

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MetadataScore":
        own = {"attributes": tuple(data["attributes"]), "evidence": Shortcut.from_dict(data["evidence"])}
        return cls(**{name: data[name] for name in cls.__dataclass_fields__} | own)


@dataclass(frozen=True)
class LabelQuality:
    """An image's label, compared with the prediction of a classifier that was trained without the image.

    Attributes:
        suggested: the class with the highest out-of-fold probability.
        confidence: out-of-fold probability of the given label ("self-confidence"), 0..1.
        error_probability: probability that the label is wrong, 0..1 (`label_noise.error_probabilities`).
    """

    path: str
    label: str
    suggested: str
    confidence: float
    error_probability: float = 1.0

    @property
    def is_issue(self) -> bool:
        """Whether the label is probably wrong, and not only a hard case."""
        return self.error_probability > 0.5

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "label": self.label,
            "suggested": self.suggested,
            "confidence": self.confidence,
            "error_probability": self.error_probability,
        }


@dataclass(frozen=True)
class AuditReport:
    """Issues of a dataset.

    Attributes:
        classes: number of images of each class, sorted by name.
        n_given_groups: number of groups (patients, objects, ...) that came with the images.
        unreadable: files that cannot be read or decoded.
        duplicates: sets of files with equal bytes.
        near_duplicates: sets of images that show the same and are not all equal.
        conflicts: the duplicates that lie under several classes.
        leaks: the duplicates that lie in several of the given splits.
        near_leaks: the near-duplicates that do.
        group_leaks: names of the given groups that do.
        outliers: images that are dark, blurred, small, ...
        shortcuts: properties of the files that predict a class.
        metadata: how well the properties of the files alone tell the classes apart; None if there are too few images.
        label_errors: likely label errors, worst first; None if labels were not checked.
        catalog_warnings: warnings of the catalog that was audited.
        audit_warnings: one line for each kind of issue.
        groups: for each image of the catalog the number of its group, which a split keeps together: those of
            `hard_groups`, and near-duplicates of one class; empty in a report read from JSON.
        hard_groups: for each image the number of its group, which no split divides: a given group, identical files and
            copies of one photo (resized, re-encoded), whatever their classes; empty in a report read from JSON. Frames
            of one scene are in one of `groups` for each class, but each in a hard group of its own.
        file_hashes: for each image the SHA-256 of its file, empty if the file cannot be read; empty in a report read
            from JSON.
    """

    classes: dict[str, int]
    n_given_groups: int
    unreadable: tuple[UnreadableFile, ...]
    duplicates: PathGroups
    near_duplicates: PathGroups
    conflicts: PathGroups
    leaks: PathGroups
    near_leaks: PathGroups
    group_leaks: tuple[str, ...]
    outliers: tuple[Outlier, ...]
    shortcuts: tuple[Shortcut, ...]
    metadata: MetadataScore | None = None
    label_errors: tuple[LabelQuality, ...] | None = None
    catalog_warnings: tuple[str, ...] = ()
    audit_warnings: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    hard_groups: tuple[int, ...] = ()
    file_hashes: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """Number of images of the catalog."""
        return sum(self.classes.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, those of the catalog first."""
        return self.catalog_warnings + self.audit_warnings

    @property
    def has_issues(self) -> bool:
        """Whether there are issues to resolve; near-duplicates, outliers and imbalance are none by themselves."""
        issues = (self.unreadable, self.duplicates, self.conflicts, self.leaks, self.near_leaks, self.group_leaks)
        return any(issues) or bool(self.label_errors)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `fieldmark check --json`."""
        label_errors = self.label_errors
        return {
            "classes": self.classes,
            "photos": self.n_images,
            "given_groups": self.n_given_groups,
            "unreadable": [file.to_dict() for file in self.unreadable],
            **{name: [list(paths) for paths in getattr(self, name)] for name in _PATH_GROUP_FIELDS},
            "group_leaks": list(self.group_leaks),
            "odd": [asdict(outlier) for outlier in self.outliers],
            "giveaways": [shortcut.to_dict() for shortcut in self.shortcuts],
            "file_properties": self.metadata.to_dict() if self.metadata else None,
            "label_errors": None if label_errors is None else [error.to_dict() for error in label_errors],
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AuditReport":
        """The report of which `to_dict` made `data`, without `groups`, `hard_groups` and `file_hashes`."""
        metadata = data.get("file_properties")  # audits of older versions have none
        label_errors, sets = data["label_errors"], {name: tuple(map(tuple, data[name])) for name in _PATH_GROUP_FIELDS}
        return cls(
            classes=data["classes"],
            n_given_groups=data["given_groups"],
            unreadable=tuple(UnreadableFile(**file) for file in data["unreadable"]),
            duplicates=sets["duplicates"],
            near_duplicates=sets["near_duplicates"],
            conflicts=sets["conflicts"],
            leaks=sets["leaks"],
            near_leaks=sets["near_leaks"],
            group_leaks=tuple(data["group_leaks"]),
            outliers=tuple(Outlier(**outlier) for outlier in data["odd"]),
            shortcuts=tuple(map(Shortcut.from_dict, data["giveaways"])),
            metadata=MetadataScore.from_dict(metadata) if metadata else None,
            label_errors=None if label_errors is None else tuple(LabelQuality(**error) for error in label_errors),
            audit_warnings=tuple(data["warnings"]),
        )


_PATH_GROUP_FIELDS = ("duplicates", "near_duplicates", "conflicts", "leaks", "near_leaks")


@dataclass(frozen=True)
class RunAudit:
    """The audit of a run's images, kept as RUN/audit.json.

    Attributes:
        folder: absolute path of the images: a folder, an archive or a manifest.
        fingerprint: SHA-256 of all paths, labels and bytes.
        trained_classes: the classes with readable training images, in the order of the network's outputs.
    """

    report: AuditReport
    folder: str
    fingerprint: str
    trained_classes: tuple[str, ...]

    def save(self, run: Path) -> None:
        """Write RUN/audit.json, atomically."""
        own = {"folder": self.folder, "fingerprint": self.fingerprint, "trained": list(self.trained_classes)}
        io.write_json(run / "audit.json", self.report.to_dict() | own)

    @classmethod
    def load(cls, run: Path) -> "RunAudit":
        """Read RUN/audit.json.

        Raises:
            FieldmarkError: the file is damaged.
        """
        data = io.read_json(run / "audit.json")
        return cls(AuditReport.from_dict(data), data["folder"], data["fingerprint"], tuple(data["trained"]))
