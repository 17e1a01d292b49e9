"""AlexNet: the two forms' counts and maps, where its attention stands, and the paper's initial weights."""

import pytest
import torch
from torch import nn

from fieldmark.models import SE, build


@pytest.mark.parametrize(("channels", "classes", "params"), [(3, 1000, 62_378_344), (1, 10, 58_299_082)])
def test_parameters_of_the_write_up(channels: int, classes: int, params: int):
    with torch.device("meta"):
        network = build("alexnet_2012", channels=channels, classes=classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == params


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("alexnet", 224, [(64, 27, 27), (192, 13, 13), (256, 6, 6)]),
        ("alexnet_2012", 227, [(96, 27, 27), (256, 13, 13), (256, 6, 6)]),
    ],
)
def test_maps_of_the_stages(name: str, size: int, maps: list[tuple[int, int, int]]):
    with torch.device("meta"):
        backbone, photo = build(name).backbone, torch.empty(1, 3, size, size)
        found = [tuple(backbone.split_after(stage)[0](photo).shape[1:]) for stage in backbone.stages]
    assert found == maps
    assert [channels for channels, *_ in maps] == list(backbone.stages.values())


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 63), ("alexnet_2012", 67)])
def test_the_smallest_photo(name: str, smallest: int):
    with torch.device("meta"):
        backbone = build(name).backbone
        assert backbone(torch.empty(1, 3, smallest, smallest)).shape == (1, 256, 1, 1)
        with pytest.raises(RuntimeError, match="too small"):
            backbone(torch.empty(1, 3, smallest - 1, smallest - 1))


def test_attention_stands_between_a_groups_relu_and_its_pool():
    layers = build("alexnet", attention="se").backbone.get_submodule("features").children()
    order = [type(layer) for layer in layers if not isinstance(layer, nn.Conv2d)]
    assert order == [nn.ReLU, SE, nn.MaxPool2d] * 2 + [nn.ReLU] * 3 + [SE, nn.MaxPool2d]


def test_scratch_weights_are_the_papers():
    torch.manual_seed(0)
    convolutions = [layer for layer in build("alexnet_2012").backbone.modules() if isinstance(layer, nn.Conv2d)]
    for layer, bias in zip(convolutions, (0, 1, 0, 1, 1), strict=True):
        assert layer.bias is not None and bool((layer.bias == bias).all())
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
