"""Results of `fieldmark compare`, `search` and `look`, as their pages show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fieldmark.core.io import to_jsonable
from fieldmark.evaluation.paired import PairedDifference
from fieldmark.evaluation.results import Interval, Metrics


@dataclass(frozen=True)
class AttentionCost:
    """What the inserted attention modules of one kind add to a network."""

    kind: str
    places: int
    """Number of modules."""
    params: int
    macs: int
    """Multiply-adds of one image."""


@dataclass(frozen=True)
class ComparisonRow:
    """One network of a comparison, over its seeds.

    Attributes:
        accuracy: mean test accuracy over the seeds.
        sd: its standard deviation between the seeds; None for one seed.
        ci95: 95 % confidence interval of the accuracy over all test images.
        n: test images of the first seed.
        accuracies: test accuracy of each seed.
        seconds: mean duration of a run, without decoding.
        megabytes: size of model.onnx.
        images_per_s: throughput of model.onnx, one image at a time.
        macs: multiply-adds of one image.
        added: cost of each kind of inserted attention.
        runs: the run folders.
        difference: difference from the first network; None for it, and without a common test set.
    """

    network: str
    accuracy: float
    sd: float | None
    ci95: Interval
    n: int
    seeds: Sequence[int]
    accuracies: Sequence[float]
    macro_f1: float | None
    ece: float | None
    seconds: float
    megabytes: float
    images_per_s: float
    parameters: int
    macs: int
    added: Sequence[AttentionCost]
    runs: Sequence[str]
    difference: PairedDifference | None = None


@dataclass(frozen=True)
class Comparison:
    """Networks under one recipe; the first is the baseline."""

    rows: Sequence[ComparisonRow]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": to_jsonable(self.rows)}


@dataclass(frozen=True)
class Trial:
    """One trial of a search; metrics of a pruned one are None.

    Attributes:
        score: the value that is maximised.
        photos: number of validation images.
        settings: the hyperparameters that differ from the original recipe.
    """

    trial: int
    score: float | None
    val_accuracy: float | None
    val_loss: float | None
    photos: int | None
    seconds: float | None
    settings: Mapping[str, Any]
    best: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class SearchResult:
    """Trials of a hyperparameter search, and the run of the best one.

    Attributes:
        run: folder of the run that was trained in full with the best hyperparameters.
        test: its metrics on the test set.
    """

    trials: Sequence[Trial]
    run: Path
    test: Metrics | None

    @property
    def best(self) -> Trial:
        return next(trial for trial in self.trials if trial.best)

    @property
    def original(self) -> Trial:
        """The trial of the original recipe."""
        return next(trial for trial in self.trials if not trial.settings)

    def to_dict(self) -> dict[str, Any]:
        best = {name: getattr(self.best, name) for name in ("trial", "settings", "val_accuracy", "val_loss", "photos")}
        best["as_it_stands"] = {name: getattr(self.original, name) for name in ("val_accuracy", "val_loss")}
        best |= {"run": str(self.run), "test": self.test and self.test.to_dict()}
        return {"rows": [trial.to_dict() for trial in self.trials], "best": best}


@dataclass(frozen=True)
class PreviewImage:
    """A sample image: the data URIs of its views (as evaluated, then augmented), or why it cannot be read."""

    path: str
    label: str
    pictures: Sequence[str] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        entry = {"path": self.path, "label": self.label}
        return entry if self.error is None else entry | {"error": self.error}


@dataclass(frozen=True)
class Preview:
    """A dataset as a recipe sees it.

    Attributes:
        name: of the dataset.
        classes: number of images of each class.
        batch: shape of a training batch: images, channels, rows, columns.
        evaluated: shape of an image in evaluation: channels, rows, columns.
        augment: the recipe's augmentation.
        images: sample images.
        files: the page.
    """

    name: str
    classes: Mapping[str, int]
    batch: Sequence[int]
    evaluated: Sequence[int]
    augment: str
    warnings: Sequence[str]
    images: Sequence[PreviewImage]
    files: Sequence[Path] = ()

    @property
    def n_images(self) -> int:
        return sum(self.classes.values())

    @property
    def has_errors(self) -> bool:
        """Whether a sample image cannot be read."""
        return any(image.error is not None for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        return {
            "classes": dict(self.classes),
            "photos": self.n_images,
            "batch": list(self.batch),
            "judged": list(self.evaluated),
            "warnings": list(self.warnings),
            "preview": [image.to_dict() for image in self.images],
            "files": [str(file) for file in self.files],
        }
