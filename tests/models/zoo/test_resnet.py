"""ResNet's small form and ResNeXt's grouped convolution."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models import Attention, build
from fieldmark.models.zoo.resnet import small_stem


def test_row_2():
    network = build("resnet18_small", classes=100).eval()
    assert sum(p.numel() for p in network.parameters()) == 11_223_140  # without the norms' running statistics
    assert network.preprocessing.size == 32
    convolutions = [module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
    assert all(convolution.bias is not None for convolution in convolutions)
    assert len(convolutions) == 1 + 16 + 3


@pytest.mark.parametrize(("size", "last"), [(32, 4), (28, 4), (37, 5)])
@torch.no_grad()
def test_small_stem_keeps_the_size_of_the_map(size: int, last: int):
    network = build("resnet18_small", classes=4, channels=1).eval()
    x = torch.randn(1, 1, size, size)
    assert network.backbone.split_after("maxpool")[0](x).shape == (1, 64, size - 2, size - 2)
    assert network.features(x).shape == (1, 512, last, last)


@torch.no_grad()
def test_small_pool_takes_the_largest_of_what_is_there():
    layers = dict(small_stem(3))
    x = torch.randn(2, 64, 7, 6).relu()
    outside = functional.pad(x, (0, 1, 0, 1), value=-torch.inf)
    expected = outside.unfold(2, 2, 1).unfold(3, 2, 1).amax((-2, -1))
    assert torch.equal(layers["maxpool"](layers["pad"](x)), expected)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "seresnext50_32x4d"])
@torch.no_grad()
def test_grouped_convolution_is_split_convolve_concatenate(name: str):
    with torch.device("meta"):
        block = build(name).backbone.get_submodule("layer3.0")
    grouped = block.to_empty(device="cpu").conv2
    assert isinstance(grouped, nn.Conv2d) and grouped.groups == 32
    nn.init.normal_(grouped.weight, 0, 0.1)
    x = torch.randn(2, grouped.in_channels, 9, 8)
    parts: list[Tensor] = []
    for split, weight in zip(x.chunk(32, 1), grouped.weight.chunk(32), strict=True):
        parts.append(functional.conv2d(split, weight, None, grouped.stride, grouped.padding))
    torch.testing.assert_close(grouped(x), torch.cat(parts, 1), rtol=1e-5, atol=1e-5)
    dense = nn.Conv2d(grouped.in_channels, grouped.out_channels, 3, bias=False)
    assert dense.weight.numel() == 32 * grouped.weight.numel()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet18_small"])
def test_attention_of_ones_own_may_need_its_output(name: str):
    class Squashed(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.tanh()  # its gradient is computed from its output

    network = build(name, attention=Squashed, classes=2)
    network(torch.randn(2, 3, 40, 40)).sum().backward()
    with torch.no_grad():
        x = torch.randn(2, 3, 40, 40)
        plain, gated = build(name, classes=2).eval(), build(name, attention="gct", classes=2).eval()
        gated.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(gated(x), plain(x))
