"""SENet family: where its gates stand, what takes their place, and what they weigh."""

import pytest
import torch
from torch import Tensor, nn

from fieldmark.models import SE, Attention, Mask, build


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_gates_are_all_that_a_se_resnet_adds(depth: int):
    with torch.device("meta"):
        gated, plain = build(f"seresnet{depth}"), build(f"resnet{depth}")
        without = build(f"seresnet{depth}", attention="none")
    assert parameters(without) == parameters(plain)
    gates = [module for module in gated.modules() if isinstance(module, SE)]
    # Equation 5 of the paper, 2 / r times the sum of the squared widths; ours count the biases too.
    widths = [gate.fc2.out_channels for gate in gates]
    weights = sum(2 * c * c // 16 + c + c // 16 for c in widths)
    assert parameters(gated) - parameters(plain) == weights
    assert not gated.added_attention  # they are the paper's, none was added


def test_added_attention_sees_what_the_own_gate_lets_through():
    network = build("seresnext50_32x4d", attention="mask").eval()
    block = network.backbone.get_submodule("layer2.1")
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("bn3", "se_module", "attention"):
        block.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    x = torch.randn(2, 512, 5, 5)
    with torch.no_grad():
        y = block(x)
    assert isinstance(block.se_module, SE) and isinstance(block.attention, Mask)
    assert seen["se_module"][0] is seen["bn3"][1]
    assert seen["attention"][0] is seen["se_module"][1]
    assert torch.equal(y, (seen["attention"][1] + x).relu())  # the shortcut of this block is the identity
    assert next(iter(network.added_attention)) == "backbone.layer1.0.attention"


def test_replaced_gates_stand_under_the_published_name():
    with torch.device("meta"):
        block = build("senet154", attention="replace(mask)").backbone.get_submodule("layer3.0")
    assert isinstance(block.se_module, Mask) and type(block.attention) is Attention


def test_only_the_largest_drops_features():
    rates = {name: build(name, classes=2).head.dropout.p for name in ("seresnet50", "seresnext50_32x4d")}  # type: ignore[union-attr]
    with torch.device("meta"):
        rates["senet154"] = build("senet154").head.dropout.p  # type: ignore[union-attr]
    assert rates == {"seresnet50": 0, "seresnext50_32x4d": 0, "senet154": 0.2}


@torch.no_grad()
def test_stage_maps_stay_what_they_are():
    backbone = build("seresnet50").backbone.eval()
    for stage in backbone.stages:
        prefix, rest = backbone.split_after(stage)
        cached = prefix(torch.randn(1, 3, 48, 33))
        before = cached.clone()
        rest(cached)
        assert torch.equal(cached, before)
