"""Attention slots: features (n, c, h, w) -> features of the same shape, made by `(channels, reference=None) -> module`.

Every slot of a network holds an `Attention`; the base class is the identity. A gate of the paper's own form is a
sigmoid. Inserted into pretrained weights, it is 2 * sigmoid with a zero-initialized last layer: 2 * sigmoid(0) is
exactly 1, so the pretrained features are unchanged bit for bit until training moves the gate. The gates are in
gates.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """The identity, and the base class of every attention module.

    Args:
        channels: channels of the feature map.
        reference: width that the block provides for the squeeze; None for `channels`.

    Attributes:
        is_pretrained: whether the module belongs to the published network, whose weights include it.
    """

    is_pretrained = False

    def __init__(self, channels: int, reference: int | None = None) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def start_as_identity(self) -> None:
        """Make the output equal the input, for insertion into weights trained without this module."""

    def set_norm_statistics(self, features: Tensor) -> None:
        """Initialize the statistics of the module's norm, if any, from input features (n, c, h, w)."""


def is_added(module: nn.Module) -> TypeGuard[Attention]:
    """Whether the module is attention that the published network does not have."""
    return isinstance(module, Attention) and type(module) is not Attention and not module.is_pretrained


def mark_pretrained(make: Callable[..., Attention]) -> Callable[..., Attention]:
    """Wrap a constructor so that its modules are part of the published network."""

    def make_pretrained(channels: int, reference: int | None = None) -> Attention:
        gate = make(channels, reference)
        gate.is_pretrained = True
        return gate

    return make_pretrained


@dataclass(frozen=True)
class Replace:
    """`attention=Replace(X)` replaces the gates that the paper puts into its blocks; `attention=X` adds to them."""

    constructor: Callable[..., Attention]


class DoubledSigmoid(nn.Module):
    """2 * sigmoid(x), exactly 1 at 0.

    The factor 2 is a buffer, so that saved weights show which form a gate has.
    """

    peak: Tensor

    def __init__(self, sigmoid: nn.Module) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self.register_buffer("peak", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.peak * self.sigmoid(x)


class Gate(Attention):
    """Multiply the features by one or more gates, each `activate(score)`, after an optional batch norm.

    A subclass implements `apply_gate`, and names in `final_layers` the children or parameters that produce its scores:
    setting them to zero makes every score 0.

    Args:
        channels: channels of the feature map.
        norm: put a batch norm before the gate.
        hard: use the hard sigmoid, relu6(score + 3) / 6, which is 1/2 at 0 too.
    """

    final_layers: tuple[str, ...]

    def __init__(self, channels: int, *, norm: bool, hard: bool = False) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.sigmoid: nn.Module = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def activate(self, score: Tensor) -> Tensor:
        """A score of any shape -> the gate in (0, 1), or in (0, 2) for a gate that started as the identity."""
        return self.sigmoid(score)

    def apply_gate(self, x: Tensor) -> Tensor:
        """Normalized features (n, c, h, w) -> the features times the gates."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_gate(self.norm(x))

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Make the gates exactly 1, and the norm the identity in eval mode up to rounding."""
        if not isinstance(self.sigmoid, DoubledSigmoid):
            self.sigmoid = DoubledSigmoid(self.sigmoid)
        for layer in (getattr(self, name) for name in self.final_layers):
            for parameter in layer.parameters() if isinstance(layer, nn.Module) else (layer,):
                nn.init.zeros_(parameter)
        if isinstance(self.norm, nn.BatchNorm2d):
            self._match_norm_affine(self.norm)

    @torch.no_grad()
    def set_norm_statistics(self, features: Tensor) -> None:
        """Set the norm's running statistics from features (n, c, h, w), and its affine parameters to undo them."""
        if isinstance(self.norm, nn.BatchNorm2d):
            variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
            self.norm.running_mean, self.norm.running_var = mean, variance
            self._match_norm_affine(self.norm)

    @staticmethod
    def _match_norm_affine(norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
