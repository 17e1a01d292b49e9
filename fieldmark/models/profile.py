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
from fieldmark.models.published import PUBLISHED

LARGEST = 1024  # pixels up to which a size that works is looked for

_aten = torch.ops.aten
# They keep the shape and multiply nothing by torch's count, and would take nine tenths of the time on the meta device.
NORM = _aten.native_batch_norm
ACTIVATIONS = {
    *(_aten.relu, _aten.relu_, _aten.hardtanh, _aten.hardtanh_, _aten.silu, _aten.silu_),
    *(_aten.hardswish, _aten.hardswish_, _aten.hardsigmoid, _aten.hardsigmoid_, _aten.sigmoid, _aten.sigmoid_),
}


class _Counter(TorchDispatchMode):
    """Counts what torch's FlopCounterMode counts, at a tenth of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        if operation in ACTIVATIONS:
            return args[0]
        if operation is NORM:
            return args[0], args[1], args[1]
        out = func(*args, **(kwargs or {}))
        if operation in flop_registry:
            self.macs += flop_registry[operation](*args, **(kwargs or {}), out_val=out) // 2
        return out


def macs(network: Network, size: int) -> int:
    """Multiply-adds of one photo of size x size pixels."""
    network = _on_meta(network)
    return _watch(network, size, [network])[network][1]


def rows(names: Iterable[str] = VARIANTS) -> list[dict[str, Any]]:
    """Networks of the zoo with 1000 classes: name, params, macs, input_size, weights, top1, top5, licence, paper.

    `macs` are of one photo of `input_size` pixels; `weights` says where the published ones come from, `top1` and `top5`
    the percentage of ImageNet's validation photos that they get right; None where there are none, or none is known.
    """
    table = []
    for name in names:
        with torch.device("meta"):
            network = build(name).eval()
        weights = PUBLISHED.get(name)
        size = network.preprocessing.size
        table.append(
            {
                "name": name,
                "params": _params(network),
                "macs": _watch(network, size, [network])[network][1],
                "input_size": size,
                "weights": weights.source if weights else None,
                "top1": weights.top1 if weights else None,
                "top5": weights.top5 if weights else None,
                "licence": weights.licence if weights else None,
                "paper": VARIANTS[name].paper,
            }
        )
    return table


def layers(network: Network, size: int) -> list[dict[str, Any]]:
    """The layers in order at size x size pixels: name, shape (without n), params, macs, frozen, attention.

    `frozen` says whether fine-tuning keeps the layer as it is in phase 1, which trains the head and the attention
    behind the last stage; `frozen_in_phase_2` the same of phase 2. `attention` lists the gates inside the layer, or the
    one that it is, each with its name, its kind in words, whether it is the paper's `own` (otherwise it was added), and
    the part of params and macs that it takes. Raises FieldmarkError for a size that the network cannot take.
    """
    require_size(network, size)
    network = _on_meta(network)
    parts = [*_walk(network.backbone), ("head", network.head)]
    gates = {name: list(_gates(layer, name)) for name, layer in parts}
    costs = _watch(network, size, [*(m for _, m in parts), *(gate for some in gates.values() for _, gate in some)])
    _, tail = network.backbone.split(list(network.backbone.stages)[-1])
    fresh = [network.head, *(layer for _, layer in _walk(tail) if isinstance(layer, Attention))]
    cut = network.cut if published.find(network.spec["backbone"]) else None  # from scratch all of it trains
    kept = [layer for _, layer in _walk(network.backbone.split(cut)[0])] if cut else []
    replaced = (network.spec["attention"] or "").startswith("replace(")
    return [
        {
            "name": name,
            "shape": costs[layer][0],
            "params": _params(layer),
            "macs": costs[layer][1],
            "frozen": layer not in fresh,
            "frozen_in_phase_2": layer in kept,
            "attention": [
                {
                    "name": inside,
                    "kind": spec.spell(type(gate)),
                    "own": gate.brought,
                    "in_place_of_own": replaced and gate is not layer,
                    "params": _params(gate),
                    "macs": costs[gate][1],
                }
                for inside, gate in gates[name]
            ],
        }
        for name, layer in parts
    ]


def smallest_size(network: Network) -> int:
    """The side in pixels of the smallest photos that the network can take, found by trying."""
    network = _on_meta(network)
    return next(size for size in range(1, network.preprocessing.size + 1) if _takes(network, size))


def require_size(network: Network, size: int) -> None:
    """Refuse photos of size x size pixels that the network cannot take, with a FieldmarkError that names a size."""
    network, name = _on_meta(network), network.spec["backbone"]
    if _takes(network, size):
        return
    works, which = smallest_size(network), "smallest"
    if works < size:  # some networks of timm take multiples of their patch, or one size alone
        larger = (pixels for pixels in range(size + 1, LARGEST + 1) if _takes(network, pixels))
        works, which = next(larger, network.preprocessing.size), "next"
    raise FieldmarkError(
        f"{name} cannot take photos of {size} x {size} pixels: "
        f"{works} is the {which} size that works (--image-size {works})"
    )


def whole_size(network: Network) -> int:
    """Pixels at which a photo is seen whole, at the scale that the published weights expect.

    They are judged on the middle of a photo, 224 of 256 pixels mostly; what lies beyond tells as much
    (docs/performance.md). Networks that take one size alone see it whole at that.
    """
    look = network.preprocessing
    whole = round(look.size / look.crop)
    return whole if _takes(_on_meta(network), whole) else look.size


def _takes(network: Network, size: int) -> bool:
    try:
        shape, _ = _watch(network, size, [network.backbone])[network.backbone]
    except (RuntimeError, ValueError, AssertionError):  # what layers raise for a map that is too small
        return False
    return 0 not in shape


@torch.no_grad()
def _watch(network: Network, size: int, modules: Iterable[nn.Module]) -> dict[nn.Module, tuple[tuple[int, ...], int]]:
    """Each module -> its output's shape without n, and its multiply-adds, for one photo; on meta, in eval mode."""
    counter, before, found = _Counter(), {}, {}

    def enter(module: nn.Module, _: Any) -> None:
        before[module] = counter.macs

    def leave(module: nn.Module, _: Any, output: Tensor) -> None:
        found[module] = tuple(output.shape[1:]), counter.macs - before[module]

    hooks = [hook for m in modules for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        with counter:
            network(torch.empty(1, network.spec["channels"], size, size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _on_meta(network: Network) -> Network:
    """A copy in eval mode whose tensors have no values, so that it costs no memory."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}).eval()


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _walk(layers: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested nn.Sequentials in the order they run, by dotted name."""
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _walk(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _gates(module: nn.Module, name: str) -> Iterator[tuple[str, Attention]]:
    """The attention that gates something, by dotted name, a module and what it is made of counted once."""
    if isinstance(module, Attention):
        if type(module) is not Attention:
            yield name, module
        return
    for child, inside in module.named_children():
        yield from _gates(inside, f"{name}.{child}")
