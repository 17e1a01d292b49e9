"""Inception-v3: images (n, channels, h, w) -> (n, 2048, h / 32, w / 32), under torchvision's layer names.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", table 1, in the form of TF-slim and
torchvision. Layers with a stride are not padded: 299 pixels become maps of 35, 17 and 8, and the smallest image is
75 x 75. Stages end with the two pools, `Mixed_5d`, `Mixed_6e` and `Mixed_7c`. The attention of a block is on its
concatenated branches, as in the Inception modules of the SENet paper (figure 2), with their width as reference.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.heads import AuxiliaryHead
from fieldmark.models.layers import conv_norm_relu, conv_pool_norm_relu, init_convolutions


def inception_v3(*, channels: int = 3, attention: Callable[..., Attention] = Attention) -> Backbone:
    """The backbone without its auxiliary head; initialized as in TF-slim, truncated normal with sd 0.1."""
    layers: list[tuple[str, nn.Module]] = [
        ("Conv2d_1a_3x3", conv_norm_relu(channels, 32, 3, 2)),  # (n, 32, 149, 149) for 299 x 299 pixels
        ("Conv2d_2a_3x3", conv_norm_relu(32, 32, 3)),
        ("Conv2d_2b_3x3", conv_norm_relu(32, 64, 3, padding=1)),  # (n, 64, 147, 147)
        ("maxpool1", mark_stage_end(nn.MaxPool2d(3, 2), 64)),  # (n, 64, 73, 73)
        ("Conv2d_3b_1x1", conv_norm_relu(64, 80, 1)),
        ("Conv2d_4a_3x3", conv_norm_relu(80, 192, 3)),  # (n, 192, 71, 71)
        ("maxpool2", mark_stage_end(nn.MaxPool2d(3, 2), 192)),  # (n, 192, 35, 35)
        ("Mixed_5b", MixedA(192, 32, attention)),  # (n, 256, 35, 35)
        ("Mixed_5c", MixedA(256, 64, attention)),
        ("Mixed_5d", mark_stage_end(MixedA(288, 64, attention), 288)),
        ("Mixed_6a", ReductionA(288, attention)),  # (n, 768, 17, 17)
        ("Mixed_6b", MixedB(128, attention)),
        ("Mixed_6c", MixedB(160, attention)),
        ("Mixed_6d", MixedB(160, attention)),
        ("Mixed_6e", mark_stage_end(MixedB(192, attention), 768)),
        ("Mixed_7a", ReductionB(768, attention)),  # (n, 1280, 8, 8)
        ("Mixed_7b", MixedC(1280, attention)),  # (n, 2048, 8, 8)
        ("Mixed_7c", mark_stage_end(MixedC(2048, attention), 2048)),
    ]
    backbone = Backbone(OrderedDict(layers))
    init_convolutions(backbone, _truncated_normal(0.1))
    return backbone


class MixedA(nn.Module):
    """Figure 5 with a 5x5 convolution: 1x1; 5x5; double 3x3; average pooling -> 224 + `pooled` channels."""

    def __init__(self, inputs: int, pooled: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.branch1x1 = conv_norm_relu(inputs, 64, 1)
        self.branch5x5_1 = conv_norm_relu(inputs, 48, 1)
        self.branch5x5_2 = conv_norm_relu(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = conv_norm_relu(inputs, 64, 1)
        self.branch3x3dbl_2 = conv_norm_relu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv_norm_relu(96, 96, 3, padding=1)
        self.branch_pool = conv_pool_norm_relu(inputs, pooled)
        self.attention = attention(224 + pooled, 224 + pooled)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return self.attention(torch.cat((self.branch1x1(x), five, double, self.branch_pool(x)), 1))


class ReductionA(nn.Module):
    """Figure 10, not padded: 3x3 of stride 2; double 3x3; max pooling -> 480 + `inputs` channels, (h - 1) / 2."""

    def __init__(self, inputs: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.branch3x3 = conv_norm_relu(inputs, 384, 3, 2)
        self.branch3x3dbl_1 = conv_norm_relu(inputs, 64, 1)
        self.branch3x3dbl_2 = conv_norm_relu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = conv_norm_relu(96, 96, 3, 2)
        self.attention = attention(480 + inputs, 480 + inputs)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return self.attention(torch.cat((self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)), 1))


class MixedB(nn.Module):
    """Figure 6 with n = 7: 1x1; 1x7, 7x1; the same twice; average pooling -> 768 channels, as many as the input."""

    def __init__(self, inner: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.branch1x1 = conv_norm_relu(768, 192, 1)
        self.branch7x7_1 = conv_norm_relu(768, inner, 1)
        self.branch7x7_2 = conv_norm_relu(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7_3 = conv_norm_relu(inner, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = conv_norm_relu(768, inner, 1)
        self.branch7x7dbl_2 = conv_norm_relu(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = conv_norm_relu(inner, inner, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = conv_norm_relu(inner, inner, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = conv_norm_relu(inner, 192, (1, 7), padding=(0, 3))
        self.branch_pool = conv_pool_norm_relu(768, 192)
        self.attention = attention(768, 768)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return self.attention(torch.cat((self.branch1x1(x), seven, double, self.branch_pool(x)), 1))


class ReductionB(nn.Module):
    """Not padded: 3x3 of stride 2; 1x7, 7x1, 3x3; max pooling -> 512 + `inputs` channels, (h - 1) / 2."""

    def __init__(self, inputs: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.branch3x3_1 = conv_norm_relu(inputs, 192, 1)
        self.branch3x3_2 = conv_norm_relu(192, 320, 3, 2)
        self.branch7x7x3_1 = conv_norm_relu(inputs, 192, 1)
        self.branch7x7x3_2 = conv_norm_relu(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = conv_norm_relu(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = conv_norm_relu(192, 192, 3, 2)
        self.attention = attention(512 + inputs, 512 + inputs)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return self.attention(torch.cat((three, seven, functional.max_pool2d(x, 3, 2)), 1))


class MixedC(nn.Module):
    """Figure 7: 1x1; 1x3 and 3x1; 3x3, then 1x3 and 3x1; average pooling -> 2048 channels."""

    def __init__(self, inputs: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.branch1x1 = conv_norm_relu(inputs, 320, 1)
        self.branch3x3_1 = conv_norm_relu(inputs, 384, 1)
        self.branch3x3_2a = conv_norm_relu(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = conv_norm_relu(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = conv_norm_relu(inputs, 448, 1)
        self.branch3x3dbl_2 = conv_norm_relu(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = conv_norm_relu(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = conv_norm_relu(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = conv_pool_norm_relu(inputs, 192)
        self.attention = attention(2048, 2048)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        three = (self.branch3x3_2a(three), self.branch3x3_2b(three))
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = (self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double))
        return self.attention(torch.cat((self.branch1x1(x), *three, *double, self.branch_pool(x)), 1))


class InceptionAuxiliaryHead(AuxiliaryHead):
    """5x5 average pooling of stride 3 -> 1x1 convolution 128 -> 5x5 768 -> FC, on the 17x17 map of 768 channels.

    As in TF-slim: initial sd 0.1, 0.01 and 0.001, and a loss weight of 0.4. A map below 17x17, too small for the 5x5
    convolution after that pooling, is averaged to 5x5.
    """

    loss_weight = 0.4

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv0 = conv_norm_relu(768, 128, 1)
        self.conv1 = conv_norm_relu(128, 768, 5)
        self.fc = nn.Linear(768, classes)
        init_convolutions(self.conv0, _truncated_normal(0.1))
        init_convolutions(self.conv1, _truncated_normal(0.01))
        _truncated_normal(0.001)(self.fc.weight)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def classify(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(x, 5, 3) if min(x.shape[2:]) >= 17 else functional.adaptive_avg_pool2d(x, 5)
        return self.fc(self.conv1(self.conv0(pooled)).mean((2, 3)))  # maps of 5x5 and 1x1 for 299 pixels


def _truncated_normal(std: float) -> Callable[[Tensor], Tensor]:
    return partial(nn.init.trunc_normal_, std=std, a=-2 * std, b=2 * std)
