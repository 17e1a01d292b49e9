"""VGG: the configurations of the paper's table 1, the MNIST form, where attention stands, the "same" pool."""

import pytest
import torch
from torch import Tensor, nn

from fieldmark.models import SE, VARIANTS, build

NAMES = [name for name in VARIANTS if name.startswith("vgg")]
# Table 1: the widths of a column's convolutions between its pools; those marked by a minus are 1x1.
TABLE = {
    "vgg11": [[64], [128], [256, 256], [512, 512], [512, 512]],
    "vgg13": [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]],
    "vgg16_c": [[64, 64], [128, 128], [256, 256, -256], [512, 512, -512], [512, 512, -512]],
    "vgg16": [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3],
    "vgg19": [[64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4],
    "vgg11_mnist": [[64, 64], [128, 128], [256] * 4],
}


def on_meta(name: str, **settings: object):
    with torch.device("meta"):
        return build(name, **settings)  # type: ignore[arg-type]


def parts(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_are_those_of_the_table(name: str):
    groups: list[list[int]] = [[]]
    for layer in on_meta(name).backbone.get_submodule("features").children():
        if isinstance(layer, nn.Conv2d):
            groups[-1].append(layer.out_channels if layer.kernel_size == (3, 3) else -layer.out_channels)
        elif parts(layer, nn.MaxPool2d):
            groups.append([])
    assert groups == [*TABLE[name.removesuffix("_bn")], []]


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_norms_are_what_the_name_says(name: str):
    network = on_meta(name)
    convolutions = parts(network.backbone, nn.Conv2d)
    assert f"vgg{convolutions + parts(network.head, nn.Linear)}" == name.partition("_")[0]
    assert parts(network.backbone, nn.BatchNorm2d) == (convolutions if name.endswith("_bn") else 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_halves_the_map(name: str):
    backbone = on_meta(name).backbone
    photo = torch.empty(1, 3, 64, 96, device="meta")
    maps = [tuple(backbone.split_after(stage)[0](photo).shape[1:]) for stage in backbone.stages]
    halved = [(channels, 64 >> k, 96 >> k) for k, channels in enumerate(backbone.stages.values(), 1)]
    if name == "vgg11_mnist":
        halved[-1] = (256, 16, 24)
    assert maps == halved


def test_the_mnist_form_is_the_write_ups():
    network = on_meta("vgg11_mnist", channels=1, classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 16_230_346
    assert network.features(torch.empty(1, 1, 28, 28, device="meta")).shape == (1, 256, 7, 7)
    assert network.preprocessing.size == 28


def test_the_same_pool_takes_the_neighbours_right_and_below():
    *_, pool = build("vgg11_mnist").backbone.get_submodule("features").children()
    x = torch.randn(2, 3, 5, 7) - 9  # all below zero: padding by zeros would win

    def largest(p: int, q: int) -> Tensor:
        return x[:, :, p : p + 2, q : q + 2].amax((2, 3))

    expected = torch.stack([torch.stack([largest(p, q) for q in range(7)], -1) for p in range(5)], -2)
    assert torch.equal(pool(x), expected)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg11_mnist"])
def test_attention_stands_between_a_groups_relu_and_its_pool(name: str):
    network = on_meta(name, attention="se")
    layers = list(network.backbone.get_submodule("features").children())
    places = [k for k, layer in enumerate(layers) if isinstance(layer, SE)]
    assert len(places) == len(network.backbone.stages)
    assert all(isinstance(layers[k - 1], nn.ReLU) and parts(layers[k + 1], nn.MaxPool2d) for k in places)


def test_what_lies_behind_a_stage_leaves_its_map_as_it_is():
    backbone = build("vgg11").backbone
    for stage in list(backbone.stages)[:-1]:
        first, rest = backbone.split_after(stage)
        features = first(torch.randn(1, 3, 64, 64)).detach()
        before = features.clone()
        rest(features)
        assert torch.equal(features, before)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_bn")])
def test_from_scratch_the_signal_keeps_its_size_of_grey_photos_too(name: str):
    torch.manual_seed(0)
    photos = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        size = build(name, channels=1, classes=2).features(photos).square().mean().sqrt()
    assert 0.7 < size < 7
