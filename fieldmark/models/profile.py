"""A network -> its cost: parameters, multiply-adds, layers and their shapes, and the image sizes that it accepts.

Multiply-adds (MACs) are those of convolutions and matrix products, half of the FLOPs that torch counts. Everything
runs on the meta device, where tensors have a shape and no values.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import published, spec
from fieldmark.models.attention import Attention
from fieldmark.models.builder import build
from fieldmark.models.hooks import forward_hooks
from fieldmark.models.network import Network
from fieldmark.models.zoo import VARIANTS

MAX_SEARCHED_SIZE = 1024
"""Largest image size in pixels that is tried in search of a valid one."""

_aten = torch.ops.aten
# They preserve the shape and cost nothing by torch's count, but would take nine tenths of the time on the meta device.
BATCH_NORM_OP = _aten.native_batch_norm
ACTIVATION_OPS = {
    *(_aten.relu, _aten.relu_, _aten.hardtanh, _aten.hardtanh_, _aten.silu, _aten.silu_),
    *(_aten.hardswish, _aten.hardswish_, _aten.hardsigmoid, _aten.hardsigmoid_, _aten.sigmoid, _aten.sigmoid_),
}


@dataclass(frozen=True)
class NetworkProfile:
    """Cost and accuracy of a network of the zoo with 1000 classes.

    Attributes:
        name: name in VARIANTS.
        params: number of parameters.
        macs: multiply-adds of one image.
        input_size: side of that image in pixels.
        weights: source of the published weights; None if there are none.
        top1: top-1 accuracy on the ImageNet validation set in percent; None if unknown.
        top5: top-5 accuracy in percent; None if unknown.
        licence: licence of the weights.
        paper: where the network is described.
    """

    name: str
    params: int
    macs: int
    input_size: int
    weights: str | None
    top1: float | None
    top5: float | None
    licence: str | None
    paper: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AttentionProfile:
    """Cost of an attention module, a part of its layer's.

    Attributes:
        name: dotted name.
        kind: name of its class as in `attention=`.
        own: whether it is the paper's own; otherwise it was added.
        in_place_of_own: whether it replaces the paper's own.
        params: number of parameters.
        macs: multiply-adds of one image.
    """

    name: str
    kind: str
    own: bool
    in_place_of_own: bool
    params: int
    macs: int


@dataclass(frozen=True)
class LayerProfile:
    """Cost of a layer and when it is trained.

    Attributes:
        name: dotted name.
        shape: shape of the output without the batch dimension.
        params: number of parameters.
        macs: multiply-adds of one image.
        frozen: whether the linear probe keeps it frozen; it trains the head and attention behind the last stage.
        frozen_in_phase_2: whether fine-tuning keeps it frozen.
        attention: the attention modules inside the layer, or the one that it is.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int
    frozen: bool
    frozen_in_phase_2: bool
    attention: tuple[AttentionProfile, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"attention": [asdict(attention) for attention in self.attention]}


@dataclass(frozen=True)
class _Cost:
    shape: tuple[int, ...]  # without the batch dimension
    macs: int


class _MacCounter(TorchDispatchMode):
    """Counts what torch's FlopCounterMode counts, in a tenth of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        if operation in ACTIVATION_OPS:
            return args[0]
        if operation is BATCH_NORM_OP:
            return args[0], args[1], args[1]
        out = func(*args, **(kwargs or {}))
        if operation in flop_registry:
            self.macs += flop_registry[operation](*args, **(kwargs or {}), out_val=out) // 2
        return out


def count_macs(network: Network, size: int) -> int:
    """Multiply-adds of one image of size x size pixels."""
    network = _on_meta(network)
    return _trace_costs(network, size, [network])[network].macs


def network_table(names: Iterable[str] = VARIANTS) -> list[NetworkProfile]:
    """Profiles of networks of the zoo with 1000 classes."""
    return [_profile_network(name) for name in names]


def _profile_network(name: str) -> NetworkProfile:
    with torch.device("meta"):
        network = build(name).eval()
    row = published.PUBLISHED_WEIGHTS.get(name)
    size = network.preprocessing.size
    return NetworkProfile(
        name,
        _count_parameters(network),
        _trace_costs(network, size, [network])[network].macs,
        size,
        row.source if row else None,
        row.top1 if row else None,
        row.top5 if row else None,
        row.licence if row else None,
        VARIANTS[name].paper,
    )


def layer_table(network: Network, size: int) -> list[LayerProfile]:
    """Profiles of the layers in order, for images of size x size pixels.

    Raises:
        FieldmarkError: the network does not accept that size.
    """
    check_image_size(network, size)
    network = _on_meta(network)
    layers = [*network.backbone.iter_layers(), ("head", network.head)]
    gates = {name: list(_iter_attention(layer, name)) for name, layer in layers}
    modules = [*(layer for _, layer in layers), *(gate for some in gates.values() for _, gate in some)]
    costs = _trace_costs(network, size, [*modules, network.backbone])
    # What the backbone computes besides its layers, as the moments of its stages, is for the head.
    pooling_macs = costs[network.backbone].macs - sum(costs[layer].macs for _, layer in layers[:-1])
    probe_layers, frozen_layers = _trained_in_probe(network), _frozen_in_fine_tuning(network)
    is_replaced = (network.spec.attention or "").startswith("replace(")
    return [
        LayerProfile(
            name,
            costs[layer].shape,
            _count_parameters(layer),
            costs[layer].macs + (pooling_macs if layer is network.head else 0),
            frozen=layer not in probe_layers,
            frozen_in_phase_2=layer in frozen_layers,
            attention=tuple(
                AttentionProfile(
                    gate_name,
                    spec.format_constructor(type(gate)),
                    gate.is_pretrained,
                    is_replaced and gate is not layer,
                    _count_parameters(gate),
                    costs[gate].macs,
                )
                for gate_name, gate in gates[name]
            ),
        )
        for name, layer in layers
    ]


def _trained_in_probe(network: Network) -> set[nn.Module]:
    _, tail = network.backbone.split_after(list(network.backbone.stages)[-1])
    return {network.head, *(layer for _, layer in tail.iter_layers() if isinstance(layer, Attention))}


def _frozen_in_fine_tuning(network: Network) -> set[nn.Module]:
    boundary = network.freeze_boundary
    if boundary is None or not published.find_weights(network.spec.backbone):  # from scratch, all of it trains
        return set()
    return {layer for _, layer in network.backbone.split_after(boundary)[0].iter_layers()}


def min_image_size(network: Network) -> int:
    """The side in pixels of the smallest images that the network accepts, determined by trying."""
    network = _on_meta(network)
    return next(size for size in range(1, network.preprocessing.size + 1) if _accepts_size(network, size))


def check_image_size(network: Network, size: int) -> None:
    """Raise FieldmarkError, which names a valid size, if the network does not accept images of size x size pixels."""
    network, name = _on_meta(network), network.spec.backbone
    if _accepts_size(network, size):
        return
    valid_size, qualifier = min_image_size(network), "smallest"
    if valid_size < size:  # some timm networks accept multiples of their patch size, or a single size
        larger = (pixels for pixels in range(size + 1, MAX_SEARCHED_SIZE + 1) if _accepts_size(network, pixels))
        valid_size, qualifier = next(larger, network.preprocessing.size), "next"
    raise FieldmarkError(
        f"{name} does not accept images of {size} x {size} pixels: "
        f"{valid_size} is the {qualifier} size that works (--image-size {valid_size})"
    )


def uncropped_size(network: Network) -> int:
    """The image size in pixels at which the whole image has the scale that the published weights expect.

    They are evaluated on the central crop (usually 224 of 256 pixels); the full image holds as much information
    (docs/lab/fine-tuning.md). A network that accepts a single size gets that.
    """
    preprocessing = network.preprocessing
    whole = round(preprocessing.size / preprocessing.crop)
    return whole if _accepts_size(_on_meta(network), whole) else preprocessing.size


def _accepts_size(network: Network, size: int) -> bool:
    try:
        cost = _trace_costs(network, size, [network.backbone])[network.backbone]
    except (RuntimeError, ValueError, AssertionError):  # what layers raise for a map that is too small
        return False
    return 0 not in cost.shape


@torch.no_grad()
def _trace_costs(network: Network, size: int, modules: Iterable[nn.Module]) -> dict[nn.Module, _Cost]:
    """The cost of each module for one image; the network is on the meta device and in eval mode."""
    counter, macs_before, costs = _MacCounter(), dict[nn.Module, int](), dict[nn.Module, _Cost]()

    def start_count(module: nn.Module, _: Any) -> None:
        macs_before[module] = counter.macs

    def record_cost(module: nn.Module, _: Any, output: Tensor) -> None:
        costs[module] = _Cost(tuple(output.shape[1:]), counter.macs - macs_before[module])

    with forward_hooks(modules, before=start_count, after=record_cost), counter:
        network(torch.empty(1, network.spec.channels, size, size, device="meta"))
    return costs


def _on_meta(network: Network) -> Network:
    """A copy in eval mode on the meta device, which takes no memory."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}).eval()


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _iter_attention(module: nn.Module, name: str) -> Iterator[tuple[str, Attention]]:
    """Attention modules other than the identity, by dotted name, without those nested in another."""
    if isinstance(module, Attention):
        if type(module) is not Attention:
            yield name, module
        return
    for child, inside in module.named_children():
        yield from _iter_attention(inside, f"{name}.{child}")
