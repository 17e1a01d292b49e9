"""Callbacks of a training in Python beside its loggers."""

from collections.abc import Sequence
from typing import Any

from fieldmark.training.history import EpochListener, EpochRecord


class CallbackGroup:
    """Passes each epoch to the loggers, and then to the callbacks: objects with methods of `history.Callback`."""

    def __init__(self, loggers: EpochListener, callbacks: Sequence[Any]) -> None:
        self.loggers, self.callbacks = loggers, callbacks

    def start(self, history: Sequence[EpochRecord]) -> None:
        """The training starts, or continues after `history`."""
        self.loggers.start(history)
        self._call("on_train_begin", history)

    def log_epoch(self, record: EpochRecord) -> None:
        """An epoch is done; `StopTraining` of a callback passes through."""
        self.loggers.log_epoch(record)
        self._call("on_epoch_end", record)

    def end(self, history: Sequence[EpochRecord]) -> None:
        """All epochs are done."""
        self._call("on_train_end", history)

    def _call(self, name: str, argument: Any) -> None:
        for callback in self.callbacks:
            if method := getattr(callback, name, None):
                method(argument)
