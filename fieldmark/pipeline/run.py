"""`Run`: the folder of a finished training and its metrics."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.cache import pack
from fieldmark.evaluation.results import Interval, Metrics
from fieldmark.inference.classifier import Classifier
from fieldmark.report.run_metrics import RunMetrics

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
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

    @cached_property
    def results(self) -> RunMetrics:
        """The same with types."""
        return RunMetrics.from_dict(self.metrics)

    @property
    def test(self) -> Metrics | None:
        """Metrics of the test split, as `accuracy` and `ci95`; None without test images."""
        return self.results.test

    @property
    def validation(self) -> Metrics | None:
        """Metrics of the validation split; None without validation images."""
        return self.results.validation

    @property
    def history(self) -> "pandas.DataFrame":
        """A row for each epoch: phase, loss and accuracy in training and validation, seconds. Needs pandas."""
        import pandas

        return pandas.read_csv(self.folder / "history.csv")

    @property
    def report(self) -> Path:
        """The page with the results."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        accuracy = f", test accuracy {self.test.accuracy:.1%}" if self.test else ""
        return f"Run({str(self.folder)!r}{accuracy})"

    def _repr_html_(self) -> str:
        """The metrics and the curves of the training, in a notebook."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{metrics.n:,} images</td><td>{metrics.accuracy:.1%}</td>"
            f"<td>{_interval(metrics.ci95)}</td><td>{_share(metrics.balanced_accuracy)}</td><td>{metrics.coverage:.1%}</td></tr>"
            for name, metrics in (("test", self.test), ("validation", self.validation))
            if metrics
        )
        header = "<tr><th></th><th></th><th>accuracy</th><th>95 % CI</th><th>balanced</th><th>coverage</th></tr>"
        curves = self.folder / "curves.svg"
        picture = curves.read_text(encoding="utf-8") if curves.exists() else ""
        link = f"<p>report: <code>{escape(str(self.report))}</code></p>"
        return f"<table>{header}{rows}</table><div style='max-width:640px'>{picture}</div>{link}"

    def classifier(self) -> Classifier:
        """The trained classifier; with cross-validation, that of the fold with the best validation accuracy."""
        is_cross_validation = bool(self.metrics.get("folds"))
        return Classifier(
            self.folder / Path(self.metrics["bundle"]).parent.name if is_cross_validation else self.folder
        )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(bounds: Interval | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.1%} to {bounds[1]:.1%}"


@contextmanager
def exclusive_run(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder.

    Raises:
        FieldmarkError: another process does it already.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FieldmarkError(f"another process is training into {folder}: wait for it, or give another --out") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise FieldmarkError(f"{folder} cannot be made ({reason}): give another --out") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` is complete: it has its metrics, and the packed images, deleted last, are gone."""
    return (folder / "metrics.json").exists() and not pack.has_record(folder / "resume")
