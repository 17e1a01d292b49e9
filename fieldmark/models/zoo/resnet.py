"""ResNet and ResNeXt: images (n, channels, h, w) -> (n, 512 or 2048, h / 32, w / 32), under torchvision's layer names.

He et al. 2016, "Deep Residual Learning for Image Recognition", in the v1.5 form (a bottleneck has the stride at its 3x3
convolution), and Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks". Stages end with
`layer1` .. `layer4`. The attention of a block is at the end of its residual branch, before the addition, as in the
SENet paper, with the block's output width as reference.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fieldmark.models.attention import Attention, Gate
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import init_convolutions


def imagenet_stem(channels: int) -> list[tuple[str, nn.Module]]:
    """The paper's first layers."""
    return [
        ("conv1", nn.Conv2d(channels, 64, 7, 2, 3, bias=False)),  # (n, 64, h/2, w/2)
        ("bn1", nn.BatchNorm2d(64)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),  # (n, 64, h/4, w/4)
    ]


def small_stem(channels: int) -> list[tuple[str, nn.Module]]:
    """First layers for images of about 32 pixels, which preserve the map's size except for its edge."""
    return [
        ("conv1", nn.Conv2d(channels, 64, 3)),  # (n, 64, h-2, w-2)
        ("bn1", nn.BatchNorm2d(64)),
        ("relu", nn.ReLU(inplace=True)),
        ("pad", nn.ZeroPad2d((0, 1, 0, 1))),  # after a ReLU, zero padding does not change a maximum
        ("maxpool", nn.MaxPool2d(2, 1)),  # (n, 64, h-2, w-2)
    ]


def resnet(
    block: "type[BasicBlock | Bottleneck]",
    depths: tuple[int, ...],
    *,
    groups: int = 1,
    group_width: int = 64,
    stem: Callable[[int], list[tuple[str, nn.Module]]] = imagenet_stem,
    channels: int = 3,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone with `depths` blocks in its stages; ResNeXt's `32x4d` is 32 `groups` of `group_width` 4."""
    layers = stem(channels)
    inputs = 64
    for stage, depth in enumerate(depths):
        width, outputs = 64 << stage, (64 << stage) * block.expansion
        inner = width * group_width // 64 * groups
        blocks = []
        for i in range(depth):
            stride = 2 if i == 0 and stage > 0 else 1
            blocks.append(block(inputs, inner, outputs, stride, groups, attention))
            inputs = outputs
        layers.append((f"layer{stage + 1}", mark_stage_end(nn.Sequential(*blocks), outputs)))
    backbone = Backbone(OrderedDict(layers))
    init_convolutions(backbone, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    return backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut; `inner`, the width of the first, equals `outputs` here."""

    expansion = 1
    has_bias = False

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, groups: int, attention: Callable[..., Attention]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, groups=groups, bias=self.has_bias)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, groups=groups, bias=self.has_bias)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.attention = attention(outputs, outputs)
        self.add = shortcut_addition(self.attention)
        self.downsample = _shortcut(inputs, outputs, stride, self.has_bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return self.relu(self.add(y, self.downsample(x)))


class SmallBlock(BasicBlock):
    """The block of `resnet18_small`: convolutions and projection have a bias, the projection has no norm."""

    has_bias = True


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt) and 1x1 convolutions and the shortcut; the first two are `inner` wide."""

    expansion = 4

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, groups: int, attention: Callable[..., Attention]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention(outputs, outputs)
        self.add = shortcut_addition(self.attention)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.attention(self.bn3(self.conv3(y)))
        return self.relu(self.add(y, self.downsample(x)))


def shortcut_addition(attention: Attention) -> Callable[[Tensor, Tensor], Tensor]:
    """How a block adds its shortcut: in place, which saves a map, if no gradient needs the attention's output.

    The gradient of a gate, a product, needs only the factors. Modules that are not ours may need their output.
    """
    return operator.iadd if isinstance(attention, Gate) or type(attention) is Attention else operator.add


def _shortcut(inputs: int, outputs: int, stride: int, biased: bool = False) -> nn.Sequential:
    """The identity, or a 1x1 projection if the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=biased)
    return nn.Sequential(projection) if biased else nn.Sequential(projection, nn.BatchNorm2d(outputs))
