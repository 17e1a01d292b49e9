"""A weights file of Keras (.h5, .weights.h5 or .keras) -> its arrays by layer and kind, such as `conv1_conv/kernel`.

Nothing in the file is executed. Links to other files, data outside the file, and shapes that the file does not hold are
refused. Layers are named in lower case, `/` as `_`. The files have two layouts: the older one has attributes with the
names of layers and weights; Keras 3 numbers the variables of each layer, whose order follows from its class.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fieldmark.core.errors import FieldmarkError

SUFFIXES = (".h5", ".hdf5", ".keras")
MAX_DEPTH = 12  # of nested groups
MAX_GROUPS = 100_000
MAX_EXPANSION = 4  # of the weights in a .keras archive, which Keras does not compress
WEIGHTS_IN_ARCHIVE = "model.weights.h5"

# The kinds under the names of all versions of Keras; `bn_conv1_running_std_1:0` ends with that of Keras 1.
_KINDS = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
    **{kind: kind for kind in ("kernel", "depthwise_kernel", "pointwise_kernel", "bias", "gamma", "beta")},
    **{kind: kind for kind in ("moving_mean", "moving_variance", "mean", "variance", "count")},
}
_KIND = re.compile(rf"(?:.*?_)??({'|'.join(sorted(_KINDS, key=len, reverse=True))})(?:_\d+)?(?::0)?")
# The order of a layer's variables in Keras 3; those that it does not have are left out.
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
}


def read_keras_file(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by `layer/kind`.

    Raises:
        FieldmarkError: h5py is not installed, the file is damaged, has no weights of Keras, or would read from
            elsewhere.
    """
    try:
        import h5py  # type: ignore[import-not-found]  # an extra
    except ModuleNotFoundError as error:
        raise FieldmarkError(f"{path} needs another package: pip install 'fieldmark[keras]'") from error
    try:
        with _open(path) as (source, size), h5py.File(source, "r") as file:
            arrays = dict(_read_variables(file, size))
    except FieldmarkError as error:
        raise FieldmarkError(f"{path}: {error}") from None
    except Exception as error:  # h5py and zipfile raise a dozen kinds for a damaged file
        raise FieldmarkError(f"{path} cannot be read as weights of Keras ({type(error).__name__})") from error
    if not arrays:
        raise FieldmarkError(f"{path} has no weights of Keras: save them by model.save_weights('NAME.weights.h5')")
    return arrays


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, int]]:
    """What h5py opens, and its size in bytes: the file, or the weights in a .keras archive."""
    size = path.stat().st_size
    if path.suffix.lower() != ".keras":
        yield path, size
        return
    with zipfile.ZipFile(path) as archive:
        stored = archive.getinfo(WEIGHTS_IN_ARCHIVE).file_size
        if stored > MAX_EXPANSION * size:
            raise FieldmarkError(f"{WEIGHTS_IN_ARCHIVE} would be {stored:,} bytes, which no file of Keras has")
        yield io.BytesIO(archive.read(WEIGHTS_IN_ARCHIVE)), stored


def _read_variables(file: Any, size: int) -> Iterator[tuple[str, Tensor]]:
    """`layer/kind` and array of each variable."""
    budget = size
    group = _follow(file, "model_weights") if "model_weights" in file else file
    for name, dataset in _legacy_datasets(group) if _attribute(group, "layer_names") else _numbered_datasets(file):
        budget -= dataset.nbytes
        if budget < 0 or dataset.external or dataset.is_virtual:
            raise FieldmarkError("it declares more values than it holds")
        if dataset.dtype.kind not in "fiu":
            raise FieldmarkError(f"{name} is no array of numbers")
        yield name, torch.from_numpy(np.atleast_1d(dataset[()]).astype(_torch_type(dataset.dtype)))


def _torch_type(dtype: np.dtype) -> np.dtype:
    """The type of a float as it is, in the machine's byte order; integers, which are counts, as float32."""
    return dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype(np.float32)


def _legacy_datasets(group: Any) -> Iterator[tuple[str, Any]]:
    """The layout with attributes: layers by `layer_names`, their variables by `weight_names`."""
    for layer in _attribute(group, "layer_names"):
        variables = _follow(group, layer)
        for name in _attribute(variables, "weight_names"):
            if match := _KIND.fullmatch(name.rpartition("/")[2]):
                inner = name.rpartition("/")[0] or layer
                yield f"{_layer_name(_without_model(inner, layer))}/{_KINDS[match[1]]}", _follow(variables, name)


def _without_model(name: str, layer: str) -> str:
    """`sequential/dense` in the group `dense` -> `dense`; `conv1/bn`, which older DenseNets have, as it is."""
    return layer if name.endswith(f"/{layer}") else name


def _numbered_datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """The layout of Keras 3: `.../batch_normalization_4/vars/0`; an attribute of `vars` is the layer's own name."""
    for path, group in _groups(file):
        *_, layer, last = ["", "", *path]
        kinds = _VARIABLES.get(re.sub(r"_\d+$", "", layer), ())
        if last != "vars" or not kinds or "optimizer" in path or not len(group):
            continue
        name = group.attrs.get("name")
        if not isinstance(name, str):
            raise FieldmarkError("its layers have no names, as in early versions of Keras 3: save it as .h5")
        if len(kinds) == 4 and len(group) == 3:  # a batch norm without a scale
            kinds = kinds[1:]
        for number in sorted(group, key=int):
            if int(number) < len(kinds):
                yield f"{_layer_name(name)}/{kinds[int(number)]}", _follow(group, number)


def _groups(file: Any) -> Iterator[tuple[list[str], Any]]:
    """Every group by the parts of its path, without following links."""
    waiting: list[tuple[list[str], Any]] = [([], file)]
    count = 0
    while waiting:
        path, group = waiting.pop()
        count += 1
        if count > MAX_GROUPS or len(path) > MAX_DEPTH:
            raise FieldmarkError("its groups are nested as in no file of Keras")
        yield path, group
        if path[-1:] != ["vars"]:
            children = ((name, _follow(group, name)) for name in group)
            waiting += [([*path, name], child) for name, child in children if hasattr(child, "keys")]


def _follow(group: Any, path: str) -> Any:
    """The object at a path below the group; FieldmarkError if a part of it is a link."""
    import h5py  # type: ignore[import-not-found]

    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise FieldmarkError(f"{path} is no part of it, or a link, which is not followed")
        group = group[part]
    return group


def _attribute(group: Any, name: str) -> list[str]:
    """A list of names; Keras splits a long one into `name0`, `name1` and so on."""
    values = group.attrs.get(name)
    parts = [values] if values is not None else []
    while not parts or values is None:
        part = group.attrs.get(f"{name}{len(parts)}")
        if part is None:
            break
        parts.append(part)
    return [value.decode() if isinstance(value, bytes) else str(value) for part in parts for value in part]


def _layer_name(name: str) -> str:
    return name.lower().replace("/", "_")
