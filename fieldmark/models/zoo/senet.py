"""SE-ResNet, SE-ResNeXt, SENet-154: images (n, channels, h, w) -> (n, 2048, h / 32, w / 32), under the authors' names.

Hu et al. 2018, "Squeeze-and-Excitation Networks", in the form of the published weights, which timm calls legacy:
SE-ResNet has the stride at a block's first 1x1 convolution, as in Caffe, the others at the 3x3 one; the pool after the
stem is not padded. Stages end with `layer1` .. `layer4`. A block's own gate, `se_module`, is at the end of its residual
branch, before the addition (figure 3 of the paper), and an added `attention` right after it; the reference of both is
the block's output width.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import kaiming_conv2d

_conv = partial(kaiming_conv2d, mode="fan_out")


def senet(
    depths: tuple[int, ...],
    *,
    inner: tuple[int, int],
    groups: int = 1,
    strided: int = 2,
    stem: tuple[int, ...] = (64,),
    shortcut: int = 1,
    channels: int = 3,
    gate: Callable[..., Attention] = Attention,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone.

    Args:
        depths: number of blocks in each stage.
        inner: widths of a block's first two convolutions in the first stage; they double with every stage.
        groups: groups of the second convolution.
        strided: which of the two (1 or 2) halves the map.
        stem: width of a single 7x7 convolution, or widths of several 3x3 convolutions.
        shortcut: kernel of the projections that halve the map.
        channels: input channels.
        gate: constructor of each block's own gate.
        attention: constructor of the attention added after it.
    """
    inputs = stem[-1]
    layers: list[tuple[str, nn.Module]] = [
        ("layer0", _stem(channels, stem)),  # (n, inputs, h/2, w/2)
        ("pool0", nn.MaxPool2d(3, 2, ceil_mode=True)),  # (n, inputs, h/4, w/4)
    ]
    for stage, depth in enumerate(depths):
        widths, outputs = (inner[0] << stage, inner[1] << stage), 256 << stage
        blocks = []
        for i in range(depth):
            stride = 2 if i == 0 and stage > 0 else 1
            strides = (stride, 1) if strided == 1 else (1, stride)
            projection = nn.Sequential()
            if i == 0:
                kernel = shortcut if stride > 1 else 1
                projection = nn.Sequential(_conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs))
            blocks.append(Bottleneck(inputs, widths, outputs, strides, groups, projection, gate, attention))
            inputs = outputs
        layers.append((f"layer{stage + 1}", mark_stage_end(nn.Sequential(*blocks), outputs)))
    return Backbone(OrderedDict(layers))


def _stem(inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = []
    for i, width in enumerate(widths, 1):
        layers += [
            (f"conv{i}", _conv(inputs, width, 7 if len(widths) == 1 else 3, 2 if i == 1 else 1)),
            (f"bn{i}", nn.BatchNorm2d(width)),
            (f"relu{i}", nn.ReLU(inplace=True)),
        ]
        inputs = width
    return nn.Sequential(OrderedDict(layers))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped) and 1x1 convolutions, the gate, and the shortcut."""

    def __init__(
        self,
        inputs: int,
        inner: tuple[int, int],
        outputs: int,
        strides: tuple[int, int],
        groups: int,
        shortcut: nn.Sequential,
        gate: Callable[..., Attention],
        attention: Callable[..., Attention],
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, inner[0], 1, strides[0])
        self.bn1 = nn.BatchNorm2d(inner[0])
        self.conv2 = _conv(inner[0], inner[1], 3, strides[1], groups=groups)
        self.bn2 = nn.BatchNorm2d(inner[1])
        self.conv3 = _conv(inner[1], outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = gate(outputs, outputs)
        self.attention = attention(outputs, outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.attention(self.se_module(self.bn3(self.conv3(y))))
        return self.relu(y + self.downsample(x))
