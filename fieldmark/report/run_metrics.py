"""`RunMetrics`: the content of a run's metrics.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.evaluation.results import LearningCurve, Metrics

JSON_NAMES = {"cached_feature_seconds": "borrowed_s", "next_steps": "next"}
"""Fields whose key in metrics.json differs."""
FOLD_KEYS = ("test", "validation", "folds", "bundle", "seconds", "warnings", "classes", "network", "parameters")
FOLD_KEYS += ("fingerprint", "seed", "environment", "next")
"""Keys in the metrics.json of a cross-validation."""


@dataclass(frozen=True)
class FoldMetrics:
    """One fold of a cross-validation; `bundle` is the folder of its classifier."""

    test: Metrics | None
    validation: Metrics | None
    bundle: str


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """Metrics of a run and how they came about; what an incomplete file lacks is None or empty.

    Attributes:
        test: metrics of model.onnx on the test set; of a cross-validation, of all test predictions together.
        validation: metrics of the network on the validation set.
        temperature: by which logits are divided.
        export: comparison of model.onnx with the network.
        learning_curve: accuracy by the size of the training set.
        bundle: folder of the classifier; of a cross-validation, of the fold with the best validation accuracy.
        classes: names, in the order of the network's outputs.
        network: the specification that rebuilds the network.
        parameters: number of parameters of the network.
        best_epoch: the epoch whose weights were kept, from 1; 0 without training.
        fingerprint: hash of the images and labels.
        cached_feature_seconds: how long another run took for the features that this one reused.
        environment: versions of the libraries, and the hardware.
        command: the command that repeats the run.
        seconds: duration of each part of the run.
        folds: the folds of a cross-validation.
        next_steps: what to do next, the most useful first (`recommendations.Recommendation`), in English.
    """

    test: Metrics | None = None
    validation: Metrics | None = None
    temperature: float | None = None
    export: Mapping[str, Any] | None = None
    learning_curve: LearningCurve | None = None
    bundle: str | None = None
    warnings: Sequence[str] = ()
    classes: Sequence[str] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    best_epoch: int | None = None
    fingerprint: str | None = None
    seed: int | None = None
    cached_feature_seconds: float = 0.0
    environment: Mapping[str, str | int] = field(default_factory=dict)
    command: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    folds: Sequence[FoldMetrics] = ()
    next_steps: Sequence[Mapping[str, Any]] = ()

    @property
    def headline(self) -> Metrics | None:
        """Metrics of the test set; without one, of the validation set."""
        return self.test or self.validation

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        values = {JSON_NAMES.get(entry.name, entry.name): _plain(getattr(self, entry.name)) for entry in fields(self)}
        if self.folds:
            return {name: values[name] for name in FOLD_KEYS}
        return {name: value for name, value in values.items() if name != "folds"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunMetrics":
        """The inverse of `to_dict`."""
        names = {entry.name: JSON_NAMES.get(entry.name, entry.name) for entry in fields(cls)}
        values = {name: data[key] for name, key in names.items() if data.get(key) is not None}
        values |= {name: _read_metrics(data.get(name)) for name in ("test", "validation")}
        values["folds"] = tuple(
            FoldMetrics(_read_metrics(fold["test"]), _read_metrics(fold["validation"]), fold["bundle"])
            for fold in data.get("folds") or ()
        )
        if curve := values.get("learning_curve"):
            values["learning_curve"] = LearningCurve.from_dict(curve)
        return cls(**values)

    @classmethod
    def load(cls, run: Path) -> "RunMetrics":
        """The metrics of the run in that folder.

        Raises:
            FieldmarkError: metrics.json is missing or damaged.
        """
        try:
            return cls.from_dict(io.read_json(run / "metrics.json"))
        except (OSError, FieldmarkError, AttributeError, KeyError, TypeError) as error:
            raise FieldmarkError(
                f"{run} has no readable metrics.json ({error}); train again or finish with --resume"
            ) from error


def _read_metrics(data: Mapping[str, Any] | None) -> Metrics | None:
    """Metrics from JSON; None if they are incomplete, as those of an earlier version may be."""
    try:
        return None if data is None else Metrics.from_dict(data)
    except (AttributeError, KeyError, TypeError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Metrics | LearningCurve):
        return value.to_dict()
    if isinstance(value, FoldMetrics):
        return {name: _plain(entry) for name, entry in vars(value).items()}
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
