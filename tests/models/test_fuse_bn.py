"""Folded norms: the same function for every family, fewer layers, and what cannot be folded stays."""

import pytest
import torch
from torch import nn

from fieldmark.models import build
from fieldmark.models.fuse_bn import fuse_batch_norms

# A network of each way in which a family puts its norms, and a size that it takes.
NETWORKS = {
    "efficientnet_lite0": 64, "efficientnet_b0": 64, "resnet18": 64, "seresnext50_32x4d": 64, "densenet121": 64,
    "inception_v3": 96, "vgg11_bn": 64, "mobilenet_v3_small": 64, "xception": 96, "googlenet": 64, "bn_inception": 64,
}  # fmt: skip


def norms(layers: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in layers.modules())


def lively(layers: nn.Module) -> nn.Module:
    """In eval mode, with statistics and scales that change something."""
    draw = torch.Generator().manual_seed(0)
    for layer in layers.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 1.5),
                (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):
                tensor.uniform_(low, high, generator=draw)
    return layers.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_backbone_says_the_same(name: str):
    torch.manual_seed(0)
    backbone = lively(build(name, classes=3).backbone)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    few, others = (torch.randn(n, 3, NETWORKS[name], NETWORKS[name]) for n in (2, 3))
    fast = fuse_batch_norms(backbone, few)
    assert norms(fast) < norms(backbone) and not any(p.requires_grad for p in fast.parameters())
    with torch.inference_mode():
        want = backbone(others)
        torch.testing.assert_close(fast(others), want, rtol=0, atol=1e-4 * want.abs().max().item())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


class Forked(nn.Module):
    """A convolution whose map goes into a norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Twice(nn.Module):
    """A norm that two convolutions feed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.norm(self.first(x))))


@pytest.mark.parametrize("make", [Forked, Twice])
def test_what_cannot_be_folded_stays(make: type[nn.Module]):
    torch.manual_seed(0)
    layers, x = lively(make()), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(fuse_batch_norms(layers, x)(x), layers(x))


class Failing(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        super().forward(x)
        raise ValueError("after the last layer")


def test_hooks_are_removed_when_forward_raises():
    layers = Failing(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="after the last layer"):
        fuse_batch_norms(layers, torch.randn(1, 3, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layers.modules())


def test_without_norms_there_is_nothing_to_copy():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert fuse_batch_norms(layers.eval(), torch.randn(1, 3, 8, 8)) is layers
