"""Traced graphs that are used again: networks that differ in their weights alone have the same graph.

Tracing takes most of an export's time, and the runs of a comparison, of folds and of a search export the same network
again and again. What the exporter makes of a graph may depend on values: it merges equal tensors and computes what is
constant. So a graph is used again only where a fresh export is known to give the same bytes, that is, where no tensor
differs but those that differed between earlier exports with the same graph.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_GRAPHS = 32
"""Graphs that are kept in a process, without their weights: some 100 kB each."""


@dataclass
class _Graph:
    skeleton: bytes
    """The serialized model without the values of the tensors in `sources`."""
    sources: dict[str, str]
    """Name of an initializer -> name of the tensor that it is, with `.T` where it is the transpose."""
    digests: dict[str, bytes]
    """Of every tensor, at the last export."""
    varied: set[str]
    """Tensors that have differed between exports which gave this skeleton."""
    classes: list[type]
    """Of the modules: while they are held here, no class that is defined anew has the same id."""

    def fits(self, digests: dict[str, bytes]) -> bool:
        return all(name in self.varied or self.digests[name] == digest for name, digest in digests.items())


_graphs: OrderedDict[str, _Graph] = OrderedDict()


def trace(module: nn.Module, key: str, export: Callable[[], "ModelProto"]) -> "ModelProto":
    """`export()`, or the same model made from an earlier one.

    Args:
        module: what is exported, in eval mode on the CPU.
        key: says all that determines the graph but the values of the module's tensors, its `repr` and its classes.
        export: traces `module`.
    """
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    digests = {name: hashlib.sha256(np.ascontiguousarray(array).data).digest() for name, array in arrays.items()}
    first_with: dict[bytes, int] = {}  # equal tensors are merged
    merged = [first_with.setdefault(digest, number) for number, digest in enumerate(digests.values())]
    shapes = [(name, array.shape) for name, array in arrays.items()]
    classes = [type(part) for part in module.modules()]
    full_key = hashlib.sha256(repr((key, module, list(map(id, classes)), shapes, merged)).encode()).hexdigest()
    graph = _graphs.pop(full_key, None)
    if graph is not None and graph.fits(digests):
        _graphs[full_key] = graph
        return _with_values(graph, arrays)
    model = export()
    exported = _without_values(model, arrays, digests)
    exported.classes = classes
    if graph is not None and (graph.skeleton, graph.sources) == (exported.skeleton, exported.sources):
        exported.varied = graph.varied | {name for name in digests if graph.digests[name] != digests[name]}
    _graphs[full_key] = exported
    if len(_graphs) > MAX_GRAPHS:
        _graphs.popitem(last=False)
    return model


def _without_values(model: "ModelProto", arrays: dict[str, np.ndarray], digests: dict[str, bytes]) -> _Graph:
    from onnx import ModelProto

    skeleton, sources = ModelProto(), dict[str, str]()
    skeleton.CopyFrom(model)
    names = {digest: name for name, digest in digests.items()}
    for name, array in arrays.items():
        if array.ndim == 2:
            names.setdefault(hashlib.sha256(np.ascontiguousarray(array.T).data).digest(), f"{name}.T")
    for tensor in skeleton.graph.initializer:
        digest = hashlib.sha256(tensor.raw_data).digest()
        source = tensor.name if digests.get(tensor.name) == digest else names.get(digest)
        if source is not None and tensor.raw_data:
            sources[tensor.name], tensor.raw_data = source, b""
    return _Graph(skeleton.SerializeToString(), sources, digests, set(), [])


def _with_values(graph: _Graph, arrays: dict[str, np.ndarray]) -> "ModelProto":
    from onnx import ModelProto

    model = ModelProto.FromString(graph.skeleton)
    for tensor in model.graph.initializer:
        if (source := graph.sources.get(tensor.name)) is not None:
            array = arrays[source] if source in arrays else arrays[source.removesuffix(".T")].T
            tensor.raw_data = np.ascontiguousarray(array).tobytes()
    return model
