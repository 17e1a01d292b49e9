"""DenseNet: photos (n, channels, h, w) -> (n, 1024 to 2208, h / 32, w / 32), under torchvision's layer names.

Huang et al. 2017, "Densely Connected Convolutional Networks", the BC form. Stages end with `features.transition1` ..
`transition3`, whose maps are the smallest of their size, and, the last one, with `features.denseblock4`, before the
final norm and ReLU. The paper has no attention; a layer's stands on its new features, before they are concatenated,
with the growth as reference: every feature passes one gate, where it arises, and the gates of deep layers cost no more.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end

BOTTLENECK = 4  # a layer's 1x1 convolution is so many times as wide as its growth


def densenet(
    depths: tuple[int, ...],
    *,
    growth: int = 32,
    channels: int = 3,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone with so many layers a dense block, each of which adds `growth` channels."""
    width = 2 * growth
    layers: list[tuple[str, nn.Module]] = [
        ("conv0", _conv(channels, width, 7, 2)),  # (n, width, h/2, w/2)
        ("norm0", nn.BatchNorm2d(width)),
        ("relu0", nn.ReLU(inplace=True)),
        ("pool0", nn.MaxPool2d(3, 2, 1)),  # (n, width, h/4, w/4)
    ]
    for number, depth in enumerate(depths, 1):
        block = OrderedDict[str, nn.Module]()
        for i in range(depth):
            block[f"denselayer{i + 1}"] = DenseLayer(width, growth, attention)
            width += growth
        end = nn.Sequential(block)
        layers.append((f"denseblock{number}", end))
        if number < len(depths):
            end = _transition(width)
            width //= 2
            layers.append((f"transition{number}", end))
        mark_stage_end(end, width)
    layers.append(("norm5", nn.BatchNorm2d(width)))
    features = nn.Sequential(OrderedDict(layers))
    return Backbone(OrderedDict([("features", features), ("relu", nn.ReLU(inplace=True))]))


class DenseLayer(nn.Module):
    """(n, inputs, h, w) -> (n, inputs + growth, h, w): the input, and new features made from all of it."""

    def __init__(self, inputs: int, growth: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, BOTTLENECK * growth, 1)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = _conv(BOTTLENECK * growth, growth, 3)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention(growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.norm1(x)))
        y = self.conv2(self.relu(self.norm2(y)))
        # Concatenated here and not from a list in the next layer: no features live on beside the map they are part of.
        return torch.cat([x, self.attention(y)], 1)


def _transition(inputs: int) -> nn.Sequential:
    """(n, inputs, h, w) -> (n, inputs / 2, h / 2, w / 2)."""
    layers = [
        ("norm", nn.BatchNorm2d(inputs)),
        ("relu", nn.ReLU(inplace=True)),
        ("conv", _conv(inputs, inputs // 2, 1)),
        ("pool", nn.AvgPool2d(2)),
    ]
    return nn.Sequential(OrderedDict(layers))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
