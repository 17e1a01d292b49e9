"""Xception: images (n, channels, h, w) -> (n, 2048, h / 32, w / 32), under timm's names of `legacy_xception`.

Chollet 2017, "Xception: Deep Learning with Depthwise Separable Convolutions", figure 5. Stages end with `act2`
of the stem, the entry flow's `block1` .. `block3`, the middle flow's `block11`, and the last ReLU `act4`. The
attention of a block is at the end of its residual branch, before the addition, with its output width as reference.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import init_convolutions

# Widths of each block's separable convolutions, and its stride: entry flow, middle flow, exit flow.
BLOCKS = (((128, 128), 2), ((256, 256), 2), ((728, 728), 2), *[((728, 728, 728), 1)] * 8, ((728, 1024), 2))


def xception(*, channels: int = 3, attention: Callable[..., Attention] = Attention) -> Backbone:
    """The backbone; images of 299 pixels give a map of 10 x 10."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 32, 3, 2, bias=False)),  # (n, 32, h/2, w/2)
        ("bn1", nn.BatchNorm2d(32)),
        ("act1", nn.ReLU(inplace=True)),
        ("conv2", nn.Conv2d(32, 64, 3, bias=False)),
        ("bn2", nn.BatchNorm2d(64)),
        ("act2", mark_stage_end(nn.ReLU(inplace=True), 64)),
    ]
    inputs = 64
    for number, (widths, stride) in enumerate(BLOCKS, start=1):
        block = Block(inputs, widths, stride, number > 1, attention)
        inputs = widths[-1]
        layers.append((f"block{number}", mark_stage_end(block, inputs) if number in (1, 2, 3, 11) else block))
    for number, outputs in ((3, 1536), (4, 2048)):  # (n, outputs, h/32, w/32)
        layers.append((f"conv{number}", _separable(inputs, outputs)))
        layers.append((f"bn{number}", nn.BatchNorm2d(outputs)))
        layers.append((f"act{number}", nn.ReLU(inplace=True)))
        inputs = outputs
    mark_stage_end(layers[-1][1], inputs)
    backbone = Backbone(OrderedDict(layers))
    init_convolutions(backbone, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    return backbone


class Block(nn.Module):
    """ReLUs and separable convolutions, max pooling if the stride is 2, and the shortcut.

    `relu` is whether the block starts with a ReLU; the input of the first block comes from one.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], stride: int, relu: bool, attention: Callable[..., Attention]
    ) -> None:
        super().__init__()
        outputs = widths[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise((inputs, *widths)):
            # The first ReLU does not work in place, since the shortcut needs its input.
            layers += [nn.ReLU(inplace=bool(layers)), _separable(before, after), nn.BatchNorm2d(after)]
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*(layers if relu else layers[1:]))
        self.attention = attention(outputs, outputs)
        projects = stride > 1 or inputs != outputs
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projects else nn.Identity()
        self.skipbn = nn.BatchNorm2d(outputs) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.rep(x)) + self.skipbn(self.skip(x))


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 3x3 convolution, then 1x1 convolution."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
        )
    )
