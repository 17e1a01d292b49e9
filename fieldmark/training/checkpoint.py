"""State of a training <-> checkpoint.safetensors in the run's folder."""

import dataclasses
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.state import load_state, save_state
from fieldmark.training.history import EpochRecord

CHECKPOINT_FILE = "checkpoint.safetensors"
FILE_TIMEOUT_S = 120
"""Seconds after which a network disk shows every machine what one has written, by the defaults of NFS."""


@dataclass
class TrainingState:
    """Counters of a training; with weights and optimiser state, everything that resuming takes."""

    phase: int = 1
    step: int = 0
    """Steps done in this phase."""
    loss: float = 0.0
    """Sum over the running epoch, in nats."""
    right: int = 0
    """Images of the running epoch that were classified correctly."""
    seen: int = 0
    """Images of the running epoch."""
    history: list[EpochRecord] = field(default_factory=list)
    lr_scale: float = 1.0
    """Factor of the learning rates, lowered whenever the training diverged."""
    reference_loss: float = 0.0
    """Mean loss of the phase's first steps; 0 before they are done."""
    window_loss: float = 0.0
    """Sum of the losses since the last check for divergence."""
    window_seen: int = 0
    """Images since then."""
    finetuning_seconds: float | None = None
    """What a budget leaves for the epochs of fine-tuning; None without one."""
    is_stopped: bool = False
    """Whether a callback has ended fine-tuning, by `StopTraining`."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingState":
        """Raises TypeError where a field is missing or unknown."""
        state = cls(**values)
        state.history = [EpochRecord(**row) for row in values["history"]]
        return state


@dataclass
class Checkpoint:
    """What a checkpoint holds; each dictionary maps a tensor's name to the tensor, and may be empty."""

    state: TrainingState
    weights: dict[str, Tensor]
    """Of the trainable part, now."""
    best_weights: dict[str, Tensor]
    """Of the trainable part, after the best epoch."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """See `optimizer_tensors`."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    """Moving average of the weights."""

    def save(self, folder: Path) -> None:
        """Write the checkpoint into the folder, atomically."""
        parts = {"now": self.weights, "best": self.best_weights, "optimizer": self.optimizer, "average": self.ema}
        tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        save_state(folder / CHECKPOINT_FILE, tensors, dataclasses.asdict(self.state))

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint | None":
        """The checkpoint in the folder, if there is one.

        Raises:
            FieldmarkError: it is damaged, or of another version.
        """
        file = folder / CHECKPOINT_FILE
        if not file.exists():
            return None
        tensors, counters = load_state(file)
        try:
            state = TrainingState.from_dict(counters)
        except (TypeError, KeyError) as error:
            raise FieldmarkError(
                f"{file} is not a checkpoint of this version ({error}): train again with another --out"
            ) from None
        return cls(state, *(select_prefix(tensors, part) for part in ("now", "best", "optimizer", "average")))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `NUMBER.NAME` -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{k}.{name}": value for k, values in state.items() for name, value in values.items() if value is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`; learning rates and weight decay stay the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    # A file has no strides, and torch's fused steps take elements as they lie, whatever the strides of their parameter.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def wait_for_file(file: Path) -> None:
    """Wait until this machine sees a file that another one has written.

    Raises:
        FieldmarkError: it does not appear within `FILE_TIMEOUT_S`.
    """
    deadline = time.monotonic() + FILE_TIMEOUT_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise FieldmarkError(f"{file} is not visible on this machine: all machines need the same shared --out")
        for folder in (file.parent.parent, file.parent):  # listing makes a network disk ask again, sooner or later
            with suppress(OSError):
                os.listdir(folder)
        time.sleep(0.2)
