"""GoogLeNet: images (n, channels, h, w) -> (n, 1024, h / 32, w / 32), under torchvision's layer names.

Szegedy et al. 2015, "Going Deeper with Convolutions", table 1, in the form of torchvision's weights: a batch norm after
every convolution, and 3x3 convolutions where the paper has 5x5. Stages end with the four pools and with `inception5b`.
The attention of a block is on its concatenated branches, as in the Inception modules of the SENet paper (figure 2),
with their width as reference.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.heads import AuxiliaryHead
from fieldmark.models.layers import ParallelBranches, conv_norm_relu, init_convolutions

# Table 1, the blocks a to e of each stage: 1x1; 1x1 before 3x3, 3x3; 1x1 before "5x5", "5x5"; 1x1 after the pool.
STAGES = {
    3: ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    4: (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    5: ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}


def googlenet(*, channels: int = 3, attention: Callable[..., Attention] = Attention) -> Backbone:
    """The backbone without auxiliary heads; initialized as in torchvision, normal with sd 0.01."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", conv_norm_relu(channels, 64, 7, 2, 3)),  # (n, 64, h/2, w/2)
        ("maxpool1", mark_stage_end(nn.MaxPool2d(3, 2, ceil_mode=True), 64)),  # (n, 64, h/4, w/4)
        ("conv2", conv_norm_relu(64, 64, 1)),
        ("conv3", conv_norm_relu(64, 192, 3, padding=1)),
        ("maxpool2", mark_stage_end(nn.MaxPool2d(3, 2, ceil_mode=True), 192)),  # (n, 192, h/8, w/8)
    ]
    inputs = 192
    for stage, blocks in STAGES.items():
        for letter, widths in zip("abcde", blocks, strict=False):
            one, _, three, _, five, pooled = widths
            outputs = one + three + five + pooled
            block = Inception(outputs, attention, **_branches(inputs, *widths))
            layers.append((f"inception{stage}{letter}", block))
            inputs = outputs
        if stage < 5:  # (n, 480, h/16, w/16) and (n, 832, h/32, w/32)
            layers.append((f"maxpool{stage}", nn.MaxPool2d(3 if stage == 3 else 2, 2, ceil_mode=True)))
        mark_stage_end(layers[-1][1], inputs)
    backbone = Backbone(OrderedDict(layers))
    init_convolutions(backbone, partial(nn.init.normal_, std=0.01))
    return backbone


class Inception(ParallelBranches):
    """Concatenated branches, then attention on all their `outputs` channels."""

    def __init__(self, outputs: int, attention: Callable[..., Attention], **branches: nn.Module) -> None:
        super().__init__(**branches)
        self.attention = attention(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(super().forward(x))


def _branches(
    inputs: int, one: int, three_reduced: int, three: int, five_reduced: int, five: int, pooled: int
) -> dict[str, nn.Module]:
    return {
        "branch1": conv_norm_relu(inputs, one, 1),
        "branch2": nn.Sequential(
            conv_norm_relu(inputs, three_reduced, 1), conv_norm_relu(three_reduced, three, 3, padding=1)
        ),
        "branch3": nn.Sequential(
            conv_norm_relu(inputs, five_reduced, 1), conv_norm_relu(five_reduced, five, 3, padding=1)
        ),
        "branch4": nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm_relu(inputs, pooled, 1)),
    }


class GoogLeNetAuxiliaryHead(AuxiliaryHead):
    """4x4 average pooling -> 1x1 convolution -> FC 1024, ReLU -> dropout 0.7 -> FC, on a map of `channels`.

    Section 5 of the paper. Its 5x5 pool of stride 3 turns a 14x14 map into 4x4; as in torchvision, any map is pooled to
    4x4.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = conv_norm_relu(channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc2

    def classify(self, x: Tensor) -> Tensor:
        x = self.conv(functional.adaptive_avg_pool2d(x, 4)).flatten(1)  # (n, 2048)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))
