"""The smallest network whose maps are known beforehand, and a photo with a thing on it."""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.models import Backbone, LinearHead, Network, NetworkSpec, Preprocessing
from fieldmark.models.backbone import mark_stage_end

LOOK = Preprocessing(64, 1.0, (0, 0, 0), (1, 1, 1), "bicubic")


def counts_brightness(*behind: nn.Module) -> Network:
    """A network that says class 0 as much as a photo is bright, class 1 as much as it is not; in eval mode.

    What stands `behind` its rectifier takes and gives three channels.
    """
    last = nn.Sequential(nn.ReLU(inplace=True), *behind)
    layers = OrderedDict(pool=nn.AvgPool2d(8), last=mark_stage_end(last, 3))
    network = Network(
        Backbone(layers), LinearHead(3, 2), LOOK, None, NetworkSpec("bright", None, None, None, 2, 3, False, 0)
    )
    with torch.no_grad():
        network.head.classifier.weight.copy_(torch.tensor([[30.0] * 3, [-30.0] * 3]))
        network.head.classifier.bias.copy_(torch.tensor([-1.0, 1.0]))
    return network.eval()


def planted() -> tuple[Tensor, np.ndarray]:
    """A dark photo (1, 3, 64, 64) with a bright square, and where that is, (64, 64)."""
    x, inside = torch.zeros(1, 3, 64, 64), np.zeros((64, 64), bool)
    x[:, :, 8:24, 32:48], inside[8:24, 32:48] = 1, True
    return x, inside
