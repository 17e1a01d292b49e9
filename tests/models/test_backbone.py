"""Backbone: slices and halves compute what the whole does, and share its modules."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import Attention, Backbone, Mask, Network, build


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    words = ("efficientnet_lite0", "efficientnet_lite0+after=3:se,-1:mask", "resnet18+after=0:se,-1:mask")
    return {word: build(word, classes=3).eval() for word in words}


def places(backbone: Backbone) -> list[str]:
    """Every name that a backbone can be split after."""
    return [
        name
        for name, _ in backbone.named_modules()
        if name and all(isinstance(backbone.get_submodule(p), torch.nn.Sequential) for p in parents(name))
    ]


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


@torch.no_grad()
def test_split_anywhere(networks: dict[str, Network]):
    for network in networks.values():
        backbone = network.backbone
        x = torch.randn(1, 3, 33, 40)
        whole, names = backbone(x), places(backbone)
        assert len(names) > 12
        for name in names:
            prefix, rest = backbone.split_after(name)
            assert torch.equal(rest(prefix(x)), whole)
            ours = [id(parameter) for half in (prefix, rest) for parameter in half.parameters()]
            assert ours == [id(parameter) for parameter in backbone.parameters()]
            assert not prefix.training and not rest.training
            assert isinstance(prefix, Backbone) and isinstance(rest, Backbone)


def test_split_keeps_names_and_stages(networks: dict[str, Network]):
    backbone = networks["efficientnet_lite0+after=3:se,-1:mask"].backbone
    prefix, rest = backbone.split_after("blocks.3")
    assert list(prefix.stages) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert prefix.stages | rest.stages == backbone.stages
    assert [*prefix.state_dict(), *rest.state_dict()] == [*backbone.state_dict()]
    assert "blocks.after_3.fc1.weight" in rest.state_dict()
    assert "blocks.after_3.fc1.weight" in backbone.split_after("blocks.after_3")[0].state_dict()
    inner, outer = backbone.split_after("blocks.5.1")
    assert "blocks.5" not in inner.stages and outer.stages["blocks.5"] == 192


@settings(max_examples=20, deadline=None)
@given(k=st.integers(0, 7))
@torch.no_grad()
def test_slices_are_backbones(networks: dict[str, Network], k: int):
    backbone = networks["efficientnet_lite0"].backbone
    x = torch.randn(1, 3, 32, 32)
    first, rest = backbone[:k], backbone[k:]
    assert isinstance(first, Backbone) and isinstance(rest, Backbone)
    assert torch.equal(rest(first(x)), backbone(x))
    assert first.stages | rest.stages == backbone.stages


@pytest.mark.parametrize("name", ["blocks.7", "nothing", "conv_stem.weight", "", "blocks.0.0.conv_dw"])
def test_split_after_nothing(networks: dict[str, Network], name: str):
    with pytest.raises(FieldmarkError, match="to split after"):
        networks["efficientnet_lite0"].backbone.split_after(name)


@torch.no_grad()
def test_stages_tell_the_channels():
    for name in ("efficientnet_lite0", "resnet18"):
        backbone = build(name).backbone.eval()
        x = torch.randn(1, 3, 64, 64)
        for stage, channels in backbone.stages.items():
            assert backbone.split_after(stage)[0](x).shape[1] == channels


def test_slots_stand_behind_their_stages():
    network = build("efficientnet_lite0", after={-2: Mask, 0: "se"})
    assert list(network.added_attention) == ["backbone.blocks.after_0", "backbone.blocks.after_6"]
    assert [name for name, _ in network.backbone.named_children()][-4:] == ["blocks", "conv_head", "bn2", "act2"]
    children = [name for name, _ in network.backbone.get_submodule("blocks").named_children()]
    assert children[:3] == ["0", "after_0", "1"] and children[-2:] == ["6", "after_6"]
    assert list(build("resnet18", after={-1: Mask}).added_attention) == ["backbone.after_layer4"]
    assert network.frozen_until == "blocks.3"


@pytest.mark.parametrize("after", [{8: Mask}, {-9: Mask}, {-1: Mask, 7: Mask}])
def test_stages_that_are_not_there(after: dict[int, type[Attention]]):
    with pytest.raises(FieldmarkError, match="name each stage once, 0 to 7"):
        build("efficientnet_lite0", after=after)
