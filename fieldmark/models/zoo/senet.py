"""SE-ResNet, SE-ResNeXt, SENet-154: photos (n, channels, h, w) -> (n, 2048, h / 32, w / 32), under the authors' names.

Hu et al. 2018, "Squeeze-and-Excitation Networks", in the form of the published weights, which timm calls legacy:
SE-ResNet strides at a block's first 1x1 convolution, as in Caffe, the others at its 3x3 one; the pool behind the stem
is not padded. Stages end with `layer1` .. `layer4`. A block's own gate, `se_module`, stands at the end of its residual
branch, before the addition (figure 3 of the paper), and an added `attention` right behind it; the reference of both is
the block's output width.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end


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
    """The backbone with so many blocks a stage.

    `inner` are the widths of a block's first two convolutions in the first stage, the second one of so many `groups`;
    they double with every stage. `strided` says which of the two (1 or 2) halves the map. The `stem` is one 7x7
    convolution, or several 3x3 of these widths. `shortcut` is the kernel of the projections that halve the map.
    """
    layers: list[tuple[str, nn.Module]] = []
    inputs = channels
    for i, width in enumerate(stem, 1):
        layers += [
            (f"conv{i}", _conv(inputs, width, 7 if len(stem) == 1 else 3, 2 if i == 1 else 1)),
            (f"bn{i}", nn.BatchNorm2d(width)),
            (f"relu{i}", nn.ReLU(inplace=True)),
        ]
        inputs = width
    layers = [
        ("layer0", nn.Sequential(OrderedDict(layers))),  # (n, inputs, h/2, w/2)
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


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped) and 1x1 convolutions and the gate, beside the shortcut."""

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
        self.conv2 = _conv(inner[0], inner[1], 3, strides[1], groups)
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


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
