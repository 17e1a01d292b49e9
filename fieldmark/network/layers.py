"""Layers that torch does not have: (n, c, h, w) -> (n, c', h', w'), as the published weights expect them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}


def activation(name: str, inplace: bool = False) -> nn.Module:
    """The activation of that name; ValueError naming them all where there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](inplace=inplace)


def round_channels(width: float, divisor: int = 8) -> int:
    """To the nearest multiple of `divisor` that is not more than a tenth below, as the MobileNets' papers round."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": the output is ceil(input / stride) wide, an odd pixel goes last.

    The padding depends on the actual input size, so one network takes photos of any size. Kernels are square and odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return super().forward(input)
        total_h, total_w = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[2:])
        padded = functional.pad(input, (total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2))
        return functional.conv2d(padded, self.weight, None, stride, groups=self.groups)


class Parallel(nn.Module):
    """Branches under their names, side by side: (n, c, h, w) -> their maps concatenated along c."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        self.branches = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, name)(x) for name in self.branches], 1)


class DropConnect(nn.Module):
    """Leaves a whole residual branch out, photo by photo, while training: (n, c, h, w) -> the same shape.

    Huang et al. 2016, "Deep Networks with Stochastic Depth"; EfficientNet calls it drop-connect. What is kept is scaled
    by 1 / (1 - rate). torchvision has the same function, but importing it takes half a second.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)
