"""Layers in eval mode -> the same function with fewer passes over memory: batch norms inside the convolutions."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

FUSION_TOLERANCE = 1e-4
"""Of the largest number that comes out: what rounding may differ by."""


def fuse_batch_norms(layers: nn.Module, x: Tensor) -> nn.Module:
    """A frozen copy of layers in eval mode whose batch norms are folded into the convolutions that feed them.

    In eval mode a norm scales and shifts each channel, and so does a convolution right before it (Jacob et al. 2018,
    "Quantization and Training of Neural Networks", section 3.2): the same numbers up to rounding, without the norm's
    pass over the map. Who feeds whom is seen on the way of `x`, an input of the layers. Where nothing can be folded,
    or a convolution feeds others too so that the copy says something else, the layers themselves come back.
    """
    with torch.no_grad():
        pairs, expected = _find_conv_bn_pairs(layers, x)
        if not pairs:
            return layers
        fused = copy.deepcopy(layers).requires_grad_(False)
        for conv, norm in pairs:
            _fuse_conv_bn(fused, conv, norm)
        is_equal = torch.allclose(fused(x), expected, rtol=0, atol=FUSION_TOLERANCE * expected.abs().max().item())
    return fused if is_equal else layers


def _find_conv_bn_pairs(layers: nn.Module, x: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of convolutions and of the norms right behind them, each called once, and what comes out for `x`."""
    names = {module: name for name, module in layers.named_modules()}
    producers: dict[int, tuple[nn.Module, Tensor]] = {}  # with the map itself, or another would get its id
    pairs: list[tuple[nn.Module, nn.Module]] = []
    calls: Counter[nn.Module] = Counter()

    def record_convolution(conv: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> None:
        calls[conv] += 1
        producers[id(y)] = conv, y

    def record_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in producers:
            pairs.append((producers[id(inputs[0])][0], norm))

    hooks = []
    for module in names:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(record_convolution))
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(record_norm))
    output = layers(x)
    for hook in hooks:
        hook.remove()
    return [(names[conv], names[norm]) for conv, norm in pairs if calls[conv] == calls[norm] == 1], output


def _fuse_conv_bn(layers: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = layers.get_submodule(conv_name), layers.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    parent, _, child = norm_name.rpartition(".")
    setattr(layers.get_submodule(parent), child, nn.Identity())
