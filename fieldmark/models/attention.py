"""Attention slots: `(channels, reference=None) -> module`, features (n, c, h, w) -> features of the same shape.

Every slot of a network holds an `Attention`; the plain one lets everything through. A gate's own form is the paper's,
a sigmoid. Inserted into loaded weights it is 2 * sigmoid with a zeroed last layer: 2 * sigmoid(0) is exactly 1, so the
pretrained features stay the same to the bit until training moves the gate. The gates themselves are in gates.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Lets everything through; the base of every attention module.

    `channels` is the width of the map, `reference` the width a block names for the squeeze (None: the map's own).
    `brought` says that the published network has it and its weights bring it; all others were added.
    """

    is_pretrained = False

    def __init__(self, channels: int, reference: int | None = None) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def start_as_identity(self) -> None:
        """Make the output equal the input, for insertion into weights that were trained without this module."""

    def set_norm_statistics(self, features: Tensor) -> None:
        """Take the statistics of the module's norm, if it has one, from features (n, c, h, w) that it will see."""


def mark_pretrained(make: Callable[..., Attention]) -> Callable[..., Attention]:
    """The constructor, marking what it makes as part of the published network."""

    def make_pretrained(channels: int, reference: int | None = None) -> Attention:
        gate = make(channels, reference)
        gate.is_pretrained = True
        return gate

    return make_pretrained


@dataclass(frozen=True)
class Replace:
    """`attention=Replace(X)`: X in the place of the gates that the network's paper puts into its blocks.

    `X` alone adds its gate behind those.
    """

    constructor: Callable[..., Attention]


class DoubledSigmoid(nn.Module):
    """Twice a sigmoid: exactly 1 at 0. The 2 is saved with the weights, which tells the two forms of a gate apart."""

    peak: Tensor

    def __init__(self, sigmoid: nn.Module) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self.register_buffer("peak", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.peak * self.sigmoid(x)


class Gate(Attention):
    """x -> x times one gate or several, each `open(score)`, after a BN where `norm` asks for one.

    A new gate writes `gated`, and names in `lasts` the children or parameters that its scores end with: zeroed, they
    make every score 0. `hard` takes the hard sigmoid, relu6(score + 3) / 6, which is a half at 0 as well.
    """

    final_layers: tuple[str, ...]

    def __init__(self, channels: int, *, norm: bool, hard: bool = False) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.sigmoid: nn.Module = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def activate(self, score: Tensor) -> Tensor:
        """A score of any shape -> the gate, between 0 and 1; up to 2 where it started as the identity."""
        return self.sigmoid(score)

    def apply_gate(self, x: Tensor) -> Tensor:
        """Features (n, c, h, w), after the norm -> the same times the gates."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_gate(self.norm(x))

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """The gates give exactly 1; a norm, in eval mode, gives its input back to rounding."""
        if not isinstance(self.sigmoid, DoubledSigmoid):
            self.sigmoid = DoubledSigmoid(self.sigmoid)
        for layer in (getattr(self, name) for name in self.final_layers):
            for parameter in layer.parameters() if isinstance(layer, nn.Module) else (layer,):
                nn.init.zeros_(parameter)
        if isinstance(self.norm, nn.BatchNorm2d):
            self._match_norm_affine(self.norm)

    @torch.no_grad()
    def set_norm_statistics(self, features: Tensor) -> None:
        """Set the norm's running statistics from features (n, c, h, w), undone by its weight and bias."""
        if isinstance(self.norm, nn.BatchNorm2d):
            variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
            self.norm.running_mean, self.norm.running_var = mean, variance
            self._match_norm_affine(self.norm)

    @staticmethod
    def _match_norm_affine(norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
