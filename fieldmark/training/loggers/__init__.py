"""Epochs -> history.csv and RUN/tensorboard always; Weights & Biases and MLflow where `--logger` names them.

Each tracker gets the whole history when a run begins or goes on, and writes what it lacks: wherever a run was killed,
no epoch is missing afterwards and none stands there twice. All but history.csv may fail without harm to the training.
"""

import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.loggers.services import MLFlowLogger, WandbLogger
from fieldmark.training.loggers.tensorboard import TensorBoardLogger

EpochRow = Mapping[str, Any]
"""An epoch in the history: a value for each of COLUMNS."""
HISTORY_COLUMNS = ["epoch", "phase", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
SCALAR_TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "lr",
    "seconds": "seconds",
}
"""Column -> its curve's name."""


class Logger(Protocol):
    """Something that keeps curves: of each epoch, by its number, tag -> value.

    It is made with the folder of the run, the settings and the curves so far, and takes up what it kept of them.
    """

    def __init__(self, out: Path, hyperparameters: dict[str, Any], curves: dict[int, dict[str, float]]) -> None: ...

    def log_epoch(self, number: int, values: dict[str, float]) -> None: ...

    def close(self, epochs: int, metrics: dict[str, float], hyperparameters: dict[str, Any]) -> None: ...


LOGGERS: dict[str, type[Logger]] = {"wandb": WandbLogger, "mlflow": MLFlowLogger}
"""What `--logger` takes: the name of a package -> its tracker."""


def parse_loggers(logger: str | None) -> tuple[str, ...]:
    """`wandb,mlflow` -> the names, each once.

    Raises:
        FieldmarkError: a name that there is not, or whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (logger or "").split(",") if name.strip()))
    for name in names:
        if name not in LOGGERS:
            raise FieldmarkError(f"--logger is {name!r}, but can be {' or '.join(LOGGERS)}, or both with a comma")
        if (package := find_spec(name)) is None or package.origin is None:  # a mere folder of that name has no origin
            raise FieldmarkError(f"--logger {name} needs a package more: pip install 'fieldmark[loggers]'")
    return names


class LoggerGroup:
    """All trackers of one run, in its folder `out`: `begin`, then `epoch` after each, then `close`.

    `warn` is told, once, of each that fails; it is left out from there on, until the run is resumed.
    """

    def __init__(self, out: Path, recipe: Recipe, warn: Callable[[str], None]) -> None:
        self.out, self.recipe, self.warn = out, recipe, warn
        self.logger_types: dict[str, type[Logger]] = {"tensorboard": TensorBoardLogger}
        self.logger_types |= {name: LOGGERS[name] for name in parse_loggers(recipe.logger)}
        self.active: dict[str, Logger] = {}
        self.history: list[EpochRow] = []

    def start(self, history: Sequence[EpochRow]) -> None:
        """Take up a run: `history` is empty, or what the checkpoint holds."""
        self.history = list(history)
        self._write_history()
        for name, kind in self.logger_types.items():
            with self._warn_on_failure(name):
                self.active[name] = kind(
                    self.out, _hyperparameters(self.recipe), {r["epoch"]: _to_scalars(r) for r in history}
                )

    def log_epoch(self, row: EpochRow) -> None:
        """An epoch is done: a run that is killed now shows its curve up to here."""
        self.history.append(row)
        self._write_history()
        for name, logger in list(self.active.items()):
            with self._warn_on_failure(name):
                logger.log_epoch(row["epoch"], _to_scalars(row))

    def close(self, metrics: Mapping[str, Any], recipe: Recipe) -> None:
        """The figures of metrics.json, and the settings, since a plan may have changed some."""
        scalars = {
            f"{split}/{name}": float(value)
            for split in ("test", "validation")
            for name, value in (metrics[split] or {}).items()  # None without photos of it
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, logger in list(self.active.items()):
            with self._warn_on_failure(name):
                logger.close(len(self.history), scalars, _hyperparameters(recipe))
        self.active = {}

    def _write_history(self) -> None:
        io.write_csv(self.out / "history.csv", self.history, HISTORY_COLUMNS)

    @contextmanager
    def _warn_on_failure(self, name: str) -> Iterator[None]:
        """A tracker that fails does no harm; what it prints is for people, since stdout is for JSON."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.active.pop(name, None)
            why = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            self.warn(f"{name} fails, and the run goes on without it ({why})")


def _hyperparameters(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe.to_dict().items() if value is not None}


def _to_scalars(row: EpochRow) -> dict[str, float]:
    """Tag -> value; where there are no validation photos, their figures are not numbers and left out."""
    return {tag: row[name] for name, tag in SCALAR_TAGS.items() if math.isfinite(row[name])}
