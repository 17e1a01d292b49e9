"""What holds for every network of the zoo beside parity: sizes, seeds, rows, layers, costs."""

import pytest
import torch
from torch import nn

from fieldmark.network import VARIANTS, build
from fieldmark.network.inspect import layers, macs, rows


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
@torch.no_grad()
def test_any_size_and_channels_last(name: str):
    network = build(name, classes=3).eval()
    for size in (28, 31, 75):
        assert network(torch.randn(1, 3, size, size)).shape == (1, 3)
    x = torch.randn(1, 3, 65, 48)
    plain = network(x)
    turned = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_scratch_weights_follow_the_seed_and_keep_the_scale(name: str):
    torch.manual_seed(3)
    first = build(name).train()
    torch.manual_seed(3)
    second = build(name)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    with torch.no_grad():
        spread = first.features(torch.randn(4, 3, 96, 96)).std()
    assert 0.1 < spread < 10


def test_drop_connect_acts_in_training_only():
    network = build("efficientnet_lite0").train()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    x = torch.randn(1, 3, 64, 64).expand(16, -1, -1, -1)
    with torch.no_grad():
        training = network.features(x)
        resting = network.eval().features(x)
    assert training.flatten(1).std(0).max() > 0
    torch.testing.assert_close(resting, resting[:1].expand_as(resting), rtol=1e-4, atol=1e-4)


def test_rows_of_the_zoo():
    by_name = {row["name"]: row for row in rows()}
    assert list(by_name) == list(VARIANTS)
    assert by_name["resnet50"]["params"] == 25_557_032
    assert by_name["resnet50"]["macs"] == 4_089_184_256  # v1.5; v1 has 3.86 G
    assert by_name["efficientnet_lite2"]["input_size"] == 260
    assert all(row["paper"] for row in by_name.values())
    assert by_name["resnext101_32x4d"]["weights"] is None


def test_layers_account_for_every_parameter_and_for_what_is_frozen():
    network = build("efficientnet_lite0", after="3:mask,-1:se", classes=5)
    table = layers(network, 64)
    assert sum(row["params"] for row in table) == sum(p.numel() for p in network.parameters())
    frozen = [row["name"] for row in table if row["frozen"]]
    assert frozen == [row["name"] for row in table][: len(frozen)]
    assert frozen[-1] == "blocks.3.2"
    assert {row["name"]: row["shape"] for row in table}["blocks.after_3"] == (80, 4, 4)
    assert table[-1] == {"name": "head", "shape": (5,), "params": 1280 * 5 + 5, "frozen": False}
    gated = layers(build("efficientnet_lite0", attention="se"), 64)  # what is added must train, from the first block on
    assert not any(row["frozen"] for row in gated)


def test_macs_grow_by_what_attention_costs():
    plain, gated = (build("resnet18", after=after) for after in (None, "-1:se(squeezed=8)"))
    assert macs(gated, 64) - macs(plain, 64) == 2 * 512 * 8
