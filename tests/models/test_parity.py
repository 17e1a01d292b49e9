"""Every network equals the published implementation: names, shapes, counts, features and logits, on random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from parity import difference, fill, without_weights
from slow import mark_slow_except
from torch import Tensor, nn

from fieldmark.models import VARIANTS, Network, build
from fieldmark.models.published import PUBLISHED_WEIGHTS
from fieldmark.models.weights import rename_key


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


NO_AUXILIARY = {"aux_logits": False, "transform_input": False, "init_weights": False}

# Parameters with 1000 classes and without auxiliary heads; those of DESIGN.md to the unit.
REFERENCES = {
    "alexnet": Reference(61_100_840, of_torchvision("alexnet"), (95, 130)),
    "alexnet_2012": Reference(62_378_344),
    "bn_inception": Reference(11_295_240),
    "efficientnet_b0": Reference(5_288_548, of_timm("tf_efficientnet_b0"), (77, 96)),
    "efficientnet_b1": Reference(7_794_184, of_timm("tf_efficientnet_b1"), (64, 65)),
    "efficientnet_b2": Reference(9_109_994, of_timm("tf_efficientnet_b2"), (50, 65)),
    "efficientnet_b3": Reference(12_233_232, of_timm("tf_efficientnet_b3")),
    "efficientnet_b4": Reference(19_341_616, of_timm("tf_efficientnet_b4")),
    "efficientnet_b5": Reference(30_389_784, of_timm("tf_efficientnet_b5"), (63, 64)),
    "efficientnet_b6": Reference(43_040_704, of_timm("tf_efficientnet_b6"), (50, 63)),
    "efficientnet_b7": Reference(66_347_960, of_timm("tf_efficientnet_b7"), (63, 50)),
    "efficientnet_lite0": Reference(4_652_008, of_timm("tf_efficientnet_lite0"), (77, 96)),
    "efficientnet_lite1": Reference(5_416_680, of_timm("tf_efficientnet_lite1"), (64, 65)),
    "efficientnet_lite2": Reference(6_092_072, of_timm("tf_efficientnet_lite2"), (50, 33)),
    "efficientnet_lite3": Reference(8_197_096, of_timm("tf_efficientnet_lite3"), (50, 33)),
    "efficientnet_lite4": Reference(13_006_568, of_timm("tf_efficientnet_lite4"), (33, 50)),
    "densenet121": Reference(7_978_856, of_torchvision("densenet121"), (95, 64)),
    "densenet161": Reference(28_681_000, of_torchvision("densenet161"), (64, 64)),
    "densenet169": Reference(14_149_480, of_torchvision("densenet169"), (64, 64)),
    "densenet201": Reference(20_013_928, of_torchvision("densenet201"), (64, 64)),
    "googlenet": Reference(6_624_904, of_torchvision("googlenet", **NO_AUXILIARY)),
    "inception_resnet_v2": Reference(55_843_464, of_timm("inception_resnet_v2"), (107, 110)),
    "inception_resnet_v2_paper": Reference(32_473_176),
    "inception_v3": Reference(23_834_568, of_torchvision("inception_v3", **NO_AUXILIARY), (107, 110)),
    "inception_v4": Reference(42_679_816, of_timm("inception_v4"), (107, 110)),
    "se_inception_resnet_v2": Reference(53_965_416),
    "mobilenet_v2": Reference(3_504_872, of_torchvision("mobilenet_v2"), (77, 64)),
    "mobilenet_v3_large": Reference(5_483_032, of_torchvision("mobilenet_v3_large"), (77, 64)),
    "mobilenet_v3_small": Reference(2_542_856, of_torchvision("mobilenet_v3_small"), (77, 64)),
    "resnet18": Reference(11_689_512, of_torchvision("resnet18"), (97, 64)),
    "resnet18_small": Reference(11_684_840, size=(32, 32)),
    "resnet34": Reference(21_797_672, of_torchvision("resnet34")),
    "resnet50": Reference(25_557_032, of_torchvision("resnet50")),
    "resnet101": Reference(44_549_160, of_torchvision("resnet101")),
    "resnet152": Reference(60_192_808, of_torchvision("resnet152")),
    "resnext50_32x4d": Reference(25_028_904, of_torchvision("resnext50_32x4d")),
    "resnext101_32x4d": Reference(44_177_704, of_timm("resnext101_32x4d")),
    "resnext101_32x8d": Reference(88_791_336, of_torchvision("resnext101_32x8d")),
    "resnext101_64x4d": Reference(83_455_272, of_torchvision("resnext101_64x4d")),
    "seresnet50": Reference(28_088_024, of_timm("legacy_seresnet50"), (75, 64)),
    "seresnet101": Reference(49_326_872, of_timm("legacy_seresnet101")),
    "seresnet152": Reference(66_821_848, of_timm("legacy_seresnet152")),
    "seresnext50_32x4d": Reference(27_559_896, of_timm("legacy_seresnext50_32x4d"), (75, 64)),
    "seresnext101_32x4d": Reference(48_955_416, of_timm("legacy_seresnext101_32x4d")),
    "senet154": Reference(115_088_984, of_timm("legacy_senet154")),
    "vgg11": Reference(132_863_336, of_torchvision("vgg11"), (64, 67)),
    "vgg11_bn": Reference(132_868_840, of_torchvision("vgg11_bn"), (64, 67)),
    "vgg11_mnist": Reference(17_246_248),
    "vgg13": Reference(133_047_848, of_torchvision("vgg13"), (64, 67)),
    "vgg13_bn": Reference(133_053_736, of_torchvision("vgg13_bn"), (64, 67)),
    "vgg16": Reference(138_357_544, of_torchvision("vgg16"), (64, 67)),
    "vgg16_bn": Reference(138_365_992, of_torchvision("vgg16_bn"), (64, 67)),
    "vgg16_c": Reference(133_638_952),
    "vgg19": Reference(143_667_240, of_torchvision("vgg19"), (64, 67)),
    "vgg19_bn": Reference(143_678_248, of_torchvision("vgg19_bn"), (64, 67)),
    "xception": Reference(22_855_952, of_timm("legacy_xception"), (75, 64)),
}


def published(network: Network) -> dict[str, Tensor]:
    """The network's own tensors under the published names."""
    names = VARIANTS[network.spec.backbone].head_names
    found = {}
    for key, tensor in network.state_dict().items():
        part, _, rest = key.partition(".")
        layer, _, kind = rest.rpartition(".")
        found[rest if part == "backbone" else f"{names[layer]}.{kind}"] = tensor
    return found


def ours_of(name: str, key: str) -> str:
    """A key of the published implementation -> the network's own published name."""
    return rename_key(key, PUBLISHED_WEIGHTS[name].renames if name in PUBLISHED_WEIGHTS else ())


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
    assert shapes == {ours_of(name, key): tensor.shape for key, tensor in theirs.state_dict().items()}


PUBLISHED = [name for name, reference in REFERENCES.items() if reference.make]
ONE_OF_EACH = {  # of each function that makes a backbone, the smallest
    "alexnet", "vgg11_bn", "googlenet", "inception_v3", "inception_v4", "inception_resnet_v2", "resnet18", "seresnet50",
    "densenet121", "efficientnet_b0", "efficientnet_lite0", "mobilenet_v2", "mobilenet_v3_small", "xception",
}  # fmt: skip


@pytest.mark.parametrize("name", mark_slow_except(ONE_OF_EACH, PUBLISHED))
@torch.no_grad()
def test_features_and_logits_equal_the_published_implementation(name: str):
    reference = REFERENCES[name]
    assert reference.make
    torch.manual_seed(0)
    ours, theirs = without_weights(lambda: build(name)), without_weights(reference.make)
    assert isinstance(ours, Network)
    fill(ours)
    tensors = published(ours)
    theirs.load_state_dict({key: tensors[ours_of(name, key)] for key in theirs.state_dict()}, assign=True)
    x = torch.randn(2, 3, *reference.size)
    expected, expected_logits = features(theirs, x)
    found = ours.features(x)
    assert difference(found, expected) < 1e-5
    assert difference(ours.head(found), expected_logits) < 1e-5
