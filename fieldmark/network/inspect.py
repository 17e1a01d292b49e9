"""A network -> what it costs: parameters, multiply-adds, layers and their shapes, counted without computing."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fieldmark.network import VARIANTS, Network, build
from fieldmark.network.weights import PUBLISHED


def macs(network: Network, size: int) -> int:
    """Multiply-adds of one photo of size x size pixels: half of the FLOPs that torch counts."""
    network, photo = _on_meta(network, size)
    with FlopCounterMode(display=False) as counter:
        network(photo)
    return counter.get_total_flops() // 2


def rows() -> list[dict[str, Any]]:
    """Every network of the zoo with its 1000-class head: name, params, macs, input_size, weights, licence, paper."""
    table = []
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            network = build(name)
        weights = PUBLISHED.get(name)
        size = network.preprocessing.size
        table.append(
            {
                "name": name,
                "params": sum(parameter.numel() for parameter in network.parameters()),
                "macs": macs(network, size),
                "input_size": size,
                "weights": weights.source if weights else None,
                "licence": weights.licence if weights else None,
                "paper": variant.paper,
            }
        )
    return table


def layers(network: Network, size: int) -> list[dict[str, Any]]:
    """The network's layers in order at size x size pixels: name, shape (without n), params, frozen.

    `frozen` says whether fine-tuning keeps the layer as it is.
    """
    network, x = _on_meta(network, size)
    kept = {id(layer) for _, layer in _walk(network.backbone.split(network.cut)[0])} if network.cut else set()
    table = []
    for name, layer in [*_walk(network.backbone), ("head", network.head)]:
        x = layer(x)
        params = sum(parameter.numel() for parameter in layer.parameters())
        table.append({"name": name, "shape": tuple(x.shape[1:]), "params": params, "frozen": id(layer) in kept})
    return table


def _walk(layers: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested nn.Sequentials in the order they run, by dotted name."""
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _walk(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _on_meta(network: Network, size: int) -> tuple[Network, torch.Tensor]:
    channels = network.spec["channels"]
    return copy.deepcopy(network).to("meta").eval(), torch.empty(1, channels, size, size, device="meta")
