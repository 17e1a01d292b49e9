"""Inception-v4: images (n, channels, h, w) -> (n, 1536, h / 32, w / 32), under timm's layer names.

Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", figures 3 to
9. Layers with a stride are not padded: 299 pixels become maps of 35, 17 and 8, and the smallest size is 75. Stages are
the boxes of figure 9: they end with the stem `features.5`, the A blocks `features.9`, their reduction `features.10`,
the B blocks `features.17`, theirs `features.18`, and the C blocks `features.21`. The attention of a block or reduction
is on its concatenated branches, as in the Inception modules of the SENet paper.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import ParallelBranches, conv_norm_relu, conv_pool_norm_relu
from fieldmark.models.zoo.googlenet import Inception

Kernel = int | tuple[int, int]
# Outputs and kernel: stride 1, padded to preserve the size. With a stride: not padded, "V" in the paper's figures.
Convolution = tuple[int, Kernel] | tuple[int, Kernel, int]


def inception_v4(*, channels: int = 3, attention: Callable[..., Attention] = Attention) -> Backbone:
    """The backbone: stem, 4 A, reduction, 7 B, reduction, 3 C."""
    layers = [
        *stem(channels, conv_bn),  # (n, 384, 35, 35) for 299 x 299 pixels
        *(_inception_a(attention) for _ in range(4)),
        _reduction_a(attention),  # (n, 1024, 17, 17)
        *(_inception_b(attention) for _ in range(7)),
        _reduction_b(attention),  # (n, 1536, 8, 8)
        *(InceptionC(attention) for _ in range(3)),
    ]
    for last, width in ((5, 384), (9, 384), (10, 1024), (17, 1024), (18, 1536), (21, 1536)):
        mark_stage_end(layers[last], width)
    return Backbone(OrderedDict(features=nn.Sequential(*layers)))


def stem(channels: int, unit: Callable[..., nn.Module]) -> list[nn.Module]:
    """Figure 3: images (n, channels, h, w) -> (n, 384, h / 8, w / 8), of convolutions made by `unit`."""
    return [
        conv_sequence(unit, channels, (32, 3, 2)),
        conv_sequence(unit, 32, (32, 3, 1)),
        conv_sequence(unit, 32, (64, 3)),
        ParallelBranches(maxpool=nn.MaxPool2d(3, 2), conv=conv_sequence(unit, 64, (96, 3, 2))),
        ParallelBranches(
            branch0=conv_sequence(unit, 160, (64, 1), (96, 3, 1)),
            branch1=conv_sequence(unit, 160, (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1)),
        ),
        ParallelBranches(conv=conv_sequence(unit, 192, (192, 3, 2)), maxpool=nn.MaxPool2d(3, 2)),
    ]


def conv_sequence(unit: Callable[..., nn.Module], inputs: int, *convolutions: Convolution) -> nn.Module:
    """Convolutions in sequence; a single one is not wrapped, since its published name has no number."""
    layers = []
    for outputs, kernel, *stride in convolutions:
        layers.append(unit(inputs, outputs, kernel, *stride))
        inputs = outputs
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def same_padding(kernel: Kernel, stride: int | None) -> tuple[int, int]:
    """The padding that preserves the size; none with a stride."""
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return (height // 2, width // 2) if stride is None else (0, 0)


def conv_bn(inputs: int, outputs: int, kernel: Kernel, stride: int | None = None) -> nn.Module:
    """A convolution without bias, padded if it has no stride, batch norm and ReLU."""
    return conv_norm_relu(inputs, outputs, kernel, stride or 1, same_padding(kernel, stride))


def pool_conv_bn(inputs: int, outputs: int) -> nn.Module:
    """3x3 average pooling that does not count the padding, 1x1 convolution, batch norm and ReLU."""
    # In the published branch, 0 is the pool.
    return nn.Sequential(OrderedDict({"1": conv_pool_norm_relu(inputs, outputs, count_include_pad=False)}))


def _inception_a(attention: Callable[..., Attention]) -> Inception:
    """Figure 4."""
    return Inception(
        384,
        attention,
        branch0=conv_bn(384, 96, 1),
        branch1=conv_sequence(conv_bn, 384, (64, 1), (96, 3)),
        branch2=conv_sequence(conv_bn, 384, (64, 1), (96, 3), (96, 3)),
        branch3=pool_conv_bn(384, 96),
    )


def _reduction_a(attention: Callable[..., Attention]) -> Inception:
    """Figure 7 with k, l, m, n = 192, 224, 256, 384 (table 1)."""
    return Inception(
        1024,
        attention,
        branch0=conv_sequence(conv_bn, 384, (384, 3, 2)),
        branch1=conv_sequence(conv_bn, 384, (192, 1), (224, 3), (256, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def _inception_b(attention: Callable[..., Attention]) -> Inception:
    """Figure 5 with the 7 x 1 pairs in the order of the published weights."""
    wide, high = (1, 7), (7, 1)
    return Inception(
        1024,
        attention,
        branch0=conv_bn(1024, 384, 1),
        branch1=conv_sequence(conv_bn, 1024, (192, 1), (224, wide), (256, high)),
        branch2=conv_sequence(conv_bn, 1024, (192, 1), (192, high), (224, wide), (224, high), (256, wide)),
        branch3=pool_conv_bn(1024, 128),
    )


def _reduction_b(attention: Callable[..., Attention]) -> Inception:
    """Figure 8."""
    return Inception(
        1536,
        attention,
        branch0=conv_sequence(conv_bn, 1024, (192, 1), (192, 3, 2)),
        branch1=conv_sequence(conv_bn, 1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


class InceptionC(nn.Module):
    """Figure 6: two branches fork at the end; the published names are flat."""

    def __init__(self, attention: Callable[..., Attention]) -> None:
        super().__init__()
        wide, high = (1, 3), (3, 1)
        self.branch0 = conv_bn(1536, 256, 1)
        self.branch1_0 = conv_bn(1536, 384, 1)
        self.branch1_1a = conv_bn(384, 256, wide)
        self.branch1_1b = conv_bn(384, 256, high)
        self.branch2_0 = conv_bn(1536, 384, 1)
        self.branch2_1 = conv_bn(384, 448, high)
        self.branch2_2 = conv_bn(448, 512, wide)
        self.branch2_3a = conv_bn(512, 256, wide)
        self.branch2_3b = conv_bn(512, 256, high)
        self.branch3 = pool_conv_bn(1536, 256)
        self.attention = attention(1536, 1536)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch1_0(x)
        z = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        forks = self.branch1_1a(y), self.branch1_1b(y), self.branch2_3a(z), self.branch2_3b(z)
        return self.attention(torch.cat((self.branch0(x), *forks, self.branch3(x)), 1))
