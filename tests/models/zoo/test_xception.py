"""Xception: the flows of the paper's figure 5, its shortcuts, its attention."""

import pytest
import torch
from torch import nn

from fieldmark.models import SE, Attention, build
from fieldmark.models.zoo.xception import Block, xception


def test_flows_have_the_papers_shapes():
    with torch.device("meta"):
        backbone, x = xception().eval(), torch.empty(1, 3, 299, 299)
    found = {stage: tuple(backbone.split_after(stage)[0](x).shape[1:]) for stage in backbone.stages}
    assert found == {
        "act2": (64, 147, 147),
        "block1": (128, 74, 74),
        "block2": (256, 37, 37),
        "block3": (728, 19, 19),  # the end of the entry flow, as the figure says
        "block11": (728, 19, 19),
        "act4": (2048, 10, 10),
    }
    assert backbone.stages == {stage: shape[0] for stage, shape in found.items()}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("widths", "stride"), [((6, 6, 6), 1), ((6, 10), 2), ((4, 4), 2)])
@torch.no_grad()
def test_a_block_adds_its_branch_to_its_shortcut(widths: tuple[int, ...], stride: int, relu: bool):
    block = Block(6, widths, stride, relu, SE).eval()
    x = torch.randn(2, 6, 7, 8)
    before = x.clone()
    y = block(x)
    assert torch.equal(x, before)  # the ReLU at its beginning is not the shortcut's
    assert y.shape == (2, widths[-1], -(-7 // stride), -(-8 // stride))
    assert any(isinstance(m, nn.Conv2d) for m in block.skip.modules()) == (stride == 2)
    assert isinstance(block.attention, SE) and block.attention.fc2.bias is not None
    nn.init.constant_(block.attention.fc2.bias, -1000)  # a closed gate leaves the shortcut alone
    torch.testing.assert_close(block(x), block.skipbn(block.skip(x)))
    # The branch sees its input's negative part only where no ReLU stands at its beginning.
    assert torch.equal(block.rep(x), block.rep(x.relu())) == relu


def test_attention_stands_in_every_block():
    with torch.device("meta"):
        network = build("xception", attention="se")
    widths = [slot.fc1.in_channels for slot in network.added_attention.values() if isinstance(slot, SE)]
    assert widths == [128, 256, *[728] * 9, 1024]
    assert type(build("xception", classes=2).backbone.get_submodule("block1.attention")) is Attention


@torch.no_grad()
def test_a_kept_map_stays_as_it_is():
    backbone = build("xception", classes=2).backbone.eval()
    for stage in backbone.stages:
        first, rest = backbone.split_after(stage)
        kept = first(torch.randn(1, 3, 33, 40))
        before = kept.clone()
        rest(kept)
        assert torch.equal(kept, before)


def test_scratch_weights_follow_the_seed_and_keep_the_scale():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build("xception", classes=2, channels=1))
    first, second = (network.state_dict().values() for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert 0.1 < networks[0].features(torch.randn(2, 1, 96, 96)).std() < 10
        assert networks[0].eval()(torch.randn(1, 1, 28, 31)).shape == (1, 2)
