"""DenseNet: images (n, channels, h, w) -> (n, 1024 to 2208, h / 32, w / 32), under torchvision's layer names.

Huang et al. 2017, "Densely Connected Convolutional Networks", the BC form. Stages end with `features.transition1` ..
`transition3`, whose maps have the fewest channels of their size, and, the last one, with `features.denseblock4`, before
the final norm and ReLU. The paper has no attention; that of a layer is on its new features, before they are
concatenated, with the growth rate as reference: each feature passes one gate, and gates of deep layers cost no more.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import kaiming_conv2d

BOTTLENECK = 4  # width of a layer's 1x1 convolution, in growth rates


def densenet(
    depths: tuple[int, ...],
    *,
    growth: int = 32,
    channels: int = 3,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone with `depths` layers in its dense blocks, each of which adds `growth` channels."""
    width = 2 * growth
    layers: list[tuple[str, nn.Module]] = [
        ("conv0", kaiming_conv2d(channels, width, 7, 2)),  # (n, width, h/2, w/2)
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
    """(n, inputs, h, w) -> (n, inputs + growth, h, w): the input and new features computed from it."""

    def __init__(self, inputs: int, growth: int, attention: Callable[..., Attention]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = kaiming_conv2d(inputs, BOTTLENECK * growth, 1)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = kaiming_conv2d(BOTTLENECK * growth, growth, 3)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention(growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.norm1(x)))
        y = self.conv2(self.relu(self.norm2(y)))
        # Concatenated here and not from a list in the next layer, so that no features are in memory twice.
        return torch.cat([x, self.attention(y)], 1)


def _transition(inputs: int) -> nn.Sequential:
    """(n, inputs, h, w) -> (n, inputs / 2, h / 2, w / 2)."""
    layers = [
        ("norm", nn.BatchNorm2d(inputs)),
        ("relu", nn.ReLU(inplace=True)),
        ("conv", kaiming_conv2d(inputs, inputs // 2, 1)),
        ("pool", nn.AvgPool2d(2)),
    ]
    return nn.Sequential(OrderedDict(layers))
