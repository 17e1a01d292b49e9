"""Named tensors and a JSON value in one safetensors file; no pickle."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.io import atomic_path


def save_state(file: Path, tensors: dict[str, Tensor], counters: dict[str, Any] | None = None) -> None:
    """Write tensors and counters so that a kill at any moment leaves the old file or the new one, whole.

    Raises:
        OSError: the disk is full.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(file, sync=True) as partial:
        try:
            save_file(plain, partial, metadata={"counters": json.dumps(counters or {})})
        except SafetensorError as error:  # a full disk is an OSError everywhere else
            raise OSError(f"{error} ({partial})") from None


def load_state(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the counters that `save_state` wrote.

    Raises:
        FieldmarkError: the file is damaged, or something else.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, json.loads(opened.metadata()["counters"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FieldmarkError(
            f"{file} is not a checkpoint of this version ({error}): train again with another --out"
        ) from None


def iter_bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Names and values of tensors for a hash, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        yield name.encode()
        yield np.ascontiguousarray(tensor.detach().cpu().numpy()).data


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
