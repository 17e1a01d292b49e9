"""The families against the published implementations: names, shapes and counts of all, outputs of some."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from fieldmark.network import VARIANTS, Network, build
from fieldmark.network.inspect import layers, macs, rows

PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
}


def reference(name: str) -> nn.Module:
    """The published implementation, in eval mode; timm's has torchvision's names for the one that torchvision lacks."""
    if name.startswith("efficientnet"):
        return timm.create_model(f"tf_{name}").eval()
    if name == "resnext101_32x4d":
        return timm.create_model(name).eval()
    return torchvision.models.get_model(name).eval()


def published(network: Network) -> dict[str, torch.Tensor]:
    """The network's own tensors under the published names."""
    classifier = VARIANTS[network.spec["backbone"]].classifier
    return {
        key.removeprefix("backbone.").replace("head.fc", classifier): tensor
        for key, tensor in network.state_dict().items()
    }


def shake(module: nn.Module) -> None:
    """Random norms: as they start, swapped or ignored norms would not show."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)


def test_the_table_is_covered():
    assert set(VARIANTS) == set(PARAMETERS)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_shapes_and_counts_are_the_published(name: str):
    with torch.device("meta"):
        ours, theirs = build(name), reference(name)
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]
    shapes = {key: tensor.shape for key, tensor in published(ours).items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("efficientnet_lite0", (77, 96)),  # odd and even: "same" padding differs
        ("efficientnet_lite1", (64, 65)),
        ("efficientnet_lite2", (50, 33)),
        ("resnet18", (97, 64)),
        ("resnet50", (64, 63)),
        ("resnext50_32x4d", (64, 63)),
    ],
)
@torch.no_grad()
def test_outputs_equal_the_published_implementation_bit_for_bit(name: str, size: tuple[int, int]):
    torch.manual_seed(0)
    ours, theirs = build(name).eval(), reference(name)
    shake(ours)
    theirs.load_state_dict(published(ours))
    x = torch.randn(2, 3, *size)
    if name.startswith("efficientnet"):
        features = theirs.forward_features(x)  # type: ignore[operator]
    else:
        features = nn.Sequential(*list(theirs.children())[:-2])(x)
    assert torch.equal(ours.features(x), features)
    assert torch.equal(ours(x), theirs(x))


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
    assert {name: row["params"] for name, row in by_name.items()} == PARAMETERS
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
