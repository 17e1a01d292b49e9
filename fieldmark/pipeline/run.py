"""`Run`: the folder of a finished training and its metrics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark.core import io
from fieldmark.data.cache import pack
from fieldmark.inference.classifier import Classifier
from fieldmark.report.run_metrics import RunMetrics


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        folder: the run folder, as `out` of `fieldmark.train`.
        metrics: the content of RUN/metrics.json as plain values, for example `metrics["test"]["accuracy"]`.
    """

    folder: Path
    metrics: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """The finished run in `folder`.

        Raises:
            FieldmarkError: its metrics.json is damaged.
        """
        return cls(folder, io.read_json(folder / "metrics.json"))

    @property
    def results(self) -> RunMetrics:
        """The same with types."""
        return RunMetrics.from_dict(self.metrics)

    def classifier(self) -> Classifier:
        """The trained classifier; with cross-validation, that of the fold with the best validation accuracy."""
        is_cross_validation = bool(self.metrics.get("folds"))
        return Classifier(
            self.folder / Path(self.metrics["bundle"]).parent.name if is_cross_validation else self.folder
        )


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` is complete: it has its metrics, and the packed images, deleted last, are gone."""
    return (folder / "metrics.json").exists() and not pack.has_record(folder / "resume")
