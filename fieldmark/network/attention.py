"""Attention slots: `(channels, reference=None) -> module`, features (n, c, h, w) -> features of the same shape.

Every slot of a network holds an `Attention`; the plain one lets everything through. A gate's own form is the paper's,
a sigmoid. Inserted into loaded weights it is 2 * sigmoid with a zeroed last layer: 2 * sigmoid(0) is exactly 1, so the
pretrained features stay the same to the bit until training moves the gate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Lets everything through; the base of every attention module.

    `channels` is the width of the map, `reference` the width a block names for the squeeze (None: the map's own).
    `brought` says that the published network has it and its weights bring it; all others were added.
    """

    brought = False

    def __init__(self, channels: int, reference: int | None = None) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def start_as_identity(self) -> None:
        """Make the output equal the input, for insertion into weights that were trained without this module."""

    def measure(self, features: Tensor) -> None:
        """Take the statistics of the module's norm, if it has one, from features (n, c, h, w) that it will see."""


def brought(make: Callable[..., Attention]) -> Callable[..., Attention]:
    """The constructor, marking what it makes as part of the published network."""

    def marked(channels: int, reference: int | None = None) -> Attention:
        gate = make(channels, reference)
        gate.brought = True
        return gate

    return marked


@dataclass(frozen=True)
class Replace:
    """`attention=Replace(X)`: X in the place of the gates that the network's paper puts into its blocks.

    `X` alone adds its gate behind those.
    """

    make: Callable[..., Attention]


class Gate(Attention):
    """x -> x * sigmoid(score(x)), after a BN where `norm` asks for one. `last` is the score's last layer."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.peak = 1.0

    @property
    def last(self) -> nn.Conv2d:
        raise NotImplementedError

    def score(self, x: Tensor) -> Tensor:
        """Features (n, c, h, w) -> the gate before its sigmoid, of a shape that spreads over the features."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x * (self.peak * torch.sigmoid(self.score(x)))

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """The gate gives exactly 1; a norm, in eval mode, gives its input back to rounding."""
        self.peak = 2.0
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        if isinstance(self.norm, nn.BatchNorm2d):
            self._undo_norm(self.norm)

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Set the norm's running statistics from features (n, c, h, w), undone by its weight and bias."""
        if isinstance(self.norm, nn.BatchNorm2d):
            variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
            self.norm.running_mean, self.norm.running_var = mean, variance
            self._undo_norm(self.norm)

    @staticmethod
    def _undo_norm(norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)


class SE(Gate):
    """Squeeze-and-excitation: global average -> FC -> ReLU -> FC -> sigmoid, one gate (n, c, 1, 1) per channel.

    Hu et al. 2018, "Squeeze-and-Excitation Networks". The bottleneck has `squeezed` units, or, without it,
    `reference` (the map's channels where the block names none) divided by `ratio`, at least one.
    """

    def __init__(
        self,
        channels: int,
        reference: int | None = None,
        *,
        ratio: int = 16,
        squeezed: int | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__(channels, norm=norm)
        if ratio < 1:
            raise ValueError(f"ratio={ratio}: a squeeze divides by at least 1")
        width = max(1, (reference or channels) // ratio) if squeezed is None else squeezed
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1)

    @property
    def last(self) -> nn.Conv2d:
        return self.fc2

    def score(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)  # (n, c, 1, 1)
        return self.fc2(self.relu(self.fc1(squeezed)))


class Mask(Gate):
    """A position mask: dropout, 1x1 convolutions with ReLU, one more to a single map, sigmoid: a gate (n, 1, h, w).

    The gate of a position is spread over all channels (SYSTEMS row 3, the bird networks' attention).
    """

    def __init__(
        self,
        channels: int,
        reference: int | None = None,
        *,
        norm: bool = False,
        dropout: float = 0.5,
        widths: tuple[int, ...] = (64, 16, 8),
    ) -> None:
        super().__init__(channels, norm=norm)
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for inputs, outputs in pairwise((channels, *widths)):
            layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.gate = nn.Conv2d((channels, *widths)[-1], 1, 1)

    @property
    def last(self) -> nn.Conv2d:
        return self.gate

    def score(self, x: Tensor) -> Tensor:
        return self.gate(self.layers(x))
