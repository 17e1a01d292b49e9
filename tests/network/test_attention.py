"""Gates: the identity when they are inserted, the paper's form otherwise."""

from functools import partial

import pytest
import torch

from fieldmark.network import SE, VARIANTS, Attention, Mask, build
from fieldmark.network.weights import load

PLACES = {"blocks": ("{}", None), "first": (None, "0:{}"), "last": (None, "-1:{}"), "all": ("{}", "0:{},-2:{},-1:{}")}


@pytest.mark.parametrize("word", ["se", "se(squeezed=3)", "mask", "mask(widths=())"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "resnet50", "resnext50_32x4d"])
@torch.no_grad()
def test_inserted_attention_changes_no_bit(name: str, place: str, word: str):
    plain = build(name, classes=4).eval()
    inside, after = (pattern and pattern.replace("{}", word) for pattern in PLACES[place])
    gated = build(name, attention=inside, after=after, classes=4).eval()
    x = torch.randn(1, 3, 64, 48)
    before = plain(x)
    state = {
        key.removeprefix("backbone.").replace("head.fc", VARIANTS[name].names["fc"]): tensor
        for key, tensor in plain.state_dict().items()
    }
    assert load(gated, state, VARIANTS[name], published_head=True, source="memory")
    assert len(gated.slots) > 0
    assert torch.equal(gated.features(x), plain.features(x))
    assert torch.equal(gated(x), before)


@pytest.mark.parametrize("make", [SE, Mask])
@torch.no_grad()
def test_own_form_is_a_sigmoid_and_the_inserted_one_can_move(make: type[SE] | type[Mask]):
    x = torch.rand(2, 12, 5, 4) + 0.1
    gate = make(12).eval()
    opening = gate(x) / x
    assert (opening > 0).all() and (opening < 1).all()
    across = (2, 3) if make is SE else (1,)  # an SE gate is one per channel, a mask one per position
    torch.testing.assert_close(opening, opening.mean(across, keepdim=True).expand_as(x))
    gate.start_as_identity()
    assert torch.equal(gate(x), x)
    assert torch.equal(gate.train()(x), x)
    with torch.enable_grad():
        gate(x).square().sum().backward()
    assert gate.last.bias is not None and gate.last.bias.grad is not None
    assert gate.last.bias.grad.abs().min() > 0


@pytest.mark.parametrize("make", [SE, Mask])
@torch.no_grad()
def test_a_measured_norm_is_the_identity_in_eval_mode(make: type[SE] | type[Mask]):
    features = torch.randn(32, 6, 5, 5) * torch.arange(1, 7)[:, None, None] + 3
    gate = make(6, norm=True).eval()
    gate.start_as_identity()
    torch.testing.assert_close(gate(features), features)
    gate.measure(features)
    torch.testing.assert_close(gate(features), features)
    torch.testing.assert_close(gate.norm.running_mean, features.mean((0, 2, 3)))
    # The statistics are the data's, so training mode sees the same.
    for dropout in gate.modules():
        if isinstance(dropout, torch.nn.Dropout):
            dropout.eval()
    torch.testing.assert_close(gate.train()(features), features, rtol=1e-4, atol=1e-4)


def test_squeeze_widths():
    assert SE(64).fc1.out_channels == 4
    assert SE(64, 32, ratio=8).fc1.out_channels == 4
    assert SE(64, 32, squeezed=5).fc1.out_channels == 5
    assert SE(8).fc1.out_channels == 1
    with pytest.raises(ValueError, match="ratio=0"):
        SE(8, ratio=0)


def test_blocks_squeeze_by_the_width_that_the_paper_names():
    lite = build("efficientnet_lite0", attention=partial(SE, ratio=4)).slots
    widths = {name: slot.fc1 for name, slot in lite.items() if isinstance(slot, SE)}
    first = widths["backbone.blocks.1.0.attention"]  # 16 in, expanded to 96
    assert (first.in_channels, first.out_channels) == (96, 4)
    resnet = build("resnet50", attention="se").slots["backbone.layer1.0.attention"]
    assert isinstance(resnet, SE)
    assert (resnet.fc1.in_channels, resnet.fc1.out_channels) == (256, 16)


def test_se_resnet50_has_the_papers_count():
    # The SENet paper's own sizes, as published: 28,088,024.
    with torch.device("meta"):
        assert sum(p.numel() for p in build("resnet50", attention="se").parameters()) == 28_088_024


def test_plain_attention_lets_everything_through():
    x = torch.randn(1, 4, 2, 2)
    attention = Attention(4, 2)
    attention.start_as_identity()
    attention.measure(x)
    assert attention(x) is x
    assert not build("resnet18", attention="none").slots
