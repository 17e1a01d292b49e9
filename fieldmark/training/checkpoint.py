"""State of a training <-> one safetensors file, replaced in one move; no pickle."""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError

CHECKPOINT_FILE = "checkpoint.safetensors"
FILE_TIMEOUT_S = 120
"""Seconds after which a network disk shows every machine what one has written, by the defaults of NFS."""


@dataclass
class TrainingState:
    """Where a training stands; with weights and optimiser, all that it takes to go on."""

    phase: int = 1
    step: int = 0  # steps done in this phase
    loss: float = 0.0  # sums over the running epoch
    right: int = 0
    seen: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save(file: Path, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
    """Write both so that a kill at any moment leaves the old file or the new one, whole."""
    half = file.with_suffix(".half")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, half, metadata={"counters": json.dumps(counters)})
    except SafetensorError as error:  # a full disk is an OSError everywhere else
        raise OSError(f"{error} ({half})") from None
    with half.open("rb+") as written:
        os.fsync(written.fileno())
    half.replace(file)


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """-> tensors, counters. Raises FieldmarkError when the file is no checkpoint of ours."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, json.loads(opened.metadata()["counters"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FieldmarkError(
            f"{file} is no checkpoint of this version ({error}); train anew with another --out"
        ) from None


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `NUMBER.NAME` -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{k}.{name}": value for k, values in state.items() for name, value in values.items() if value is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`; rates and decays stay the optimiser's own."""
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
    """Returns when this machine sees a file that another has written. Raises FieldmarkError where it never does."""
    until = time.monotonic() + FILE_TIMEOUT_S
    while not file.exists():
        if time.monotonic() > until:
            raise FieldmarkError(f"{file} is not seen here: all machines have to see the same --out")
        for folder in (file.parent.parent, file.parent):  # a listing makes a network disk ask anew, sooner or later
            with suppress(OSError):
                os.listdir(folder)
        time.sleep(0.2)
