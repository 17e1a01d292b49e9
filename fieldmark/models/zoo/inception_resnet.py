"""Inception-ResNet-v2: images (n, channels, h, w) -> (n, 1536, h / 32, w / 32), under timm's layer names.

Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", in the form of
TensorFlow's slim library, whose stem and depths (10, 20, 10 blocks) are not the paper's; the paper's form is in
inception_resnet_paper.py. Layers with a stride are not padded: 299 pixels become maps of 35, 17 and 8, and the smallest
size is 75. Stages end with `mixed_5b`, `repeat`, `mixed_6a`, `repeat_1`, `mixed_7a` and `conv2d_7b`. The attention of a
residual block is at the end of its branch, before scaling and addition, as in the residual modules of the SENet paper;
that of `mixed_5b` and of the reductions `mixed_6a` and `mixed_7a` is on their concatenated branches, as in its
Inception modules.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import ParallelBranches
from fieldmark.models.zoo.googlenet import Inception
from fieldmark.models.zoo.inception_v4 import conv_bn, conv_sequence, pool_conv_bn


def inception_resnet_v2(*, channels: int = 3, attention: Callable[..., Attention] = Attention) -> Backbone:
    """The backbone of the published weights."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv2d_1a", conv_bn(channels, 32, 3, 2)),  # (n, 32, 149, 149) for 299 x 299 pixels
        ("conv2d_2a", conv_bn(32, 32, 3, 1)),  # (n, 32, 147, 147)
        ("conv2d_2b", conv_bn(32, 64, 3)),
        ("maxpool_3a", nn.MaxPool2d(3, 2)),  # (n, 64, 73, 73)
        ("conv2d_3b", conv_bn(64, 80, 1)),
        ("conv2d_4a", conv_bn(80, 192, 3, 1)),  # (n, 192, 71, 71)
        ("maxpool_5a", nn.MaxPool2d(3, 2)),  # (n, 192, 35, 35)
        ("mixed_5b", mark_stage_end(_mixed_5b(attention), 320)),
        ("repeat", mark_stage_end(nn.Sequential(*(_block35(attention) for _ in range(10))), 320)),
        ("mixed_6a", mark_stage_end(_mixed_6a(attention), 1088)),  # (n, 1088, 17, 17)
        ("repeat_1", mark_stage_end(nn.Sequential(*(_block17(attention) for _ in range(20))), 1088)),
        ("mixed_7a", mark_stage_end(_mixed_7a(attention), 2080)),  # (n, 2080, 8, 8)
        ("repeat_2", nn.Sequential(*(_block8(attention, 0.2, nn.ReLU(inplace=True)) for _ in range(9)))),
        ("block8", _block8(attention, 1.0, nn.Identity())),
        ("conv2d_7b", mark_stage_end(conv_bn(2080, 1536, 1), 1536)),
    ]
    return Backbone(OrderedDict(layers))


class Residual(ParallelBranches):
    """The input plus `scale` times the branches: `inner` channels, 1x1 convolution to `width`, attention."""

    def __init__(
        self,
        inner: int,
        width: int,
        scale: float,
        act: nn.Module,
        attention: Callable[..., Attention],
        **branches: nn.Module,
    ) -> None:
        super().__init__(**branches)
        self.conv2d = nn.Conv2d(inner, width, 1)
        self.attention = attention(width, width)
        self.scale = scale
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.conv2d(super().forward(x)))
        return self.act(torch.add(x, y, alpha=self.scale))


def _mixed_5b(attention: Callable[..., Attention]) -> Inception:
    return Inception(
        320,
        attention,
        branch0=conv_bn(192, 96, 1),
        branch1=conv_sequence(conv_bn, 192, (48, 1), (64, 5)),
        branch2=conv_sequence(conv_bn, 192, (64, 1), (96, 3), (96, 3)),
        branch3=pool_conv_bn(192, 64),
    )


def _block35(attention: Callable[..., Attention]) -> Residual:
    return Residual(
        128,
        320,
        0.17,
        nn.ReLU(inplace=True),
        attention,
        branch0=conv_bn(320, 32, 1),
        branch1=conv_sequence(conv_bn, 320, (32, 1), (32, 3)),
        branch2=conv_sequence(conv_bn, 320, (32, 1), (48, 3), (64, 3)),
    )


def _mixed_6a(attention: Callable[..., Attention]) -> Inception:
    return Inception(
        1088,
        attention,
        branch0=conv_bn(320, 384, 3, 2),
        branch1=conv_sequence(conv_bn, 320, (256, 1), (256, 3), (384, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def _block17(attention: Callable[..., Attention]) -> Residual:
    return Residual(
        384,
        1088,
        0.1,
        nn.ReLU(inplace=True),
        attention,
        branch0=conv_bn(1088, 192, 1),
        branch1=conv_sequence(conv_bn, 1088, (128, 1), (160, (1, 7)), (192, (7, 1))),
    )


def _mixed_7a(attention: Callable[..., Attention]) -> Inception:
    return Inception(
        2080,
        attention,
        branch0=conv_sequence(conv_bn, 1088, (256, 1), (384, 3, 2)),
        branch1=conv_sequence(conv_bn, 1088, (256, 1), (288, 3, 2)),
        branch2=conv_sequence(conv_bn, 1088, (256, 1), (288, 3), (320, 3, 2)),
        branch3=nn.MaxPool2d(3, 2),
    )


def _block8(attention: Callable[..., Attention], scale: float, act: nn.Module) -> Residual:
    return Residual(
        448,
        2080,
        scale,
        act,
        attention,
        branch0=conv_bn(2080, 192, 1),
        branch1=conv_sequence(conv_bn, 2080, (192, 1), (224, (1, 3)), (256, (3, 1))),
    )
