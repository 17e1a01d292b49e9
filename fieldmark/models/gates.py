"""The attention there is: features (n, c, h, w) -> the same times gates per channel, position, row or column.

A class is one paper's module; a new one is a `Gate` with `gated` and `lasts`, and a word in spec.py. `norm=True` puts a
BN before any of them.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.attention import Gate
from fieldmark.models.layers import make_activation as make_activation
from fieldmark.models.layers import round_channels


class SE(Gate):
    """Squeeze-and-excitation: global average -> FC -> activation -> FC -> sigmoid, one gate (n, c, 1, 1) per channel.

    Hu et al. 2018, "Squeeze-and-Excitation Networks". The bottleneck has `squeezed` units, or, without it,
    `reference` (the map's channels where the block names none) divided by `ratio`, at least one, rounded to a multiple
    of `divisor`. The paper's activation is ReLU; EfficientNet takes SiLU, MobileNetV3 the `hard` sigmoid and divisor 8.
    """

    final_layers = ("fc2",)

    def __init__(
        self,
        channels: int,
        reference: int | None = None,
        *,
        ratio: int = 16,
        squeezed: int | None = None,
        norm: bool = False,
        activation: str = "relu",
        hard: bool = False,
        divisor: int = 1,
    ) -> None:
        super().__init__(channels, norm=norm, hard=hard)
        width = (
            round_channels(_bottleneck_width(reference or channels, ratio), divisor) if squeezed is None else squeezed
        )
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.activation = make_activation(activation, inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1)

    def apply_gate(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)  # (n, c, 1, 1)
        return x * self.activate(self.fc2(self.activation(self.fc1(squeezed))))


class CBAM(Gate):
    """A gate per channel from average and maximum over positions, then one per position from those over channels.

    Woo et al. 2018, "CBAM: Convolutional Block Attention Module", equations 2 and 3: sigmoid(MLP(average) +
    MLP(maximum)) with one MLP as SE's, biases as in the authors' code, then sigmoid of a `kernel` x `kernel`
    convolution over the two maps, without a bias and without the BN that the code adds behind it.
    """

    final_layers = ("fc2", "conv")

    def __init__(
        self, channels: int, reference: int | None = None, *, ratio: int = 16, kernel: int = 7, norm: bool = False
    ) -> None:
        super().__init__(channels, norm=norm)
        width = _bottleneck_width(reference or channels, ratio)
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1)
        self.conv = nn.Conv2d(2, 1, kernel, padding=_same_padding(kernel), bias=False)

    def apply_gate(self, x: Tensor) -> Tensor:
        # adaptive_max_pool2d, since the slope of amax takes five times as long on channels_last maps.
        pooled = torch.cat((x.mean((2, 3), keepdim=True), functional.adaptive_max_pool2d(x, 1)), 2)  # (n, c, 2, 1)
        x = x * self.activate(self.fc2(self.relu(self.fc1(pooled))).sum(2, keepdim=True))  # by (n, c, 1, 1)
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # (n, 2, h, w)
        return x * self.activate(self.conv(pooled))  # by (n, 1, h, w)


class ECA(Gate):
    """Efficient channel attention: global average -> 1-d convolution along the channels -> sigmoid, (n, c, 1, 1).

    Wang et al. 2020, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks". Without `kernel`
    it is the paper's psi(c) with gamma 2 and b 1: (log2(c) + 1) / 2 cut to a whole number, one more where that is even.
    """

    final_layers = ("conv",)

    def __init__(
        self, channels: int, reference: int | None = None, *, kernel: int | None = None, norm: bool = False
    ) -> None:
        super().__init__(channels, norm=norm)
        if kernel is None:
            kernel = int((math.log2(channels) + 1) / 2) | 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=_same_padding(kernel), bias=False)

    def apply_gate(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3))[:, None]  # (n, 1, c)
        return x * self.activate(self.conv(squeezed).transpose(1, 2)[..., None])


class CoordinateAttention(Gate):
    """Coordinate attention: averages along rows and columns -> 1x1, BN, hard swish for both -> 1x1, sigmoid for each.

    Hou et al. 2021, "Coordinate Attention for Efficient Mobile Network Design": x * gate (n, c, h, 1) * gate
    (n, c, 1, w). The bottleneck is the map's own channels divided by `ratio`, at least 8, as in the authors' code,
    where the expanded width counts in MobileNetV2 too: `reference` is not looked at.
    """

    final_layers = ("conv_h", "conv_w")

    def __init__(self, channels: int, reference: int | None = None, *, ratio: int = 32, norm: bool = False) -> None:
        super().__init__(channels, norm=norm)
        width = max(8, _bottleneck_width(channels, ratio))
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(width, channels, 1)
        self.conv_w = nn.Conv2d(width, channels, 1)

    def apply_gate(self, x: Tensor) -> Tensor:
        strips = torch.cat(_axis_means(x), 2)[..., None]  # (n, c, h + w, 1)
        h, w = self.act(self.bn1(self.conv1(strips))).split(x.shape[2:], 2)
        return x * (self.activate(self.conv_h(h)) * self.activate(self.conv_w(w)).transpose(2, 3))


class ELA(Gate):
    """Efficient local attention: averages along rows and columns -> depthwise 1-d convolution -> GroupNorm -> sigmoid.

    Xu & Wan 2024, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks": x * gate (n, c, h, 1) * gate
    (n, c, 1, w), both by the same weights, nothing squeezed. ELA-B as it stands, ELA-T with kernel=5, groups=32; where
    the groups do not divide the channels, their greatest common divisor does. Here for what coordinate attention
    loses in its bottleneck and by its BN in small batches.
    """

    final_layers = ("gn",)

    def __init__(
        self,
        channels: int,
        reference: int | None = None,
        *,
        kernel: int = 7,
        groups: int = 16,
        norm: bool = False,
    ) -> None:
        super().__init__(channels, norm=norm)
        if groups < 1:
            raise ValueError(f"groups={groups}: a norm has at least one group")
        self.conv = nn.Conv1d(channels, channels, kernel, padding=_same_padding(kernel), groups=channels, bias=False)
        self.gn = nn.GroupNorm(math.gcd(channels, groups), channels)

    def apply_gate(self, x: Tensor) -> Tensor:
        h, w = map(self._axis_gate, _axis_means(x))  # (n, c, h), (n, c, w)
        return x * (h[..., None] * w[:, :, None])

    def _axis_gate(self, means: Tensor) -> Tensor:
        gn = self.gn
        # Not gn(...), which refuses groups of a single value, as a strip of length 1 can have them.
        return self.activate(torch.group_norm(self.conv(means), gn.num_groups, gn.weight, gn.bias, gn.eps))


class GCT(Gate):
    """Gated channel transformation: lengths of the channels compete -> 1 + tanh, one gate (n, c, 1, 1) per channel.

    Yang et al. 2020, "Gated Channel Transformation for Visual Recognition": with s = alpha * the L2 norm of a channel,
    the gate is 1 + tanh(gamma * s / rms(s) + beta), between 0 and 2. gamma and beta start at 0: the paper's own form
    starts as the identity, so here inserted and own form are one.
    """

    final_layers = ("gamma", "beta")

    def __init__(self, channels: int, reference: int | None = None, *, norm: bool = False) -> None:
        super().__init__(channels, norm=norm)
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def apply_gate(self, x: Tensor) -> Tensor:
        length = self.alpha * (x.square().sum((2, 3)) + 1e-5).sqrt()  # (n, c)
        relative = length / (length.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return x * (1 + torch.tanh(self.gamma * relative + self.beta))[..., None, None]


class Mask(Gate):
    """A position mask: dropout, 1x1 convolutions with ReLU, one more to a single map, sigmoid: a gate (n, 1, h, w).

    The gate of a position is the same for all channels (the attention of the birds' write-up, docs/recipes.md).
    `rescale` divides the mask by its mean over positions, so that a constant one is the identity; then `spread` gives
    every channel a weight of its own, a 1x1 convolution 1 -> c without bias that starts at ones.
    """

    final_layers = ("gate",)

    def __init__(
        self,
        channels: int,
        reference: int | None = None,
        *,
        norm: bool = False,
        dropout: float = 0.5,
        widths: tuple[int, ...] = (64, 16, 8),
        rescale: bool = False,
        spread: bool = False,
    ) -> None:
        super().__init__(channels, norm=norm)
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for inputs, outputs in pairwise((channels, *widths)):
            layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.gate = nn.Conv2d((channels, *widths)[-1], 1, 1)
        self.rescale = rescale
        self.spread = nn.Conv2d(1, channels, 1, bias=False) if spread else nn.Identity()
        self._init_spread()

    def apply_gate(self, x: Tensor) -> Tensor:
        mask = self.activate(self.gate(self.layers(x)))  # (n, 1, h, w)
        if self.rescale:
            # By the sum and not the mean, which may round: exactly 1 for a mask of ones.
            mask = mask * (x.shape[2] * x.shape[3] / mask.sum((2, 3), keepdim=True))
        return x * self.spread(mask)

    def start_as_identity(self) -> None:
        super().start_as_identity()
        self._init_spread()

    def _init_spread(self) -> None:
        if isinstance(self.spread, nn.Conv2d):
            nn.init.ones_(self.spread.weight)


def _bottleneck_width(width: int, ratio: int) -> int:
    """The width of a bottleneck, at least one."""
    if ratio < 1:
        raise ValueError(f"ratio={ratio}: a squeeze divides by at least 1")
    return max(1, width // ratio)


def _same_padding(kernel: int) -> int:
    """The padding that keeps the size."""
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: only an odd one keeps the map's size")
    return kernel // 2


def _axis_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, c, h, w) -> their averages along rows (n, c, h) and along columns (n, c, w)."""
    # By way of (n, h, w, c): on channels_last maps, as in training, x.mean(3) takes ten times as long.
    channels_last = x.permute(0, 2, 3, 1)
    return channels_last.mean(2).transpose(1, 2), channels_last.mean(1).transpose(1, 2)
