"""AlexNet: images (n, channels, h, w) -> (n, 256, h / 32 - 1, w / 32 - 1), under torchvision's layer names.

Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", without its local response
normalization and without the groups that distribute it over two GPUs; torchvision's form has the widths of Krizhevsky
2014, "One weird trick for parallelizing convolutional neural networks". Stages end with the three pools `features.2`,
`.5` and `.12`. The attention of a group of convolutions is before its pool, with the group's width as reference. The
smallest image size is 63 x 63, or 67 x 67 if the first convolution is not padded.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end


def alexnet(
    widths: tuple[int, int, int, int, int],
    *,
    padding: int,
    channels: int = 3,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone.

    Initialized as in the paper: weights normal with sd 0.01, biases 1 in the second, fourth and fifth convolution.

    Args:
        widths: channels of the five convolutions.
        padding: padding of the first convolution.
        channels: input channels.
        attention: constructor of the attention before each pool.
    """
    a, b, c, d, e = widths
    layers = [
        ("0", _convolution(channels, a, 11, 4, padding, bias=0)),  # (n, 64 or 96, 55, 55) for 224 or 227 pixels
        ("1", nn.ReLU(inplace=True)),
        ("attention_0", attention(a, a)),
        ("2", mark_stage_end(nn.MaxPool2d(3, 2), a)),  # 27 x 27
        ("3", _convolution(a, b, 5, 1, 2, bias=1)),
        ("4", nn.ReLU(inplace=True)),
        ("attention_1", attention(b, b)),
        ("5", mark_stage_end(nn.MaxPool2d(3, 2), b)),  # 13 x 13
        ("6", _convolution(b, c, 3, 1, 1, bias=0)),
        ("7", nn.ReLU(inplace=True)),
        ("8", _convolution(c, d, 3, 1, 1, bias=1)),
        ("9", nn.ReLU(inplace=True)),
        ("10", _convolution(d, e, 3, 1, 1, bias=1)),
        ("11", nn.ReLU(inplace=True)),
        ("attention_2", attention(e, e)),
        ("12", mark_stage_end(nn.MaxPool2d(3, 2), e)),  # (n, 256, 6, 6)
    ]
    return Backbone(OrderedDict(features=nn.Sequential(OrderedDict(layers))))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, padding: int, *, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    nn.init.normal_(layer.weight, 0, 0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
