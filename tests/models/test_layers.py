"""Layers that torch does not have: the fast gradients of a depthwise convolution are those of the slow one."""

import pytest
import torch
from torch.nn import functional as F

from fieldmark.models.layers import DepthwiseConv5x5Function, SameConv2d


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(12, 12), (13, 9), (7, 6)])
def test_depthwise_gradients_are_torchs_up_to_rounding(stride: int, size: tuple[int, int]):
    torch.manual_seed(0)
    layer = SameConv2d(16, 16, 5, stride, groups=16)
    photos = torch.randn(4, 16, *size)

    def found(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        layer.weight.grad = None
        x = photos.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(x.to(dtype))
        torch.manual_seed(1)
        (y.float() * torch.randn(y.shape)).sum().backward()
        assert x.grad is not None and layer.weight.grad is not None
        return y.detach().float(), x.grad, layer.weight.grad

    for exact, fast in zip(found(torch.float32), found(torch.bfloat16), strict=True):
        assert (exact - fast).norm() / exact.norm() < 0.01  # bfloat16 keeps 8 bits


def test_depthwise_in_32_bits_is_the_formula():
    """The way itself, without the rounding: four shifted 3 x 3 gradients are the 5 x 5 one."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 11, requires_grad=True), torch.randn(8, 1, 5, 5, requires_grad=True)
    for stride, padding in ((1, 2), (2, 0), (1, 0)):
        gradients = []
        for y in (
            F.conv2d(x, weight, None, stride, padding, groups=8),
            DepthwiseConv5x5Function.apply(x, weight, stride, padding),
        ):
            torch.manual_seed(1)
            gradients.append((y, *torch.autograd.grad((y * torch.randn(y.shape)).sum(), (x, weight))))
        for theirs, ours in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
