"""Layers in eval mode -> an equivalent copy with batch norms folded into the convolutions before them."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fieldmark.models.hooks import forward_hooks

FUSION_TOLERANCE = 1e-4
"""Largest difference that rounding may cause, as a share of the largest output."""


def fuse_batch_norms(layers: nn.Module, x: Tensor) -> nn.Module:
    """A frozen copy of layers in eval mode with batch norms folded into the convolutions that feed them.

    In eval mode a batch norm scales and shifts each channel, which the convolution before it can do as well (Jacob et
    al. 2018, "Quantization and Training of Neural Networks", section 3.2): the same output up to rounding, one pass
    over memory less.

    Args:
        layers: in eval mode.
        x: an input of the layers, by which the pairs of convolution and batch norm are traced.

    Returns:
        The copy; or the layers themselves if there is nothing to fold, or if the copy computes something else because
        a convolution feeds other layers too.
    """
    with torch.no_grad():
        pairs, expected = _find_conv_bn_pairs(layers, x)
        if not pairs:
            return layers
        fused = copy.deepcopy(layers).requires_grad_(False)
        for conv, norm in pairs:
            _fuse_conv_bn(fused, conv, norm)
        is_equal = all(
            torch.allclose(y, reference, rtol=0, atol=FUSION_TOLERANCE * reference.abs().amax().item())
            for y, reference in zip(_as_tensors(fused(x)), _as_tensors(expected), strict=True)
            if reference.numel()
        )
    return fused if is_equal else layers


def _as_tensors(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _find_conv_bn_pairs(layers: nn.Module, x: Tensor) -> tuple[list[tuple[str, str]], Any]:
    """Names of each convolution and the batch norm right behind it, both called once; and the output for `x`."""
    names = {module: name for name, module in layers.named_modules()}
    convolutions = [module for module in names if isinstance(module, nn.Conv2d)]
    norms = [module for module in names if type(module) is nn.BatchNorm2d and module.track_running_stats]
    producers: dict[int, tuple[nn.Module, Tensor]] = {}  # with the map, so that no other gets its id
    pairs: list[tuple[nn.Module, nn.Module]] = []
    calls: Counter[nn.Module] = Counter()

    def record_convolution(conv: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> None:
        calls[conv] += 1
        producers[id(y)] = conv, y

    def record_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in producers:
            pairs.append((producers[id(inputs[0])][0], norm))

    with forward_hooks(convolutions, after=record_convolution), forward_hooks(norms, before=record_norm):
        output = layers(x)
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
