"""EfficientNet and Lite: how width and depth scale, where the paper's gates stand, what Lite leaves as it is."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fieldmark.models import SE, Attention, Mask, build
from fieldmark.models.layers import StochasticDepth, round_channels
from fieldmark.models.weights import rename_key
from fieldmark.models.zoo.efficientnet import RENAMES, efficientnet


@settings(deadline=None)
@given(width=st.integers(1, 20_000).map(lambda tenths: tenths / 10), divisor=st.sampled_from([1, 8, 16]))
def test_channels_are_rounded_to_multiples_that_are_near(width: float, divisor: int):
    rounded = round_channels(width, divisor)
    assert rounded % divisor == 0 and rounded >= max(divisor, 0.9 * width)
    # The nearest, or the next one where the nearest lies more than a tenth below.
    assert abs(rounded - width) <= divisor / 2 or rounded - divisor < max(1, 0.9 * width)


def test_b0_is_table_1_and_b7_is_scaled():
    with torch.device("meta"):
        b0, b7, lite4 = efficientnet(1.0, 1.0), efficientnet(2.0, 3.1), efficientnet(1.4, 1.8, lite=True)
    assert list(b0.stages.values()) == [16, 24, 40, 80, 112, 192, 320, 1280]
    assert list(b7.stages.values()) == [32, 48, 80, 160, 224, 384, 640, 2560]
    # Lite scales neither stem nor head, and deepens neither the first stage nor the last.
    assert list(lite4.stages.values()) == [24, 32, 56, 112, 160, 272, 448, 1280]
    assert [len(stage) for stage in blocks(b0)] == [1, 2, 2, 3, 3, 4, 1]
    assert [len(stage) for stage in blocks(b7)] == [4, 7, 7, 10, 10, 13, 4]
    assert [len(stage) for stage in blocks(lite4)] == [1, 4, 4, 6, 6, 8, 1]


def blocks(backbone: nn.Sequential) -> list[nn.Sequential]:
    return [stage for stage in backbone.get_submodule("blocks").children() if isinstance(stage, nn.Sequential)]


@pytest.mark.parametrize("size", [(64, 65), (33, 31), (1, 17)])
def test_a_map_is_as_large_as_its_input_by_its_stride_rounded_up(size: tuple[int, int]):
    with torch.device("meta"):
        backbone, x = efficientnet(1.0, 1.0).eval(), torch.empty(1, 3, *size)
    for (stage, channels), stride in zip(backbone.stages.items(), (2, 4, 8, 16, 16, 32, 32, 32), strict=True):
        found = backbone.split_after(stage)[0](x).shape[1:]
        assert found == (channels, *(-(-pixels // stride) for pixels in size))


def test_gates_squeeze_by_the_blocks_input():
    with torch.device("meta"):
        network = build("efficientnet_b3")
    gates = {name: gate for name, gate in network.backbone.named_modules() if isinstance(gate, SE)}
    assert len(gates) == sum(len(stage) for stage in blocks(network.backbone))
    for name, gate in gates.items():
        block = network.backbone.get_submodule(name.removesuffix(".se"))
        first = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
        assert gate.fc1.out_channels == first.in_channels // 4
        assert isinstance(gate.activation, nn.SiLU)
    assert not network.added_attention


def test_the_own_gate_can_go_or_be_replaced():
    with torch.device("meta"):
        without, replaced = (
            build("efficientnet_b0", attention="none"),
            build("efficientnet_b0", attention="replace(mask)"),
        )
    lite = build("efficientnet_lite0")
    assert {key: t.shape for key, t in without.state_dict().items()} == {
        key: t.shape for key, t in lite.state_dict().items()
    }
    block = replaced.backbone.get_submodule("blocks.2.0")
    assert isinstance(block.se, Mask) and type(block.attention) is Attention


@torch.no_grad()
def test_added_attention_sees_what_the_own_gate_lets_through():
    network = build("efficientnet_b0", attention="mask").eval()
    block = network.backbone.get_submodule("blocks.1.1")
    seen = {}
    for name in ("se", "attention", "conv_pwl"):
        block.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
    block(torch.randn(1, 24, 6, 5))
    assert seen["attention"][0] is seen["se"][1] and seen["conv_pwl"][0] is seen["attention"][1]


def test_deeper_blocks_are_left_out_more_often():
    rates = [m.drop_probability for m in efficientnet(1.0, 1.1).modules() if isinstance(m, StochasticDepth)]
    assert rates[0] == 0 and rates == sorted(rates) and len(set(rates)) == len(rates)
    assert rates[-1] == pytest.approx(0.2 * (len(rates) - 1) / len(rates))


def test_renames_give_our_names_and_leave_them_alone():
    with torch.device("meta"):
        ours = set(build("efficientnet_b2").backbone.state_dict())
        theirs = timm.create_model("tf_efficientnet_b2").state_dict()

    assert {rename_key(key, RENAMES) for key in theirs if not key.startswith("classifier")} == ours
    assert all(rename_key(key, RENAMES) == key for key in ours)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite3"])
def test_scratch_weights_follow_the_seed_and_keep_the_scale(name: str):
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build(name, classes=2))
    first, second = (network.state_dict().values() for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert 0.1 < networks[0].features(torch.randn(4, 3, 64, 64)).std() < 10
