"""Inception-v4: the paper's maps, where attention stands, and its start; parity is in test_parity.py."""

import pytest
import torch
from torch import Tensor, nn

from fieldmark.models import Attention, build
from fieldmark.models.layers import ParallelBranches
from fieldmark.models.zoo.inception_v4 import inception_v4


class Nothing(Attention):
    """Lets nothing through."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def shapes(backbone: nn.Sequential, size: int) -> list[tuple[int, ...]]:
    """The map behind every layer of the one named `features`."""
    x, found = torch.empty(1, 3, size, size, device="meta"), []
    for layer in backbone.get_submodule("features").children():
        x = layer(x)
        found.append(tuple(x.shape[1:]))
    return found


def test_maps_are_those_of_the_papers_figures():
    with torch.device("meta"):
        backbone = inception_v4().eval()
    found = shapes(backbone, 299)
    assert found[:3] == [(32, 149, 149), (32, 147, 147), (64, 147, 147)]  # figure 3
    assert found[3:6] == [(160, 73, 73), (192, 71, 71), (384, 35, 35)]
    blocks = [(384, 35, 35)] * 4 + [(1024, 17, 17)] * 8 + [(1536, 8, 8)] * 4  # figure 9
    assert found[6:] == blocks
    ends = [int(name.removeprefix("features.")) for name in backbone.stages]
    assert list(backbone.stages.values()) == [found[end][0] for end in ends]
    assert ends[-1] == len(found) - 1


def test_75_pixels_are_the_smallest():
    with torch.device("meta"):
        backbone = inception_v4().eval()
        assert backbone(torch.empty(1, 3, 75, 75)).shape == (1, 1536, 1, 1)
        with pytest.raises(RuntimeError):
            backbone(torch.empty(1, 3, 74, 75))


def test_attention_stands_at_the_end_of_every_block_and_reduction():
    with torch.device("meta"):
        layers = inception_v4(attention=Nothing).get_submodule("features")
    blocks = [layer for layer in layers.children() if hasattr(layer, "attention")]
    assert blocks == list(layers.children())[6:]  # none in the stem
    for layer in (6, 10, 11, 18, 19):  # one of each kind
        block = layers.get_submodule(str(layer)).to_empty(device="cpu")
        for parameter in block.parameters():
            nn.init.ones_(parameter)
        inputs = 384 if layer <= 10 else 1024 if layer <= 18 else 1536
        assert not block(torch.randn(2, inputs, 5, 5)).any()


def test_parallel_concatenates_in_the_order_given():
    x = torch.randn(2, 3, 5, 5)
    turned = ParallelBranches(b=nn.Identity(), a=nn.ReLU())(x)
    assert torch.equal(turned, torch.cat((x, x.relu()), 1))


def test_scratch_weights_follow_the_seed_and_keep_the_scale():
    torch.manual_seed(3)
    first = build("inception_v4", classes=2, channels=2)
    torch.manual_seed(3)
    second = build("inception_v4", classes=2, channels=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with torch.no_grad():
        assert 0.1 < first.features(torch.randn(4, 2, 96, 96)).std() < 10


@torch.no_grad()
def test_no_stage_writes_into_the_map_it_is_given():
    backbone = inception_v4()
    x = torch.randn(2, 3, 96, 96)
    rest = backbone
    for name in backbone.stages:
        stage, rest = rest.split_after(name)
        before = x.clone()
        y = stage(x)
        assert torch.equal(x, before)
        x = y
