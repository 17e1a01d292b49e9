"""Attention modules: features (n, c, h, w) -> features times gates per channel, position, row or column.

Each class is one paper's module. A new one subclasses `Gate`, implements `apply_gate`, sets `final_layers` and gets a
name in spec.py. `norm=True` puts a batch norm before any of them.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.attention import Gate
from fieldmark.models.layers import make_activation, round_channels


class SE(Gate):
    """Squeeze-and-excitation: global average -> FC -> activation -> FC -> sigmoid, one gate (n, c, 1, 1) per channel.

    Hu et al. 2018, "Squeeze-and-Excitation Networks". The bottleneck has `squeezed` units; by default `reference`
    (or `channels`) divided by `ratio`, at least one, rounded to a multiple of `divisor`. The paper's activation is
    ReLU; EfficientNet uses SiLU, MobileNetV3 the `hard` sigmoid and divisor 8.
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
    """One gate per channel from the average and maximum over positions, then one per position from those over channels.

    Woo et al. 2018, "CBAM: Convolutional Block Attention Module", equations 2 and 3: sigmoid(MLP(average) +
    MLP(maximum)) with the MLP of SE, biases as in the authors' code, then sigmoid of a `kernel` x `kernel` convolution
    of the two maps, without bias and without the batch norm that the code adds behind it.
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
        # adaptive_max_pool2d: the gradient of amax takes five times as long on channels_last maps.
        pooled = torch.cat((x.mean((2, 3), keepdim=True), functional.adaptive_max_pool2d(x, 1)), 2)  # (n, c, 2, 1)
        x = x * self.activate(self.fc2(self.relu(self.fc1(pooled))).sum(2, keepdim=True))  # by (n, c, 1, 1)
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # (n, 2, h, w)
        return x * self.activate(self.conv(pooled))  # by (n, 1, h, w)


class ECA(Gate):
    """Efficient channel attention: global average -> 1-d convolution along the channels -> sigmoid, (n, c, 1, 1).

    Wang et al. 2020, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks". The default
    `kernel` is the paper's psi(c) with gamma 2 and b 1: (log2(c) + 1) / 2 truncated, plus one if that is even.
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
    """Coordinate attention: means along rows and columns -> shared 1x1, BN, hard swish -> 1x1, sigmoid for each.

    Hou et al. 2021, "Coordinate Attention for Efficient Mobile Network Design": x * gate (n, c, h, 1) * gate
    (n, c, 1, w). The bottleneck has channels / `ratio` units, at least 8. As in the authors' code, the expanded width
    counts in MobileNetV2 too: `reference` is ignored.
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
    """Efficient local attention: means along rows and columns -> depthwise 1-d convolution -> GroupNorm -> sigmoid.

    Xu & Wan 2024, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks": x * gate (n, c, h, 1) * gate
    (n, c, 1, w), both with the same weights. The defaults are ELA-B; ELA-T has kernel=5, groups=32. If `groups` does
    not divide the channels, their greatest common divisor is used. Unlike coordinate attention, it has no bottleneck
    and no batch norm, which suffers in small batches.
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
            raise ValueError(f"groups={groups}: must be at least 1")
        self.conv = nn.Conv1d(channels, channels, kernel, padding=_same_padding(kernel), groups=channels, bias=False)
        self.gn = nn.GroupNorm(math.gcd(channels, groups), channels)

    def apply_gate(self, x: Tensor) -> Tensor:
        h, w = map(self._axis_gate, _axis_means(x))  # (n, c, h), (n, c, w)
        return x * (h[..., None] * w[:, :, None])

    def _axis_gate(self, means: Tensor) -> Tensor:
        gn = self.gn
        # Not gn(...), which rejects groups of a single value: a map may be one pixel high or wide.
        return self.activate(torch.group_norm(self.conv(means), gn.num_groups, gn.weight, gn.bias, gn.eps))


class GCT(Gate):
    """Gated channel transformation: L2 norms of the channels compete -> 1 + tanh, one gate (n, c, 1, 1) per channel.

    Yang et al. 2020, "Gated Channel Transformation for Visual Recognition": with s = alpha * the L2 norm of a channel,
    the gate is 1 + tanh(gamma * s / rms(s) + beta), between 0 and 2. gamma and beta start at 0, so the paper's own form
    starts as the identity.
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
    """Spatial mask: dropout -> 1x1 convolutions with ReLU -> 1x1 convolution to one map -> sigmoid, (n, 1, h, w).

    The attention of the birds' write-up (docs/reference/recipes.md).

    Args:
        channels: channels of the feature map.
        reference: ignored.
        norm: put a batch norm before the gate.
        dropout: dropout probability of the features before the convolutions.
        widths: channels of the hidden 1x1 convolutions.
        rescale: divide the mask by its mean over positions, so that a constant mask is the identity.
        spread: give each channel a weight, by a 1x1 convolution 1 -> c without bias that is initialized to ones.
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
            # By the sum, since the mean may round: exactly 1 for a mask of ones.
            mask = mask * (x.shape[2] * x.shape[3] / mask.sum((2, 3), keepdim=True))
        return x * self.spread(mask)

    def start_as_identity(self) -> None:
        super().start_as_identity()
        self._init_spread()

    def _init_spread(self) -> None:
        if isinstance(self.spread, nn.Conv2d):
            nn.init.ones_(self.spread.weight)


def _bottleneck_width(width: int, ratio: int) -> int:
    """Units of a bottleneck, at least one."""
    if ratio < 1:
        raise ValueError(f"ratio={ratio}: must be at least 1")
    return max(1, width // ratio)


def _same_padding(kernel: int) -> int:
    """Padding that preserves the size."""
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: must be odd to preserve the size of the map")
    return kernel // 2


def _axis_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, c, h, w) -> means along rows (n, c, h) and along columns (n, c, w)."""
    # Through (n, h, w, c): on channels_last maps, as in training, x.mean(3) takes ten times as long.
    channels_last = x.permute(0, 2, 3, 1)
    return channels_last.mean(2).transpose(1, 2), channels_last.mean(1).transpose(1, 2)
