"""Random weights for networks, and how far apart two outputs are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """In eval mode, on the CPU, its tensors not set: a large network's own random weights take seconds."""
    with torch.device("meta"):
        module = make()
    return module.to_empty(device="cpu").eval()


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Random weights that keep the scale, and random norms: as they start, swapped or ignored norms would not show."""
    for part in module.modules():
        for name, tensor in part.named_parameters(recurse=False):
            if tensor.ndim > 1:
                bound = (6 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound)
            elif name == "weight":
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.uniform_(-0.1, 0.1)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            assert part.num_batches_tracked is not None
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.num_batches_tracked.zero_()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a part of the largest value."""
    assert ours.shape == theirs.shape and theirs.std() > 1e-3
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
