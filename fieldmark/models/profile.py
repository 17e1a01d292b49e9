"""A network -> what it costs: parameters, multiply-adds, layers and their shapes, counted without computing.

Multiply-adds are those of convolutions and matrix products, as torch counts them: half of its FLOPs. Everything runs
on the meta device, where tensors have a shape and no values.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import VARIANTS, Attention, Network, build, published, spec
from fieldmark.models.published import PUBLISHED_WEIGHTS

MAX_SEARCHED_SIZE = 1024  # pixels up to which a size that works is looked for

_aten = torch.ops.aten
# They keep the shape and multiply nothing by torch's count, and would take nine tenths of the time on the meta device.
BATCH_NORM_OP = _aten.native_batch_norm
ACTIVATION_OPS = {
    *(_aten.relu, _aten.relu_, _aten.hardtanh, _aten.hardtanh_, _aten.silu, _aten.silu_),
    *(_aten.hardswish, _aten.hardswish_, _aten.hardsigmoid, _aten.hardsigmoid_, _aten.sigmoid, _aten.sigmoid_),
}


class _MacCounter(TorchDispatchMode):
    """Counts what torch's FlopCounterMode counts, at a tenth of its time."""

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
    """Multiply-adds of one photo of size x size pixels."""
    network = _on_meta(network)
    return _trace_costs(network, size, [network])[network][1]


def network_table(names: Iterable[str] = VARIANTS) -> list[dict[str, Any]]:
    """Networks of the zoo with 1000 classes: name, params, macs, input_size, weights, top1, top5, licence, paper.

    `macs` are of one photo of `input_size` pixels; `weights` says where the published ones come from, `top1` and `top5`
    the percentage of ImageNet's validation photos that they get right; None where there are none, or none is known.
    """
    table = []
    for name in names:
        with torch.device("meta"):
            network = build(name).eval()
        weights = PUBLISHED_WEIGHTS.get(name)
        size = network.preprocessing.size
        table.append(
            {
                "name": name,
                "params": _count_parameters(network),
                "macs": _trace_costs(network, size, [network])[network][1],
                "input_size": size,
                "weights": weights.source if weights else None,
                "top1": weights.top1 if weights else None,
                "top5": weights.top5 if weights else None,
                "licence": weights.licence if weights else None,
                "paper": VARIANTS[name].paper,
            }
        )
    return table


def layer_table(network: Network, size: int) -> list[dict[str, Any]]:
    """The layers in order at size x size pixels: name, shape (without n), params, macs, frozen, attention.

    `frozen` says whether fine-tuning keeps the layer as it is in phase 1, which trains the head and the attention
    behind the last stage; `frozen_in_phase_2` the same of phase 2. `attention` lists the gates inside the layer, or the
    one that it is, each with its name, its kind in words, whether it is the paper's `own` (otherwise it was added), and
    the part of params and macs that it takes. Raises FieldmarkError for a size that the network cannot take.
    """
    check_image_size(network, size)
    network = _on_meta(network)
    parts = [*_iter_layers(network.backbone), ("head", network.head)]
    gates = {name: list(_iter_attention(layer, name)) for name, layer in parts}
    costs = _trace_costs(
        network, size, [*(m for _, m in parts), *(gate for some in gates.values() for _, gate in some)]
    )
    _, tail = network.backbone.split_after(list(network.backbone.stages)[-1])
    trainable = [network.head, *(layer for _, layer in _iter_layers(tail) if isinstance(layer, Attention))]
    boundary = (
        network.freeze_boundary if published.find_weights(network.spec["backbone"]) else None
    )  # from scratch all of it trains
    frozen_layers = [layer for _, layer in _iter_layers(network.backbone.split_after(boundary)[0])] if boundary else []
    replaced = (network.spec["attention"] or "").startswith("replace(")
    return [
        {
            "name": name,
            "shape": costs[layer][0],
            "params": _count_parameters(layer),
            "macs": costs[layer][1],
            "frozen": layer not in trainable,
            "frozen_in_phase_2": layer in frozen_layers,
            "attention": [
                {
                    "name": gate_name,
                    "kind": spec.format_constructor(type(gate)),
                    "own": gate.is_pretrained,
                    "in_place_of_own": replaced and gate is not layer,
                    "params": _count_parameters(gate),
                    "macs": costs[gate][1],
                }
                for gate_name, gate in gates[name]
            ],
        }
        for name, layer in parts
    ]


def min_image_size(network: Network) -> int:
    """The side in pixels of the smallest photos that the network can take, found by trying."""
    network = _on_meta(network)
    return next(size for size in range(1, network.preprocessing.size + 1) if _accepts_size(network, size))


def check_image_size(network: Network, size: int) -> None:
    """Refuse photos of size x size pixels that the network cannot take, with a FieldmarkError that names a size."""
    network, name = _on_meta(network), network.spec["backbone"]
    if _accepts_size(network, size):
        return
    valid_size, qualifier = min_image_size(network), "smallest"
    if valid_size < size:  # some networks of timm take multiples of their patch, or one size alone
        larger = (pixels for pixels in range(size + 1, MAX_SEARCHED_SIZE + 1) if _accepts_size(network, pixels))
        valid_size, qualifier = next(larger, network.preprocessing.size), "next"
    raise FieldmarkError(
        f"{name} cannot take photos of {size} x {size} pixels: "
        f"{valid_size} is the {qualifier} size that works (--image-size {valid_size})"
    )


def uncropped_size(network: Network) -> int:
    """Pixels at which a photo is seen whole, at the scale that the published weights expect.

    They are judged on the middle of a photo, 224 of 256 pixels mostly; what lies beyond tells as much
    (docs/performance.md). Networks that take one size alone see it whole at that.
    """
    preprocessing = network.preprocessing
    whole = round(preprocessing.size / preprocessing.crop)
    return whole if _accepts_size(_on_meta(network), whole) else preprocessing.size


def _accepts_size(network: Network, size: int) -> bool:
    try:
        shape, _ = _trace_costs(network, size, [network.backbone])[network.backbone]
    except (RuntimeError, ValueError, AssertionError):  # what layers raise for a map that is too small
        return False
    return 0 not in shape


@torch.no_grad()
def _trace_costs(
    network: Network, size: int, modules: Iterable[nn.Module]
) -> dict[nn.Module, tuple[tuple[int, ...], int]]:
    """Each module -> its output's shape without n, and its multiply-adds, for one photo; on meta, in eval mode."""
    counter, macs_before, costs = _MacCounter(), {}, {}

    def start_count(module: nn.Module, _: Any) -> None:
        macs_before[module] = counter.macs

    def record_cost(module: nn.Module, _: Any, output: Tensor) -> None:
        costs[module] = tuple(output.shape[1:]), counter.macs - macs_before[module]

    hooks = [
        hook
        for m in modules
        for hook in (m.register_forward_pre_hook(start_count), m.register_forward_hook(record_cost))
    ]
    try:
        with counter:
            network(torch.empty(1, network.spec["channels"], size, size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return costs


def _on_meta(network: Network) -> Network:
    """A copy in eval mode whose tensors have no values, so that it costs no memory."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}).eval()


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _iter_layers(layers: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested nn.Sequentials in the order they run, by dotted name."""
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _iter_layers(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _iter_attention(module: nn.Module, name: str) -> Iterator[tuple[str, Attention]]:
    """The attention that gates something, by dotted name, a module and what it is made of counted once."""
    if isinstance(module, Attention):
        if type(module) is not Attention:
            yield name, module
        return
    for child, inside in module.named_children():
        yield from _iter_attention(inside, f"{name}.{child}")
