"""EfficientNet and its Lite form: images (n, channels, h, w) -> (n, 1280 to 2560, h / 32, w / 32), under timm's names.

Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks". The Lite form is that of
TensorFlow's tpu repository: ReLU6, no SE, and stem, head convolution, first and last stage are not scaled. Stages end
with each of `blocks.0` .. `blocks.6` and, the last one, with the activation `act2` after the head convolution. The
paper's SE is between a block's depthwise convolution and its projection, with the block's input width as reference;
added attention is right after it, with the same reference.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import TF_BATCH_NORM, SameConv2d, StochasticDepth, round_channels


class Stage(NamedTuple):
    """A row of table 1 of the paper."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    repeats: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280

# timm's names of the SE layers -> ours.
RENAMES = ((r"\.se\.conv_reduce\.", ".se.fc1."), (r"\.se\.conv_expand\.", ".se.fc2."))


def efficientnet(
    width: float,
    depth: float,
    *,
    lite: bool = False,
    channels: int = 3,
    gate: Callable[..., Attention] = Attention,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone, whose stages are `width` times as wide and `depth` times as deep as those of B0."""
    repeats = _repeats(depth, lite)
    stem, head = (
        (STEM_CHANNELS, HEAD_CHANNELS)
        if lite
        else (round_channels(STEM_CHANNELS * width), round_channels(HEAD_CHANNELS * width))
    )
    activation = nn.ReLU6 if lite else nn.SiLU
    settings = {"activation": activation, "gate": gate, "attention": attention}
    index, inputs, stages = 0, stem, OrderedDict[str, nn.Module]()
    for number, (stage, count) in enumerate(zip(STAGES, repeats, strict=True)):
        outputs, blocks = round_channels(stage.channels * width), []
        make = DepthwiseSeparable if stage.expansion == 1 else partial(InvertedResidual, expansion=stage.expansion)
        for i in range(count):
            drop = 0.2 * index / sum(repeats)  # deeper blocks are dropped more often
            stride = stage.stride if i == 0 else 1
            blocks.append(make(inputs, outputs, stage.kernel, stride, drop=drop, **settings))
            index, inputs = index + 1, outputs
        stages[str(number)] = mark_stage_end(nn.Sequential(*blocks), outputs)
    layers = [
        ("conv_stem", SameConv2d(channels, stem, 3, 2)),  # (n, stem, h/2, w/2)
        ("bn1", TF_BATCH_NORM(stem)),
        ("act1", activation(inplace=True)),
        ("blocks", nn.Sequential(stages)),  # (n, inputs, h/32, w/32)
        ("conv_head", SameConv2d(inputs, head, 1)),
        ("bn2", TF_BATCH_NORM(head)),
        ("act2", mark_stage_end(activation(inplace=True), head)),
    ]
    backbone = Backbone(OrderedDict(layers))
    for module in backbone.modules():
        if isinstance(module, SameConv2d):  # gates initialize their own convolutions
            fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
    return backbone


class DepthwiseSeparable(nn.Module):
    """The block without expansion: depthwise convolution, SE, attention, linear projection."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        drop: float,
        activation: Callable[..., nn.Module],
        gate: Callable[..., Attention],
        attention: Callable[..., Attention],
    ) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = TF_BATCH_NORM(inputs)
        self.act = activation(inplace=True)
        self.se = gate(inputs, inputs)
        self.attention = attention(inputs, inputs)
        self.conv_pw = SameConv2d(inputs, outputs, 1)
        self.bn2 = TF_BATCH_NORM(outputs)
        self.residual = stride == 1 and inputs == outputs
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.se(self.act(self.bn1(self.conv_dw(x)))))
        y = self.bn2(self.conv_pw(y))
        return self.drop(y).add_(x) if self.residual else y


class InvertedResidual(nn.Module):
    """MBConv: expansion, depthwise convolution, SE, attention, linear projection."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        expansion: int,
        drop: float,
        activation: Callable[..., nn.Module],
        gate: Callable[..., Attention],
        attention: Callable[..., Attention],
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self.conv_pw = SameConv2d(inputs, width, 1)
        self.bn1 = TF_BATCH_NORM(width)
        self.act = activation(inplace=True)
        self.conv_dw = SameConv2d(width, width, kernel, stride, groups=width)
        self.bn2 = TF_BATCH_NORM(width)
        self.se = gate(width, inputs)
        self.attention = attention(width, inputs)
        self.conv_pwl = SameConv2d(width, outputs, 1)
        self.bn3 = TF_BATCH_NORM(outputs)
        self.residual = stride == 1 and inputs == outputs
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.attention(self.se(self.act(self.bn2(self.conv_dw(y)))))
        y = self.bn3(self.conv_pwl(y))
        return self.drop(y).add_(x) if self.residual else y


def rename_lite_weights(state: dict[str, Tensor], depth: float) -> dict[str, Tensor]:
    """Lite weights under the names of the pip packages (those of efficientnet_pytorch) -> under those of timm."""
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    blocks = [f"blocks.{stage}.{i}" for stage, count in enumerate(_repeats(depth, lite=True)) for i in range(count)]
    for n, block in enumerate(blocks):
        first = (("_depthwise_conv", "conv_dw"), ("_bn1", "bn1"), ("_project_conv", "conv_pw"), ("_bn2", "bn2"))
        others = (
            ("_expand_conv", "conv_pw"),
            ("_bn0", "bn1"),
            ("_depthwise_conv", "conv_dw"),
            ("_bn1", "bn2"),
            ("_project_conv", "conv_pwl"),
            ("_bn2", "bn3"),
        )
        names |= {f"_blocks.{n}.{theirs}": f"{block}.{ours}" for theirs, ours in (first if n == 0 else others)}
    renamed = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = tensor
    return renamed


def _repeats(depth: float, lite: bool) -> list[int]:
    """Number of blocks of each stage."""
    counts = [stage.repeats for stage in STAGES]
    deep = [math.ceil(depth * count) for count in counts]
    return [counts[0], *deep[1:-1], counts[-1]] if lite else deep
