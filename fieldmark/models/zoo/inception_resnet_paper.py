"""Inception-ResNet-v2 in the paper's form: images (n, channels, h, w) -> (n, 2144, h / 32, w / 32).

Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", figures 3, 7
and 16 to 19 and table 1, with the additions of the waste sorters' SE network: convolutions have a bias and no batch
norm, and a ReLU after each but the last of a block; batch norm and ReLU follow the stem, every block and every
reduction. The linear layers are 1152 and 2144 wide, since the paper's 1154 and 2048 do not match the maps they are
added to. No weights are published, so the layer names are ours.

Layers with a stride are not padded: 299 pixels become maps of 35, 17 and 8, and the smallest size is 75. The stages are
the boxes of figure 15, each with a name. The gate of a block or reduction (the write-up's SE) is on its output, after
batch norm and ReLU, and the attention after the gate.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.layers import ParallelBranches, kaiming_conv2d
from fieldmark.models.zoo.inception_v4 import Kernel, conv_sequence, same_padding, stem

SCALE = 0.1  # of the residual branch; without it, training of wide residual networks fails (section 3.3)


def inception_resnet_paper(
    *,
    channels: int = 3,
    gate: Callable[..., Attention] = Attention,
    attention: Callable[..., Attention] = Attention,
) -> Backbone:
    """The backbone: stem, 5 A, reduction, 10 B, reduction, 5 C."""

    def output(width: int) -> nn.Sequential:
        """The end of every block and reduction."""
        ends = [("gate", gate(width, width)), ("attention", attention(width, width))]
        return nn.Sequential(OrderedDict([*_bn_relu(width), *ends]))

    names = ("conv1", "conv2", "conv3", "mixed1", "mixed2", "mixed3")
    start = zip(names, stem(channels, conv_relu), strict=True)
    layers: list[tuple[str, nn.Module]] = [
        ("stem", nn.Sequential(OrderedDict([*start, *_bn_relu(384)]))),  # (n, 384, 35, 35) for 299 x 299 pixels
        ("a", nn.Sequential(*(_block_a(output(384)) for _ in range(5)))),
        ("reduction_a", nn.Sequential(OrderedDict(mixed=_reduction_a(), output=output(1152)))),  # (n, 1152, 17, 17)
        ("b", nn.Sequential(*(_block_b(output(1152)) for _ in range(10)))),
        ("reduction_b", nn.Sequential(OrderedDict(mixed=_reduction_b(), output=output(2144)))),  # (n, 2144, 8, 8)
        ("c", nn.Sequential(*(_block_c(output(2144)) for _ in range(5)))),
    ]
    backbone = Backbone(OrderedDict(layers))
    for layer, width in zip(backbone, (384, 384, 1152, 1152, 2144, 2144), strict=True):
        mark_stage_end(layer, width)
    return backbone


class Residual(ParallelBranches):
    """`output` of the input plus `SCALE` times the branches: `inner` concatenated channels, then 1x1 to `width`."""

    def __init__(self, inner: int, width: int, output: nn.Module, **branches: nn.Module) -> None:
        super().__init__(**branches)
        self.linear = _conv(inner, width, 1)
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(super().forward(x))
        return self.output(torch.add(x, y, alpha=SCALE))


def conv_relu(inputs: int, outputs: int, kernel: Kernel, stride: int | None = None) -> nn.Module:
    """A convolution with bias, padded if it has no stride, and ReLU."""
    return nn.Sequential(OrderedDict(conv=_conv(inputs, outputs, kernel, stride), relu=nn.ReLU(inplace=True)))


def _conv(inputs: int, outputs: int, kernel: Kernel, stride: int | None = None) -> nn.Conv2d:
    # By He et al. 2015: without batch norms, the signal of the stem would vanish with torch's default initialization.
    return kaiming_conv2d(inputs, outputs, kernel, stride or 1, padding=same_padding(kernel, stride), bias=True)


def _bn_relu(width: int) -> list[tuple[str, nn.Module]]:
    return [("bn", nn.BatchNorm2d(width, eps=1e-3)), ("relu", nn.ReLU(inplace=True))]


def _block_a(output: nn.Module) -> Residual:
    """Figure 16."""
    return Residual(
        128,
        384,
        output,
        branch0=conv_relu(384, 32, 1),
        branch1=conv_sequence(conv_relu, 384, (32, 1), (32, 3)),
        branch2=conv_sequence(conv_relu, 384, (32, 1), (48, 3), (64, 3)),
    )


def _reduction_a() -> ParallelBranches:
    """Figure 7 with k, l, m, n = 256, 256, 384, 384 (table 1)."""
    return ParallelBranches(
        branch0=conv_relu(384, 384, 3, 2),
        branch1=conv_sequence(conv_relu, 384, (256, 1), (256, 3), (384, 3, 2)),
        branch2=nn.MaxPool2d(3, 2),
    )


def _block_b(output: nn.Module) -> Residual:
    """Figure 17."""
    return Residual(
        384,
        1152,
        output,
        branch0=conv_relu(1152, 192, 1),
        branch1=conv_sequence(conv_relu, 1152, (128, 1), (160, (1, 7)), (192, (7, 1))),
    )


def _reduction_b() -> ParallelBranches:
    """Figure 18."""
    return ParallelBranches(
        branch0=conv_sequence(conv_relu, 1152, (256, 1), (384, 3, 2)),
        branch1=conv_sequence(conv_relu, 1152, (256, 1), (288, 3, 2)),
        branch2=conv_sequence(conv_relu, 1152, (256, 1), (288, 3), (320, 3, 2)),
        branch3=nn.MaxPool2d(3, 2),
    )


def _block_c(output: nn.Module) -> Residual:
    """Figure 19."""
    return Residual(
        448,
        2144,
        output,
        branch0=conv_relu(2144, 192, 1),
        branch1=conv_sequence(conv_relu, 2144, (192, 1), (224, (1, 3)), (256, (3, 1))),
    )
