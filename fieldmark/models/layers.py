"""Layers that torch does not have, (n, c, h, w) -> (n, c', h', w'), and those that several families share."""

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}


TF_BATCH_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
"""The batch norm of the networks that come from TensorFlow's tpu repository."""


def make_activation(name: str, inplace: bool = False) -> nn.Module:
    """The activation with that name; ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](inplace=inplace)


def round_channels(width: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor` that is at least 90 % of `width`, as the MobileNet papers do."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


def kaiming_conv2d(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    *,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
    bias: bool = False,
    mode: str = "fan_in",
) -> nn.Conv2d:
    """A convolution initialized as in He et al. 2015, "Delving Deep into Rectifiers", with a zero bias.

    `mode` is "fan_in" (equation 10, keeps the variance in the forward pass) or "fan_out" (equation 14, in the backward
    pass). The default padding preserves the size for square kernels.
    """
    padding = kernel // 2 if padding is None and isinstance(kernel, int) else padding or 0
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def init_convolutions(layers: nn.Module, init: Callable[[Tensor], object]) -> None:
    """Initialize the weights of all convolutions but those of attention inside blocks."""
    for name, module in layers.named_modules():
        if isinstance(module, nn.Conv2d) and ".attention." not in name:
            init(module.weight)


def conv_norm_relu(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    *,
    pool: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias, [pooling], batch norm, ReLU: the unit of the Inception networks."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)),
        *([("pool", pool)] if pool else []),
        ("bn", nn.BatchNorm2d(outputs, eps=1e-3)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    return nn.Sequential(OrderedDict(layers))


def conv_pool_norm_relu(inputs: int, outputs: int, *, count_include_pad: bool = True) -> nn.Sequential:
    """1x1 convolution, 3x3 average pooling, batch norm, ReLU.

    The published order is pooling first. It commutes with a 1x1 convolution without bias, after which there are fewer
    channels to pool, and none to keep for the gradient.
    """
    return conv_norm_relu(inputs, outputs, 1, pool=nn.AvgPool2d(3, 1, 1, count_include_pad=count_include_pad))


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: the output is ceil(input / stride) wide; an odd pixel goes last.

    The padding depends on the input size, so one network accepts any size. Kernels are square and odd; no bias. If
    `symmetric` is set, both sides are padded by kernel // 2, as in PyTorch.
    """

    symmetric = False

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        is_bfloat16 = input.dtype == torch.bfloat16 and input.device.type == "cpu"
        use_custom_backward = is_bfloat16 and kernel == 5 and self.groups > 1 and self.weight.requires_grad
        if stride == 1 or self.symmetric:
            return (
                DepthwiseConv5x5Function.apply(input, self.weight, stride, 2)
                if use_custom_backward
                else super().forward(input)
            )
        padded = functional.pad(input, _same_padding(input, kernel, stride))
        if use_custom_backward:
            return DepthwiseConv5x5Function.apply(padded, self.weight, stride, 0)
        return functional.conv2d(padded, self.weight, self.bias, stride, groups=self.groups)


class SameMaxPool2d(nn.Module):
    """3x3 max pooling with TensorFlow's "SAME" padding: (n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2))."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.pad(x, _same_padding(x, 3, 2), value=-math.inf), 3, 2)


def _same_padding(x: Tensor, kernel: int, stride: int) -> list[int]:
    """Left, right, top and bottom padding by which the output is ceil(input / stride) wide; an odd pixel goes last."""
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return sides


class DepthwiseConv5x5Function(torch.autograd.Function):
    """5 x 5 depthwise convolution in bfloat16 whose gradients use fast oneDNN kernels.

    (n, c, h, w) and weights (c, 1, 5, 5) -> (n, c, h', w'), equal to functional.conv2d up to rounding. On a CPU,
    oneDNN's weight gradient takes twenty times as long as the forward pass, and so does the input's with a stride. Its
    3 x 3 weight gradient is fast, and four of them, shifted, cover the 25 weights (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        """The convolution (n, c, h, w) -> (n, c, h', w')."""
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the weights."""
        (x, weight), (gradient,), stride = ctx.saved_tensors, gradients, ctx.stride
        convolution_backward = partial(_depthwise_backward, stride=stride)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            operands = [t.float() if stride > 1 else t for t in (gradient, x, weight)]
            grad_x = convolution_backward(*operands, padding=ctx.padding, wanted=[True, False, False])[0].to(x.dtype)
        if ctx.needs_input_grad[1]:
            p, (h, w) = ctx.padding, gradient.shape[2:]
            padded = functional.pad(x, (p, p + 1, p, p + 1))  # a sixth row and column: 3 + 3
            grad_weight = torch.empty(len(weight), 1, 6, 6)
            corner = weight[:, :, :3, :3].contiguous(memory_format=torch.channels_last)
            for i in (0, 3):
                for j in (0, 3):
                    window = padded[:, :, i : i + (h - 1) * stride + 3, j : j + (w - 1) * stride + 3]
                    window = window.contiguous(memory_format=torch.channels_last)
                    grad_corner = convolution_backward(
                        gradient, window, corner, padding=0, wanted=[False, True, False]
                    )[1]
                    grad_weight[:, :, i : i + 3, j : j + 3] = grad_corner
            grad_weight = grad_weight[:, :, :5, :5]
        return grad_x, grad_weight, None, None


def _depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, *, stride: int, padding: int, wanted: list[bool]):
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight), wanted
    )


class ParallelBranches(nn.Module):
    """Named branches on the same input, concatenated along the channels."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        self.branches = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, name)(x) for name in self.branches], 1)


class StochasticDepth(nn.Module):
    """Drop a residual branch (n, c, h, w) per image in training mode.

    Huang et al. 2016, "Deep Networks with Stochastic Depth"; drop-connect in EfficientNet. Kept branches are scaled by
    1 / (1 - rate). torchvision has the same function, but importing it takes half a second.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_probability = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_probability == 0:
            return x
        keep = 1 - self.drop_probability
        return x * torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32, others as they are."""
    return x.float() if x.element_size() < 4 else x


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations on the device of `x` keep float32, whatever surrounds it."""
    if not torch.amp.is_autocast_available(x.device.type):  # the meta device
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
