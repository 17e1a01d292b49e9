"""The layers of a published backbone, and batch norms whose epsilon is not theirs."""

import torch
from torch import Tensor, nn

from fieldmark.models.zoo import Variant


def layers_with_weights(variant: Variant) -> dict[str, nn.Module]:
    """Published name of each layer of the backbone that has weights -> the layer, in order; without memory."""
    gate = {"gate": variant.gate} if variant.gate else {}
    with torch.device("meta"):
        backbone = variant.make_backbone(channels=3, **gate)
    return {name: m for name, m in backbone.named_modules() if next(m.parameters(recurse=False), None) is not None}


def compensate_epsilon(state: dict[str, Tensor], variant: Variant, epsilon: float) -> dict[str, Tensor]:
    """The tensors with scales by which our batch norms give what those with that epsilon gave, in eval mode.

    Args:
        state: tensors under our published names.
        variant: the network, for the epsilon of its own norms.
        epsilon: that of the norms from which the tensors come.
    """
    changed = {}
    for name, layer in layers_with_weights(variant).items():
        scale, variance = (state.get(f"{name}.{kind}") for kind in ("weight", "running_var"))
        if not isinstance(layer, nn.BatchNorm2d) or layer.eps == epsilon or scale is None or variance is None:
            continue
        if scale.shape == variance.shape:
            exact = variance.double()
            ratio = ((exact + layer.eps) / (exact + epsilon)).sqrt()
            changed[f"{name}.weight"] = (scale.double() * ratio).to(scale.dtype)
    return state | changed
