"""Every network equals the published implementation: names, shapes, counts, features and logits, on random weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from fieldmark.network import VARIANTS, Network, build
from fieldmark.network.weights import PUBLISHED


@dataclass(frozen=True)
class Reference:
    """What a network is held against: parameters, the published implementation, and the size of its test photos."""

    params: int
    make: Callable[[], nn.Module] | None = None
    size: tuple[int, int] = (64, 63)


def of_timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **settings)


def of_torchvision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, **settings)


# Parameters with 1000 classes and without auxiliary heads; those of DESIGN.md to the unit.
REFERENCES = {
    "efficientnet_lite0": Reference(4_652_008, of_timm("tf_efficientnet_lite0"), (77, 96)),
    "efficientnet_lite1": Reference(5_416_680, of_timm("tf_efficientnet_lite1"), (64, 65)),
    "efficientnet_lite2": Reference(6_092_072, of_timm("tf_efficientnet_lite2"), (50, 33)),
    "resnet18": Reference(11_689_512, of_torchvision("resnet18"), (97, 64)),
    "resnet34": Reference(21_797_672, of_torchvision("resnet34")),
    "resnet50": Reference(25_557_032, of_torchvision("resnet50")),
    "resnet101": Reference(44_549_160, of_torchvision("resnet101")),
    "resnet152": Reference(60_192_808, of_torchvision("resnet152")),
    "resnext50_32x4d": Reference(25_028_904, of_torchvision("resnext50_32x4d")),
    "resnext101_32x4d": Reference(44_177_704, of_timm("resnext101_32x4d")),
    "resnext101_32x8d": Reference(88_791_336, of_torchvision("resnext101_32x8d")),
    "resnext101_64x4d": Reference(83_455_272, of_torchvision("resnext101_64x4d")),
}


def published(network: Network) -> dict[str, Tensor]:
    """The network's own tensors under the published names."""
    names = VARIANTS[network.spec["backbone"]].names
    found = {}
    for key, tensor in network.state_dict().items():
        part, _, rest = key.partition(".")
        layer, _, kind = rest.rpartition(".")
        found[rest if part == "backbone" else f"{names[layer]}.{kind}"] = tensor
    return found


def renamed(name: str, key: str) -> str:
    """A key of the published implementation -> the network's own published name."""
    for pattern, ours in PUBLISHED[name].renames if name in PUBLISHED else ():
        key = re.sub(pattern, ours, key)
    return key


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """In eval mode, on the CPU, its tensors not set: a large network's own random weights take seconds."""
    with torch.device("meta"):
        module = make()
    return module.to_empty(device="cpu").eval()


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Random weights that keep the scale, and random norms: as they start, swapped or ignored norms would not show."""
    for part in module.modules():
        for name, tensor in part.named_parameters(recurse=False):
            if tensor.ndim > 1:
                bound = (6 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound)
            elif name == "weight":
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.uniform_(-0.1, 0.1)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            assert part.num_batches_tracked is not None
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.num_batches_tracked.zero_()


def features(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The published implementation's last map and its logits."""
    if hasattr(module, "forward_features"):  # timm
        return module.forward_features(x), module(x)  # type: ignore[operator]
    if not hasattr(module, "avgpool"):  # torchvision's that pool by a function, after a ReLU by a function or not
        last = module.features(x)  # type: ignore[operator]
        return last.relu() if isinstance(module, torchvision.models.DenseNet) else last, module(x)
    seen = []
    hook = module.avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))  # type: ignore[union-attr, operator]
    logits = module(x)
    hook.remove()
    return seen[0], logits


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a part of the largest value."""
    assert ours.shape == theirs.shape and theirs.std() > 1e-3
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_the_table_is_covered():
    assert set(VARIANTS) == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_names_shapes_and_counts_are_the_published(name: str):
    with torch.device("meta"):
        ours = build(name)
        assert sum(p.numel() for p in ours.parameters()) == REFERENCES[name].params
        if (make := REFERENCES[name].make) is None:
            return
        theirs = make()
    shapes = {key: tensor.shape for key, tensor in published(ours).items()}
    assert shapes == {renamed(name, key): tensor.shape for key, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("name", [name for name, reference in REFERENCES.items() if reference.make])
@torch.no_grad()
def test_features_and_logits_equal_the_published_implementation(name: str):
    reference = REFERENCES[name]
    assert reference.make
    torch.manual_seed(0)
    ours, theirs = without_weights(lambda: build(name)), without_weights(reference.make)
    assert isinstance(ours, Network)
    fill(ours)
    tensors = published(ours)
    theirs.load_state_dict({key: tensors[renamed(name, key)] for key in theirs.state_dict()}, assign=True)
    x = torch.randn(2, 3, *reference.size)
    expected, expected_logits = features(theirs, x)
    found = ours.features(x)
    assert difference(found, expected) < 1e-5
    assert difference(ours.head(found), expected_logits) < 1e-5
