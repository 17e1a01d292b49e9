"""MobileNet v2 and v3: the papers' tables, the hard gate, the head behind the pool."""

import pytest
import torch
import torchvision
from torch import nn

from fieldmark.models import SE, Attention, Mask, build
from fieldmark.models.weights import rename_key
from fieldmark.models.zoo.mobilenet import RENAMES_V2, InvertedResidual

NAMES = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
# The size of each stage's map at 224 pixels, from the papers' tables.
SIZES = {
    "mobilenet_v2": (112, 56, 28, 14, 14, 7, 7, 7),
    "mobilenet_v3_large": (112, 56, 28, 14, 14, 7, 7),
    "mobilenet_v3_small": (56, 28, 14, 14, 7, 7),
}


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_the_papers_shapes(name: str):
    with torch.device("meta"):
        backbone, x = build(name).backbone.eval(), torch.empty(1, 3, 224, 224)
    for (stage, channels), size in zip(backbone.stages.items(), SIZES[name], strict=True):
        assert backbone.split_after(stage)[0](x).shape[1:] == (channels, size, size)


@pytest.mark.parametrize("name", NAMES)
def test_scratch_weights_follow_the_seed_and_keep_the_scale(name: str):
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build(name, classes=2))
    first, second = (network.state_dict().values() for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert 0.1 < networks[0].features(torch.randn(4, 3, 96, 96)).std() < 10


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_any_size_and_channels(name: str):
    network = build(name, classes=3, channels=1).eval()
    for size in ((28, 28), (31, 45)):
        assert network(torch.randn(1, 1, *size)).shape == (1, 3)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_kept_map_stays_as_it_is(name: str):
    backbone = build(name, after={0: Mask, -2: Mask}).backbone.eval()
    for stage in backbone.stages:
        first, rest = backbone.split_after(stage)
        kept = first(torch.randn(1, 3, 40, 33))
        before = kept.clone()
        rest(kept)
        assert torch.equal(kept, before)


# A quarter of the width behind the depthwise convolution, rounded to a multiple of 8.
SQUEEZED = {
    "mobilenet_v3_large": [24, 32, 32, 120, 168, 168, 240, 240],
    "mobilenet_v3_small": [8, 24, 64, 64, 32, 40, 72, 144, 144],
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_v3_squeezes_a_quarter_of_the_width_by_a_hard_gate(name: str):
    with torch.device("meta"):
        gates = [m for m in build(name).backbone.modules() if isinstance(m, SE)]
        without = [m for m in build(name, attention="none").backbone.modules() if isinstance(m, SE)]
    assert [gate.fc1.out_channels for gate in gates] == SQUEEZED[name]
    assert all(isinstance(gate.sigmoid, nn.Hardsigmoid) and isinstance(gate.activation, nn.ReLU) for gate in gates)
    assert not without


@torch.no_grad()
def test_the_hard_gate_is_the_papers_and_the_identity_when_inserted():
    torch.manual_seed(0)
    x = torch.rand(2, 24, 3, 5) + 0.1
    gate = SE(24, ratio=4, hard=True, divisor=8)
    nn.init.normal_(gate.fc2.weight, 0, 20)  # wide enough to meet both ends
    score = gate.fc2(gate.fc1(x.mean((2, 3), keepdim=True)).relu())
    opening = (score + 3).clamp(0, 6) / 6
    assert opening.min() == 0 and opening.max() == 1
    torch.testing.assert_close(gate(x), x * opening)
    gate.start_as_identity()
    assert torch.equal(gate(x), x)


def test_attention_stands_behind_the_own_gate_and_keeps_the_published_numbers():
    with torch.device("meta"):
        network = build("mobilenet_v3_small", attention="se")
        plain = build("mobilenet_v3_small")
    children = {
        k: [name for name, _ in network.backbone.get_submodule(f"features.{k}.block").named_children()]
        for k in (1, 2, 4)
    }
    assert children == {
        1: ["0", "1", "attention", "2"],  # no expansion
        2: ["0", "1", "attention", "2"],  # no SE
        4: ["0", "1", "2", "attention", "3"],
    }
    slots = tuple(f"{name}." for name in network.added_attention)
    assert [key for key in network.state_dict() if not key.startswith(slots)] == list(plain.state_dict())
    assert type(plain.backbone.get_submodule("features.4.block.attention")) is Attention
    added = network.backbone.get_submodule("features.4.block.attention")
    assert isinstance(added, SE) and added.fc1.in_channels == 96 and added.fc1.out_channels == 24 // 16


def test_the_wide_layer_is_the_heads():
    with torch.device("meta"):
        heads = {name: build(name).head for name in NAMES}
    for name, hidden in (("mobilenet_v3_large", 1280), ("mobilenet_v3_small", 1024)):
        layers = [type(layer) for layer in heads[name].hidden]  # type: ignore[union-attr]
        assert layers == [nn.Linear, nn.Hardswish, nn.Dropout]
        assert heads[name].classifier.in_features == hidden
    assert heads["mobilenet_v2"].classifier.in_features == 1280


def test_v2_renames_give_our_names_and_leave_them_alone():
    with torch.device("meta"):
        ours = set(build("mobilenet_v2").backbone.state_dict())
        theirs = torchvision.models.mobilenet_v2().state_dict()

    assert {rename_key(key, RENAMES_V2) for key in theirs if not key.startswith("classifier")} == ours
    assert all(rename_key(key, RENAMES_V2) == key for key in ours)


def test_the_shortcut_stands_where_the_shape_stays():
    with torch.device("meta"):
        found = [m.residual for m in build("mobilenet_v2").backbone.modules() if isinstance(m, InvertedResidual)]
    assert found == [repeat > 0 for count in (1, 2, 3, 4, 3, 3, 1) for repeat in range(count)]
