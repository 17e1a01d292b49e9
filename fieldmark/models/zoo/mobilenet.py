"""MobileNet v2 and v3: photos (n, channels, h, w) -> (n, 1280, 960 or 576, h / 32, w / 32), under torchvision's names.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; Howard et al. 2019, "Searching for
MobileNetV3", whose convolution after the pool belongs to the head. Stages end with each row of the paper's table, and
with the convolution before the pool. V3's SE stands between a block's depthwise convolution and its projection, and
squeezes by the width there; added attention stands right behind it, with the block's input width as reference.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end

# torchvision's names of v2's layers -> ours, which are those of its v3. The first block has no expansion.
RENAMES_V2 = (
    (r"(features\.1\.)conv\.1\.", r"\1block.1.0."),
    (r"(features\.1\.)conv\.2\.", r"\1block.1.1."),
    (r"\.conv\.2\.", ".block.2.0."),
    (r"\.conv\.3\.", ".block.2.1."),
    (r"\.conv\.", ".block."),
)


@dataclass(frozen=True)
class MobileNetConfig:
    """A table of the papers: the stem's width, the stages, the width of the last convolution, its activation and norm.

    A stage is (channels, kernel, stride, whether it has SE, activation, expanded width of each of its blocks).
    """

    stem_channels: int
    stages: tuple[tuple[int, int, int, bool, type[nn.Module], tuple[int, ...]], ...]
    last_channels: int
    activation: type[nn.Module]
    norm: Callable[[int], nn.Module]


MOBILENET_V2 = MobileNetConfig(  # table 2
    32,
    (
        (16, 3, 1, False, nn.ReLU6, (32,)),
        (24, 3, 2, False, nn.ReLU6, (96, 144)),
        (32, 3, 2, False, nn.ReLU6, (144, 192, 192)),
        (64, 3, 2, False, nn.ReLU6, (192, 384, 384, 384)),
        (96, 3, 1, False, nn.ReLU6, (384, 576, 576)),
        (160, 3, 2, False, nn.ReLU6, (576, 960, 960)),
        (320, 3, 1, False, nn.ReLU6, (960,)),
    ),
    1280,
    nn.ReLU6,
    nn.BatchNorm2d,
)
NORM_V3 = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
MOBILENET_V3_LARGE = MobileNetConfig(  # table 1
    16,
    (
        (16, 3, 1, False, nn.ReLU, (16,)),
        (24, 3, 2, False, nn.ReLU, (64, 72)),
        (40, 5, 2, True, nn.ReLU, (72, 120, 120)),
        (80, 3, 2, False, nn.Hardswish, (240, 200, 184, 184)),
        (112, 3, 1, True, nn.Hardswish, (480, 672)),
        (160, 5, 2, True, nn.Hardswish, (672, 960, 960)),
    ),
    960,
    nn.Hardswish,
    NORM_V3,
)
MOBILENET_V3_SMALL = MobileNetConfig(  # table 2
    16,
    (
        (16, 3, 2, True, nn.ReLU, (16,)),
        (24, 3, 2, False, nn.ReLU, (72, 88)),
        (40, 5, 2, True, nn.Hardswish, (96, 240, 240)),
        (48, 5, 1, True, nn.Hardswish, (120, 144)),
        (96, 5, 2, True, nn.Hardswish, (288, 576, 576)),
    ),
    576,
    nn.Hardswish,
    NORM_V3,
)


def mobilenet(
    plan: MobileNetConfig,
    *,
    channels: int = 3,
    gate: Callable[..., Attention] = Attention,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone of that plan; `gate` is the SE of the stages that have one."""
    norm, activation = plan.norm, plan.activation
    layers: list[nn.Module] = [  # (n, stem, h/2, w/2)
        nn.Sequential(
            _convolution(channels, plan.stem_channels, 3, 2), norm(plan.stem_channels), activation(inplace=True)
        )
    ]
    inputs = plan.stem_channels
    for outputs, kernel, stride, squeezes, inner, widths in plan.stages:
        make = partial(InvertedResidual, use_se=squeezes, activation=inner, norm=norm, gate=gate, attention=attention)
        for i, width in enumerate(widths):
            layers.append(make(inputs, width, outputs, kernel, stride if i == 0 else 1))
            inputs = outputs
        mark_stage_end(layers[-1], outputs)
    last = nn.Sequential(
        _convolution(inputs, plan.last_channels, 1), norm(plan.last_channels), activation(inplace=True)
    )
    layers.append(mark_stage_end(last, plan.last_channels))  # (n, last, h/32, w/32)
    return Backbone(OrderedDict(features=nn.Sequential(*layers)))


class InvertedResidual(nn.Module):
    """Expansion to `width` if that differs, depthwise convolution, SE if it `squeezes`, attention, projection."""

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        use_se: bool,
        activation: type[nn.Module],
        norm: Callable[[int], nn.Module],
        gate: Callable[..., Attention],
        attention: Callable[..., Attention],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if width != inputs:
            layers.append(nn.Sequential(_convolution(inputs, width, 1), norm(width), activation(inplace=True)))
        depthwise = _convolution(width, width, kernel, stride, groups=width)
        layers.append(nn.Sequential(depthwise, norm(width), activation(inplace=True)))
        if use_se:
            layers.append(gate(width, width))
        projection = nn.Sequential(_convolution(width, outputs, 1), norm(outputs))
        named = {str(i): layer for i, layer in enumerate(layers)}
        named |= {"attention": attention(width, inputs), str(len(layers)): projection}
        self.block = nn.Sequential(OrderedDict(named))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y.add_(x) if self.residual else y  # in place: y is fresh from the projection's norm


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return convolution
