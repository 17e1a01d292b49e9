"""Epochs -> history.csv and RUN/tensorboard always; Weights & Biases and MLflow where `--logger` names them.

Each tracker gets the whole history when a run begins or goes on, and writes what it lacks: wherever a run was killed,
no epoch is missing afterwards and none stands there twice. All but history.csv may fail without harm to the training.
"""

import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.loggers.services import Mlflow, WeightsAndBiases
from fieldmark.training.loggers.tensorboard import TensorBoard

Row = Mapping[str, Any]
"""An epoch in the history: a value for each of COLUMNS."""
COLUMNS = ["epoch", "phase", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "lr",
    "seconds": "seconds",
}
"""Column -> its curve's name."""


class Tracker(Protocol):
    """Something that keeps curves: of each epoch, by its number, tag -> value.

    It is made with the folder of the run, the settings and the curves so far, and takes up what it kept of them.
    """

    def __init__(self, out: Path, settings: dict[str, Any], curves: dict[int, dict[str, float]]) -> None: ...

    def epoch(self, number: int, values: dict[str, float]) -> None: ...

    def close(self, epochs: int, figures: dict[str, float], settings: dict[str, Any]) -> None: ...


LOGGERS: dict[str, type[Tracker]] = {"wandb": WeightsAndBiases, "mlflow": Mlflow}
"""What `--logger` takes: the name of a package -> its tracker."""


def require(logger: str | None) -> tuple[str, ...]:
    """`wandb,mlflow` -> the names, each once.

    Raises:
        FieldmarkError: a name that there is not, or whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (logger or "").split(",") if name.strip()))
    for name in names:
        if name not in LOGGERS:
            raise FieldmarkError(f"--logger is {name!r}, but can be {' or '.join(LOGGERS)}, or both with a comma")
        if (found := find_spec(name)) is None or found.origin is None:  # a mere folder of that name has no origin
            raise FieldmarkError(f"--logger {name} needs a package more: pip install 'fieldmark[loggers]'")
    return names


class Trackers:
    """All trackers of one run, in its folder `out`: `begin`, then `epoch` after each, then `close`.

    `warn` is told, once, of each that fails; it is left out from there on, until the run is resumed.
    """

    def __init__(self, out: Path, recipe: Recipe, warn: Callable[[str], None]) -> None:
        self.out, self.recipe, self.warn = out, recipe, warn
        self.kinds: dict[str, type[Tracker]] = {"tensorboard": TensorBoard}
        self.kinds |= {name: LOGGERS[name] for name in require(recipe.logger)}
        self.running: dict[str, Tracker] = {}
        self.history: list[Row] = []

    def begin(self, history: Sequence[Row]) -> None:
        """Take up a run: `history` is empty, or what the checkpoint holds."""
        self.history = list(history)
        self._table()
        for name, kind in self.kinds.items():
            with self._guarded(name):
                self.running[name] = kind(self.out, _settings(self.recipe), {r["epoch"]: _curves(r) for r in history})

    def epoch(self, row: Row) -> None:
        """An epoch is done: a run that is killed now shows its curve up to here."""
        self.history.append(row)
        self._table()
        for name, tracker in list(self.running.items()):
            with self._guarded(name):
                tracker.epoch(row["epoch"], _curves(row))

    def close(self, figures: Mapping[str, Any], recipe: Recipe) -> None:
        """The figures of metrics.json, and the settings, since a plan may have changed some."""
        plain = {
            f"{split}/{name}": float(value)
            for split in ("test", "validation")
            for name, value in (figures[split] or {}).items()  # None without photos of it
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, tracker in list(self.running.items()):
            with self._guarded(name):
                tracker.close(len(self.history), plain, _settings(recipe))
        self.running = {}

    def _table(self) -> None:
        io.table(self.out / "history.csv", self.history, COLUMNS)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """A tracker that fails does no harm; what it prints is for people, since stdout is for JSON."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.running.pop(name, None)
            why = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            self.warn(f"{name} fails, and the run goes on without it ({why})")


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in asdict(recipe).items() if value is not None}


def _curves(row: Row) -> dict[str, float]:
    """Tag -> value; where there are no validation photos, their figures are not numbers and left out."""
    return {tag: row[name] for name, tag in TAGS.items() if math.isfinite(row[name])}
