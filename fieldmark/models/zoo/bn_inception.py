"""BN-Inception: images (n, channels, h, w) -> (n, 1024, h / 32, w / 32), under the layer names of the Caffe weights.

Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
figure 5: GoogLeNet with batch norms, two 3x3 convolutions for a 5x5 one, and blocks of stride 2 instead of two pools.
That table prints 576 channels after 4c and 4d, and 1024 after 4e, but its columns sum to 608, 608 and 1056, as in the
published weights. Stages end with the two pools and with `inception_3c`, `_4e` and `_5b`. The attention of a block is
on its concatenated branches, with their width as reference.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.zoo.googlenet import Inception

# Figure 5: 1x1; 1x1 before 3x3, 3x3; 1x1 before double 3x3, double 3x3; pool, 1x1 after it. If the first and the last
# are 0, the 3x3 convolutions and the pool have stride 2.
BLOCKS = {
    "3a": (64, 64, 64, 64, 96, "average", 32),
    "3b": (64, 64, 96, 64, 96, "average", 64),
    "3c": (0, 128, 160, 64, 96, "max", 0),
    "4a": (224, 64, 96, 96, 128, "average", 128),
    "4b": (192, 96, 128, 96, 128, "average", 128),
    "4c": (160, 128, 160, 128, 160, "average", 128),
    "4d": (96, 128, 192, 160, 192, "average", 128),
    "4e": (0, 128, 192, 192, 256, "max", 0),
    "5a": (352, 192, 320, 160, 224, "average", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}
# From the flat published names, such as `inception_3a_double_3x3_1_bn`, to ours, where branches contain layers.
RENAMES = ((r"^(inception_\d\w)_(double_3x3|3x3|1x1|pool)", r"\1.\2.\2"),)


def bn_inception(*, channels: int = 3, attention: Callable[..., Attention] = Attention) -> Backbone:
    """The backbone. Its convolutions have biases, as in the Caffe weights, though a batch norm follows each."""
    layers = [
        *_conv_bn_relu("conv1_7x7_s2", channels, 64, 7, 2),  # (n, 64, h/2, w/2)
        ("pool1_3x3_s2", mark_stage_end(nn.MaxPool2d(3, 2, ceil_mode=True), 64)),  # (n, 64, h/4, w/4)
        *_conv_bn_relu("conv2_3x3_reduce", 64, 64, 1),
        *_conv_bn_relu("conv2_3x3", 64, 192, 3),
        ("pool2_3x3_s2", mark_stage_end(nn.MaxPool2d(3, 2, ceil_mode=True), 192)),  # (n, 192, h/8, w/8)
    ]
    inputs = 192
    for name, (one, three_reduced, three, double_reduced, double, pool, projected) in BLOCKS.items():
        stride = 1 if projected else 2
        branches = {
            "1x1": _conv_bn_relu("1x1", inputs, one, 1),
            "3x3": [
                *_conv_bn_relu("3x3_reduce", inputs, three_reduced, 1),
                *_conv_bn_relu("3x3", three_reduced, three, 3, stride),
            ],
            "double_3x3": [
                *_conv_bn_relu("double_3x3_reduce", inputs, double_reduced, 1),
                *_conv_bn_relu("double_3x3_1", double_reduced, double, 3),
                *_conv_bn_relu("double_3x3_2", double, double, 3, stride),
            ],
            "pool": [("pool", POOLS[pool, stride]()), *_conv_bn_relu("pool_proj", inputs, projected, 1)],
        }
        outputs = one + three + double + (projected or inputs)
        made = {branch: nn.Sequential(OrderedDict(units)) for branch, units in branches.items() if units}
        layers.append((f"inception_{name}", Inception(outputs, attention, **made)))
        inputs = outputs
        if stride == 2 or name == "5b":
            mark_stage_end(
                layers[-1][1], inputs
            )  # 3c: (n, 576, h/16, w/16), 4e: (n, 1056, h/32, w/32), 5b: (n, 1024, ...)
    return Backbone(OrderedDict(layers))


def convert_caffe_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the first layer from BGR to RGB, and drop the leading axis of the batch norms' tensors."""
    if "inception_3a_1x1.weight" not in state:  # tensors under our names are converted already
        return state
    state = {key: t.squeeze(0) if t.ndim == 2 and len(t) == 1 else t for key, t in state.items()}
    first = "conv1_7x7_s2.weight"
    return state | {first: state[first].flip(1)}


def _conv_bn_relu(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[tuple[str, nn.Module]]:
    """Convolution, batch norm and ReLU under the layer's name; an empty list for 0 outputs."""
    if outputs == 0:
        return []
    return [
        (name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)),
        (f"{name}_bn", nn.BatchNorm2d(outputs)),
        (f"{name}_relu", nn.ReLU(inplace=True)),
    ]


class CeilMaxPool2d(nn.Module):
    """3x3 max pooling with stride 2: (n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2)).

    The published pool on even maps; on odd ones, that would be a pixel smaller than the parallel convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if h % 2 or w % 2:
            x = functional.pad(x, (0, w % 2, 0, h % 2), value=-math.inf)
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)


POOLS: dict[tuple[str, int], Callable[[], nn.Module]] = {
    ("average", 1): partial(nn.AvgPool2d, 3, 1, 1),
    ("max", 1): partial(nn.MaxPool2d, 3, 1, 1),
    ("max", 2): CeilMaxPool2d,
}
