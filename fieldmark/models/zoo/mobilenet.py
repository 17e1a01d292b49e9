"""MobileNet v2 and v3: images (n, channels, h, w) -> (n, 1280, 960 or 576, h / 32, w / 32), under torchvision's names.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; Howard et al. 2019, "Searching for
MobileNetV3", whose convolution after the pool belongs to the head. Stages end with each row of the paper's table, and
with the convolution before the pool. The SE of v3 is between a block's depthwise convolution and its projection, with
the width there as reference; added attention is right after it, with the block's input width as reference.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import TF_BATCH_NORM, kaiming_conv2d

# torchvision's names of v2's layers -> ours, those of its v3. The first block has no expansion.
RENAMES_V2 = (
    (r"(features\.1\.)conv\.1\.", r"\1block.1.0."),
    (r"(features\.1\.)conv\.2\.", r"\1block.1.1."),
    (r"\.conv\.2\.", ".block.2.0."),
    (r"\.conv\.3\.", ".block.2.1."),
    (r"\.conv\.", ".block."),
)


class Stage(NamedTuple):
    """Rows of a table with the same number of channels; `widths` are the expanded widths of the blocks."""

    channels: int
    kernel: int
    stride: int
    use_se: bool
    activation: type[nn.Module]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class MobileNetConfig:
    """A table of the papers; `activation` is that of the stem and the last convolution."""

    stem_channels: int
    stages: tuple[Stage, ...]
    last_channels: int
    activation: type[nn.Module]
    norm: Callable[[int], nn.Module]


MOBILENET_V2 = MobileNetConfig(  # table 2
    32,
    (
        Stage(16, 3, 1, False, nn.ReLU6, (32,)),
        Stage(24, 3, 2, False, nn.ReLU6, (96, 144)),
        Stage(32, 3, 2, False, nn.ReLU6, (144, 192, 192)),
        Stage(64, 3, 2, False, nn.ReLU6, (192, 384, 384, 384)),
        Stage(96, 3, 1, False, nn.ReLU6, (384, 576, 576)),
        Stage(160, 3, 2, False, nn.ReLU6, (576, 960, 960)),
        Stage(320, 3, 1, False, nn.ReLU6, (960,)),
    ),
    1280,
    nn.ReLU6,
    nn.BatchNorm2d,
)
MOBILENET_V3_LARGE = MobileNetConfig(  # table 1
    16,
    (
        Stage(16, 3, 1, False, nn.ReLU, (16,)),
        Stage(24, 3, 2, False, nn.ReLU, (64, 72)),
        Stage(40, 5, 2, True, nn.ReLU, (72, 120, 120)),
        Stage(80, 3, 2, False, nn.Hardswish, (240, 200, 184, 184)),
        Stage(112, 3, 1, True, nn.Hardswish, (480, 672)),
        Stage(160, 5, 2, True, nn.Hardswish, (672, 960, 960)),
    ),
    960,
    nn.Hardswish,
    TF_BATCH_NORM,
)
MOBILENET_V3_SMALL = MobileNetConfig(  # table 2
    16,
    (
        Stage(16, 3, 2, True, nn.ReLU, (16,)),
        Stage(24, 3, 2, False, nn.ReLU, (72, 88)),
        Stage(40, 5, 2, True, nn.Hardswish, (96, 240, 240)),
        Stage(48, 5, 1, True, nn.Hardswish, (120, 144)),
        Stage(96, 5, 2, True, nn.Hardswish, (288, 576, 576)),
    ),
    576,
    nn.Hardswish,
    TF_BATCH_NORM,
)


def mobilenet(
    config: MobileNetConfig,
    *,
    channels: int = 3,
    gate: Callable[..., Attention] = Attention,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone; `gate` is the SE of the stages that have one."""
    stem = _conv_norm(channels, config.stem_channels, 3, 2, norm=config.norm, activation=config.activation)
    layers: list[nn.Module] = [stem]  # (n, stem, h/2, w/2)
    inputs = config.stem_channels
    for stage in config.stages:
        for i, width in enumerate(stage.widths):
            stride = stage.stride if i == 0 else 1
            layers.append(InvertedResidual(inputs, width, stage, stride, config.norm, gate, attention))
            inputs = stage.channels
        mark_stage_end(layers[-1], stage.channels)
    last = _conv_norm(inputs, config.last_channels, 1, norm=config.norm, activation=config.activation)
    layers.append(mark_stage_end(last, config.last_channels))  # (n, last, h/32, w/32)
    return Backbone(OrderedDict(features=nn.Sequential(*layers)))


class InvertedResidual(nn.Module):
    """Expansion to `width` if that differs, depthwise convolution, SE if the stage has it, attention, projection."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stage: Stage,
        stride: int,
        norm: Callable[[int], nn.Module],
        gate: Callable[..., Attention],
        attention: Callable[..., Attention],
    ) -> None:
        super().__init__()
        unit = partial(_conv_norm, norm=norm, activation=stage.activation)
        layers: list[nn.Module] = [unit(inputs, width, 1)] if width != inputs else []
        layers.append(unit(width, width, stage.kernel, stride, groups=width))
        if stage.use_se:
            layers.append(gate(width, width))
        projection = _conv_norm(width, stage.channels, 1, norm=norm)
        named = {str(i): layer for i, layer in enumerate(layers)}
        named |= {"attention": attention(width, inputs), str(len(layers)): projection}
        self.block = nn.Sequential(OrderedDict(named))
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y.add_(x) if self.residual else y  # in place: nothing else needs the output of the projection's norm


def _conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    norm: Callable[[int], nn.Module],
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    layers = [kaiming_conv2d(inputs, outputs, kernel, stride, groups=groups, mode="fan_out"), norm(outputs)]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))
