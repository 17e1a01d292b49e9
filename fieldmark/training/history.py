"""The history of a training: a record for each epoch, and what listens to it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LINEAR_PROBE, HEAD_REFIT = 1, 4
"""Numbers of the phases that fit the head alone: on features of the pretrained layers, and of the fine-tuned ones.
Those between them are fine-tuning."""


@dataclass(frozen=True)
class EpochRecord:
    """Metrics of one epoch; the fields are the columns of history.csv."""

    epoch: int
    """From 1, over all phases."""
    phase: int
    """1 for the linear probe, 2 and perhaps 3 for fine-tuning, 4 for the refit of the head."""
    lr: float
    """Learning rate of the head in the last step."""
    train_loss: float
    """Mean loss of an image, in nats."""
    train_accuracy: float
    """From 0 to 1, on the images as they were trained on."""
    val_loss: float
    """Mean cross-entropy of an image in nats; NaN without validation images."""
    val_accuracy: float
    """From 0 to 1; NaN without validation images."""
    seconds: float

    @property
    def has_validation(self) -> bool:
        return not math.isnan(self.val_loss)

    @property
    def is_finetuning(self) -> bool:
        return LINEAR_PROBE < self.phase < HEAD_REFIT

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


HISTORY_COLUMNS = [field.name for field in dataclasses.fields(EpochRecord)]


class StopTraining(Exception):
    """Raised by a callback after an epoch: fine-tuning ends; the best weights are kept, tested and reported.

    The run is then finished, as after the last of its epochs: `resume=True` returns it as it is. If it is interrupted
    before its report is written, `resume=True` goes on from there and trains no further epoch.
    """


class Callback:
    """Follows a training from Python; override what is needed. Any object with some of these methods will do."""

    def on_train_begin(self, history: Sequence[EpochRecord]) -> None:
        """The training starts, or continues after the epochs of `history`."""

    def on_epoch_end(self, record: EpochRecord) -> None:
        """An epoch is done, the linear probe and the refit of the head among them; may raise `StopTraining`."""

    def on_train_end(self, history: Sequence[EpochRecord]) -> None:
        """All epochs are done; the evaluation and the report follow."""


class EpochListener(Protocol):
    """Receives the epochs of a training while it runs."""

    def start(self, history: Sequence[EpochRecord]) -> None:
        """The training starts, or continues after the epochs of `history`."""

    def log_epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""
