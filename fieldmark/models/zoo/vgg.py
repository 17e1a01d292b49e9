"""VGG: images (n, channels, h, w) -> (n, 512, h / 32, w / 32), under torchvision's layer names.

Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1: the
configurations A, B, C, D and E have 11, 13, 16, 16 and 19 layers with weights, three of them in the head. Stages end
with the pools. The attention of a group of convolutions is before its pool, with the group's width as reference.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import count

from torch import nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import kaiming_conv2d


def vgg(
    depths: tuple[int, ...],
    *,
    norm: bool = False,
    pointwise: bool = False,
    last_stride: int = 2,
    channels: int = 3,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone, whose stages are 64, 128, 256, 512 and 512 channels wide.

    Initialized by fan-in. With fan-out, as in torchvision, the signal of a grey image would fall to a tenth, and
    rounding would decide whether the network learns.

    Args:
        depths: number of convolutions in each stage.
        norm: put a batch norm behind each convolution.
        pointwise: make the third convolution of a stage 1x1 (configuration C).
        last_stride: stride of the last pool; 1 preserves the map's size, as TensorFlow's "SAME" does.
        channels: input channels.
        attention: constructor of the attention before each pool.
    """
    layers, numbers, inputs = OrderedDict[str, nn.Module](), map(str, count()), channels
    for stage, depth in enumerate(depths):
        width = min(64 << stage, 512)
        for i in range(depth):
            layers[next(numbers)] = kaiming_conv2d(inputs, width, 1 if pointwise and i == 2 else 3, bias=True)
            if norm:
                layers[next(numbers)] = nn.BatchNorm2d(width)
            layers[next(numbers)] = nn.ReLU(inplace=True)
            inputs = width
        layers[f"attention_{stage}"] = attention(width, width)
        pool = nn.MaxPool2d(2) if stage < len(depths) - 1 or last_stride == 2 else _same_pool()
        layers[next(numbers)] = mark_stage_end(pool, width)  # (n, width, h / 2^(stage + 1), w / 2^(stage + 1))
    return Backbone(OrderedDict(features=nn.Sequential(layers)))


def _same_pool() -> nn.Sequential:
    """2x2 max pooling with stride 1 that preserves the size; the last row and column have fewer neighbours."""
    return nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -math.inf), nn.MaxPool2d(2, 1))
