"""What holds for every network of the zoo beside parity: sizes and seeds."""

import pytest
import torch
from torch import nn

from fieldmark.models import build


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
