"""Loggers of the epochs: history.csv and TensorBoard always, Weights & Biases and MLflow with `--logger`.

Each logger gets the whole history when a run starts or resumes, and writes what it lacks: wherever a run was killed, no
epoch is missing afterwards and none is there twice. All but history.csv may fail without harm to the training.
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
from fieldmark.training.history import HISTORY_COLUMNS, EpochRecord
from fieldmark.training.loggers.services import MLFlowLogger, WandbLogger
from fieldmark.training.loggers.tensorboard import TensorBoardLogger

SCALAR_TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "lr",
    "seconds": "seconds",
}
"""Field of a record -> tag of its curve."""


class Logger(Protocol):
    """Writes scalars of each epoch to one service.

    Args:
        out: the run's folder.
        hyperparameters: name -> value.
        curves: number of an epoch -> tag -> value, so far; the logger continues from what it has of them.
    """

    def __init__(self, out: Path, hyperparameters: dict[str, Any], curves: dict[int, dict[str, float]]) -> None: ...

    def log_epoch(self, number: int, values: dict[str, float]) -> None: ...

    def close(self, epochs: int, metrics: dict[str, float], hyperparameters: dict[str, Any]) -> None: ...


LOGGERS: dict[str, type[Logger]] = {"wandb": WandbLogger, "mlflow": MLFlowLogger}
"""What `--logger` takes: the name of a package -> its logger."""


def parse_loggers(logger: str | None) -> tuple[str, ...]:
    """`wandb,mlflow` -> the names, each once.

    Raises:
        FieldmarkError: an unknown name, or one whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (logger or "").split(",") if name.strip()))
    for name in names:
        if name not in LOGGERS:
            raise FieldmarkError(f"--logger is {name!r}, but can be {' or '.join(LOGGERS)}, or both with a comma")
        if (package := find_spec(name)) is None or package.origin is None:  # a mere folder of that name has no origin
            raise FieldmarkError(f"--logger {name} needs another package: pip install 'fieldmark[loggers]'")
    return names


class LoggerGroup:
    """All loggers of one run, in its folder `out`: `start`, then `log_epoch` after each epoch, then `close`.

    `warn` is called once for each that fails; it gets nothing more until the run is resumed.
    """

    def __init__(self, out: Path, recipe: Recipe, warn: Callable[[str], None]) -> None:
        self.out, self.recipe, self.warn = out, recipe, warn
        self.logger_types: dict[str, type[Logger]] = {"tensorboard": TensorBoardLogger}
        self.logger_types |= {name: LOGGERS[name] for name in parse_loggers(recipe.logger)}
        self.active: dict[str, Logger] = {}
        self.history: list[EpochRecord] = []

    def start(self, history: Sequence[EpochRecord]) -> None:
        """Start or resume: `history` is empty, or what the checkpoint holds."""
        self.history = list(history)
        self._write_history()
        for name, kind in self.logger_types.items():
            with self._warn_on_failure(name):
                self.active[name] = kind(
                    self.out, _hyperparameters(self.recipe), {record.epoch: _to_scalars(record) for record in history}
                )

    def log_epoch(self, record: EpochRecord) -> None:
        """Write an epoch at once: a run that is killed now shows its curve up to here."""
        self.history.append(record)
        self._write_history()
        for name, logger in list(self.active.items()):
            with self._warn_on_failure(name):
                logger.log_epoch(record.epoch, _to_scalars(record))

    def close(self, metrics: Mapping[str, Any], recipe: Recipe) -> None:
        """Write the final metrics, and the hyperparameters, since a plan may have changed some."""
        scalars = {
            f"{split}/{name}": float(value)
            for split in ("test", "validation")
            for name, value in (metrics[split] or {}).items()  # None for an empty split
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, logger in list(self.active.items()):
            with self._warn_on_failure(name):
                logger.close(len(self.history), scalars, _hyperparameters(recipe))
        self.active = {}

    def _write_history(self) -> None:
        io.write_csv(self.out / "history.csv", [record.to_dict() for record in self.history], HISTORY_COLUMNS)

    @contextmanager
    def _warn_on_failure(self, name: str) -> Iterator[None]:
        """Turn a logger's failure into a warning; what it prints goes to stderr, since stdout is for JSON."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.active.pop(name, None)
            why = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            self.warn(f"{name} failed; training continues without it ({why})")


def _hyperparameters(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe.to_dict().items() if value is not None}


def _to_scalars(record: EpochRecord) -> dict[str, float]:
    """Tag -> value, without the NaNs of an empty validation set."""
    values = {tag: getattr(record, name) for name, tag in SCALAR_TAGS.items()}
    return {tag: value for tag, value in values.items() if math.isfinite(value)}
