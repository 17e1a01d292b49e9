"""`Metrics` and its parts: the types of an evaluation's results, with the JSON of metrics.json and `evaluate --json`.

Shares (accuracy, recall, coverage, ...) are between 0 and 1. An interval is the (low, high) of a 95 % confidence
interval. Imports no numerical library, so that reading a run's metrics is cheap.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from fieldmark.core.io import to_jsonable

Interval = tuple[float, float]


def _interval(bounds: list[float] | None) -> Interval | None:
    return None if bounds is None else (bounds[0], bounds[1])


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class, one-vs-rest."""

    precision: float
    """Share of the images predicted as the class that are of it; 0 if none is."""
    recall: float
    """Share of the images of the class that are predicted as it; 0 without images."""
    f1: float
    """Harmonic mean of precision and recall."""
    n: int
    """Images of the class."""
    recall_ci95: Interval | None
    """None without images."""
    precision_ci95: Interval | None
    """None if no image is predicted as the class."""

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        intervals = {name: _interval(entry[name]) for name in ("recall_ci95", "precision_ci95")}
        return cls(**{**entry, **intervals})


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that are predicted as another."""

    label: str
    predicted: str
    n: int
    """Images of `label` that are predicted as `predicted`."""
    share: float
    """The same as a share of the images of `label`."""
    ci95: Interval


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: mean confidence and accuracy of `n` images."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Reliability:
    """Reliability diagrams before and after temperature scaling; empty bins are left out."""

    before: tuple[ReliabilityBin, ...]
    after: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CoveragePoint:
    """Accuracy of the accepted images (selective accuracy) at one threshold of the OOD score."""

    coverage: float
    """Share of the images that are accepted."""
    accuracy: float
    threshold: float


@dataclass(frozen=True)
class RocCurve:
    """Receiver operating characteristic: at most 100 points, from (0, 0) to (1, 1)."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class OperatingPoint:
    """Rates of a binary classifier at one decision threshold; None where there is no image to divide by."""

    threshold: float
    """Probability from which an image is predicted as the positive class; the mean over the folds of a run."""
    intervals: Mapping[str, Interval | None]
    """Of each rate below."""
    accuracy: float
    sensitivity: float | None
    """Share of the positive images that are predicted as positive (recall)."""
    specificity: float | None
    """Share of the negative images that are predicted as negative."""
    ppv: float | None
    """Positive predictive value (precision)."""
    npv: float | None
    """Negative predictive value."""


@dataclass(frozen=True)
class BinaryMetrics:
    """Metrics of a classifier of two classes. Intervals are in `Metrics.intervals`, under the names of the fields."""

    positive: str
    """The positive class."""
    roc_auc: float
    roc: RocCurve
    sensitivity: float | None
    """As the next three: of the most probable class, that is, at a threshold of 0.5; see `OperatingPoint`."""
    specificity: float | None
    ppv: float | None
    npv: float | None
    at_threshold: OperatingPoint
    """At the decision threshold that was fitted on the validation set."""

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        at = entry["at_threshold"]
        intervals = {name: _interval(bounds) for name, bounds in at["intervals"].items()}
        return cls(
            roc=RocCurve(**{name: tuple(values) for name, values in entry["roc"].items()}),
            at_threshold=OperatingPoint(**{**at, "intervals": intervals}),
            **{name: entry[name] for name in ("positive", "roc_auc", "sensitivity", "specificity", "ppv", "npv")},
        )


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics of one set of predictions, with 95 % confidence intervals."""

    n: int
    """Images."""
    n_groups: int
    """Groups of images that are not independent of each other (near-duplicates, images of one patient)."""
    intervals: Mapping[str, Interval | None]
    """By the name of the field (those of `binary` included); None where the value is None."""
    accuracy: float
    top5: float
    """Share of the images whose class is among the five most probable ones."""
    coverage: float
    """Share of the images that are accepted: OOD score at `threshold` or above."""
    accuracy_known: float | None
    """Accuracy of the accepted images (selective accuracy); None if none is."""
    balanced_accuracy: float | None
    """Mean recall over the classes; None if a class has no images."""
    macro_f1: float | None
    """Mean F1 over the classes; None if a class has no images."""
    per_class: Mapping[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (row) and predicted class (column), in the order of the classes."""
    confused: tuple[ConfusedPair, ...]
    """The pairs of classes that are confused most often, most images first."""
    ece: float | None
    """Expected calibration error of the temperature-scaled probabilities; None if a class has no images."""
    loss: float
    """Mean cross-entropy in nats."""
    threshold: float
    """OOD score from which an image is accepted."""
    reliability: Reliability
    ece_before: float
    """Expected calibration error before temperature scaling."""
    coverage_curve: tuple[CoveragePoint, ...]
    binary: BinaryMetrics | None = None
    """None unless there are two classes, both with images."""
    sd: float | None = None
    """Standard deviation of the accuracy between folds; None without cross-validation."""

    @property
    def absent_classes(self) -> list[str]:
        """Classes without images: the accuracy is that of the others."""
        return [name for name, row in self.per_class.items() if not row.n]

    @property
    def ci95(self) -> Interval | None:
        """The interval of the accuracy."""
        return self.intervals["accuracy"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `n_groups` is called "groups", and the fields of `binary` stand beside the others."""
        entries = {field.name: to_jsonable(getattr(self, field.name)) for field in fields(Metrics)}
        binary, sd = entries.pop("binary"), entries.pop("sd")
        result = {}
        for name, value in entries.items():
            result["groups" if name == "n_groups" else name] = value
            if name == "accuracy_known":
                result["ci95"] = entries["intervals"]["accuracy"]
        if binary:
            order = ("sensitivity", "specificity", "ppv", "npv", "roc_auc", "roc", "at_threshold", "positive")
            result |= {name: binary[name] for name in order}
        return result if sd is None else result | {"sd": sd}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Metrics":
        """The inverse of `to_dict`, also of a dict read from metrics.json; KeyError if a key is missing."""
        plain = ("n", "accuracy", "top5", "coverage", "accuracy_known", "balanced_accuracy", "macro_f1", "ece", "loss")
        reliability = {
            name: tuple(ReliabilityBin(**row) for row in rows) for name, rows in entry["reliability"].items()
        }
        return Metrics(
            **{name: entry[name] for name in (*plain, "threshold", "ece_before")},
            n_groups=entry["groups"],
            intervals={name: _interval(bounds) for name, bounds in entry["intervals"].items()},
            per_class={name: ClassMetrics.from_dict(row) for name, row in entry["per_class"].items()},
            confusion=tuple(map(tuple, entry["confusion"])),
            confused=tuple(ConfusedPair(**{**pair, "ci95": tuple(pair["ci95"])}) for pair in entry["confused"]),
            reliability=Reliability(**reliability),
            coverage_curve=tuple(CoveragePoint(**point) for point in entry["coverage_curve"]),
            binary=BinaryMetrics.from_dict(entry) if "positive" in entry else None,
            sd=entry.get("sd"),
        )


@dataclass(frozen=True)
class LearningCurvePoint:
    """Accuracy of a linear classifier that was trained on so many images."""

    photos: int
    accuracy: float
    ci95: Interval


@dataclass(frozen=True)
class ClassGain:
    """What one class gained by the last doubling of the training set."""

    name: str
    n: int
    """Images of the class."""
    half: float
    """Recall when trained on half of the images."""
    recall: float
    """Recall when trained on all of them."""
    se: float
    """Standard error of the difference."""


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by the size of the training set, on frozen features."""

    points: tuple[LearningCurvePoint, ...]
    """Fewest images first."""
    doubled: float
    """Accuracy extrapolated to twice as many images."""
    rises: bool
    """Whether the last doubling gained more than two standard errors."""
    classes: tuple[ClassGain, ...]
    """Largest gain first."""

    def to_dict(self) -> dict[str, Any]:
        return to_jsonable(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "LearningCurve":
        points = (LearningCurvePoint(**{**point, "ci95": tuple(point["ci95"])}) for point in entry["points"])
        return cls(tuple(points), entry["doubled"], entry["rises"], tuple(ClassGain(**row) for row in entry["classes"]))
