"""VGG: photos (n, channels, h, w) -> (n, 512, h / 32, w / 32), under torchvision's layer names.

Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1: the
configurations A, B, C, D and E have 11, 13, 16, 16 and 19 layers with weights, three of them in the head. Stages end
with the pools. The attention of a group of convolutions stands before its pool, with the group's width as reference.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import count

from torch import nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end


def vgg(
    depths: tuple[int, ...],
    *,
    norm: bool = False,
    pointwise: bool = False,
    last_stride: int = 2,
    channels: int = 3,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone with so many convolutions a stage, 64, 128, 256, 512, 512 wide.

    `norm` puts a BN behind each; `pointwise` makes a stage's third one 1x1 (configuration C). With `last_stride` 1 the
    last pool keeps the map's size, as TensorFlow's "SAME" does.
    """
    layers, numbers, inputs = OrderedDict[str, nn.Module](), map(str, count()), channels
    for stage, depth in enumerate(depths):
        width = min(64 << stage, 512)
        for i in range(depth):
            layers[next(numbers)] = _convolution(inputs, width, 1 if pointwise and i == 2 else 3)
            if norm:
                layers[next(numbers)] = nn.BatchNorm2d(width)
            layers[next(numbers)] = nn.ReLU(inplace=True)
            inputs = width
        layers[f"attention_{stage}"] = attention(width, width)
        pool = nn.MaxPool2d(2) if stage < len(depths) - 1 or last_stride == 2 else _same_pool()
        layers[next(numbers)] = mark_stage_end(pool, width)  # (n, width, h / 2^(stage + 1), w / 2^(stage + 1))
    return Backbone(OrderedDict(features=nn.Sequential(layers)))


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    # He et al. 2015, "Delving Deep into Rectifiers", equation 10: the signal keeps its size on the way forward. By the
    # outputs, as torchvision counts, that of a grey photo falls to a tenth, and it hangs on rounding whether it learns.
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _same_pool() -> nn.Sequential:
    """The maximum of 2x2 pixels, of stride 1: the last row and column have a neighbour less."""
    return nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -math.inf), nn.MaxPool2d(2, 1))
