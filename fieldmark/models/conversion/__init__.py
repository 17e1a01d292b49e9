"""A file of weights under the names of any library that has the network -> our names, form and preprocessing.

A file of tensors does not say which library it is from. Its names say that; where two networks have the same names, the
`config.json` beside it, which timm writes on the hub, or the file's own name.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.models.conversion import keras, torch_names
from fieldmark.models.conversion.keras_file import SUFFIXES, read_keras_file
from fieldmark.models.conversion.layers import compensate_epsilon
from fieldmark.models.network import Preprocessing
from fieldmark.models.published import HALF_MEAN_STD, IMAGENET_MEAN_STD, IMAGENET_PREPROCESSING, PublishedWeights
from fieldmark.models.state import load_state
from fieldmark.models.weights import is_own_format, read_weights, rename_key
from fieldmark.models.zoo import VARIANTS

__all__ = ["FileWeights", "read_file"]


@dataclass(frozen=True)
class FileWeights:
    """The weights of a file in our terms.

    Attributes:
        state: tensors under our published names, or under our own as a bundle has them.
        form: the library whose form of the architecture they need, a key of `Variant.forms`; None for the published.
        preprocessing: what they expect; None if that of the published weights is to be assumed.
        note: what had to be assumed, a line for people.
    """

    state: dict[str, Tensor]
    form: str | None = None
    preprocessing: Preprocessing | None = None
    note: str | None = None


@dataclass(frozen=True)
class _TimmConfig:
    """What is known of a file with timm's names; `preprocessing` is None if no `config.json` is beside it."""

    architecture: str
    preprocessing: Preprocessing | None
    is_assumed: bool = False


def read_file(path: Path, backbone: str, row: PublishedWeights | None) -> FileWeights:
    """Read the weights of a backbone from a .safetensors, .pth, .h5 or .keras file, without running code of the file.

    Raises:
        FieldmarkError: there is no such file, it cannot be read, or no network of its library is this backbone.
    """
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _from_keras(path, backbone, row)
    state = read_weights(path)
    if is_own_format(state):
        return _from_bundle(path, state, row)
    state = row.convert(state) if row else state
    if backbone.startswith("efficientnet_b") and "features.0.0.weight" in state:
        return _from_torchvision(state, backbone)
    return _from_timm(path, state, backbone, row)


def _from_keras(path: Path, backbone: str, row: PublishedWeights | None) -> FileWeights:
    if backbone not in keras.KERAS_NETWORKS:
        known = ", ".join(keras.KERAS_NETWORKS)
        raise FieldmarkError(f"{path}: keras.applications has no {backbone}: a file of Keras fits {known}")
    arrays = read_keras_file(path)
    mean_std = keras.find_mean_std(backbone, arrays)
    preprocessing = replace(_published(row), mean=mean_std.mean, std=mean_std.std, interpolation="bilinear")
    form = "keras" if "keras" in VARIANTS[backbone].forms else None
    return FileWeights(keras.convert_arrays(backbone, arrays), form, preprocessing)


def _from_bundle(path: Path, state: dict[str, Tensor], row: PublishedWeights | None) -> FileWeights:
    """Weights that training wrote, which hold their form and their normalization."""
    try:
        _, record = load_state(path)
        values = record["preprocessing"]
        mean_std = {key: tuple(map(float, values[key])) for key in ("mean", "std")}
        known = replace(_published(row), **mean_std, interpolation=str(values["interpolation"]))
        return FileWeights(state, record["network"]["form"], known)
    except (FieldmarkError, SafetensorError, KeyError, TypeError):  # of an earlier version, or not of ours
        return FileWeights(state)


def _from_torchvision(state: dict[str, Tensor], backbone: str) -> FileWeights:
    """torchvision's EfficientNet: symmetric padding; up to B4 the epsilon is PyTorch's own."""
    state = {rename_key(key, torch_names.EFFICIENTNET_OF_TORCHVISION): t for key, t in state.items()}
    state = compensate_epsilon(state, VARIANTS[backbone], 1e-5 if backbone[-1] in "01234" else 1e-3)
    return FileWeights(state, "torchvision", _torchvision_preprocessing(backbone))


def _torchvision_preprocessing(backbone: str) -> Preprocessing:
    from torchvision.models import get_model_weights  # half a second to import

    transform = get_model_weights(backbone)["IMAGENET1K_V1"].transforms()  # type: ignore[index]  # an enumeration
    mean, std = (tuple(round(255 * value, 6) for value in values) for values in (transform.mean, transform.std))
    size = transform.crop_size[0]
    return Preprocessing(size, size / transform.resize_size[0], mean, std, transform.interpolation.value)


def _from_timm(path: Path, state: dict[str, Tensor], backbone: str, row: PublishedWeights | None) -> FileWeights:
    """timm's names; also those that torchvision and we share with it."""
    config = _timm_config(path, backbone)
    known = config.preprocessing
    if torch_names.has_gates_of_timm(state):
        return FileWeights(torch_names.rename_senet(state), "timm", known or _timm_default(config, row))
    has_several_names = backbone.startswith("efficientnet_") or backbone in torch_names.MOBILENETS
    if not has_several_names or "conv_stem.weight" not in state:
        return FileWeights(state, None, known)
    variant, is_tf = VARIANTS[backbone], config.architecture.startswith("tf_")
    if backbone in torch_names.MOBILENETS:
        state, form = torch_names.rename_mobilenet(backbone, state), "keras" if is_tf else None
    else:
        state, form = {rename_key(key, row.renames if row else ()): t for key, t in state.items()}, None
        form = None if is_tf else "torchvision"
    state = compensate_epsilon(state, variant, 1e-3 if is_tf else 1e-5)
    return FileWeights(state, form, known or _timm_default(config, row), _note(path, backbone, config))


def _timm_config(path: Path, backbone: str) -> _TimmConfig:
    """The architecture and preprocessing by `config.json`; or the architecture by the file's name, or assumed."""
    architectures = torch_names.timm_architectures(backbone)
    try:
        values = io.read_json(path.with_name("config.json"))
        if values["architecture"] in architectures:
            return _TimmConfig(values["architecture"], _timm_preprocessing(values["pretrained_cfg"]))
    except (OSError, FieldmarkError, KeyError, TypeError, ValueError, IndexError):  # none, or of something else
        pass
    for architecture in sorted(architectures, key=len, reverse=True):
        if path.name.startswith(architecture):
            return _TimmConfig(architecture, None)
    return _TimmConfig(architectures[0], None, is_assumed=True)


def _timm_preprocessing(values: dict[str, Any]) -> Preprocessing:
    mean, std = (tuple(round(255 * float(value), 6) for value in values[key]) for key in ("mean", "std"))
    interpolation = "bilinear" if values["interpolation"] == "bilinear" else "bicubic"
    return Preprocessing(int(values["input_size"][-1]), float(values["crop_pct"]), mean, std, interpolation)


def _timm_default(config: _TimmConfig, row: PublishedWeights | None) -> Preprocessing:
    """The preprocessing of most of timm's weights of the architecture."""
    if config.architecture.startswith("tf_mobilenetv3"):
        return replace(_published(row), **HALF_MEAN_STD._asdict(), interpolation="bilinear")
    if config.architecture.startswith("tf_"):
        return _published(row)
    return replace(_published(row), **IMAGENET_MEAN_STD._asdict(), interpolation="bicubic")


def _note(path: Path, backbone: str, config: _TimmConfig) -> str | None:
    """A line if timm has another network with these names, and nothing says which it is."""
    others = [name for name in torch_names.timm_architectures(backbone) if name != config.architecture]
    if not config.is_assumed or not others:
        return None
    return (
        f"{path.name} has the names of two networks of timm and is taken for {config.architecture}; if it is "
        f"{others[0]}, let its name begin so, or put its config.json beside it"
    )


def _published(row: PublishedWeights | None) -> Preprocessing:
    return row.preprocessing if row else IMAGENET_PREPROCESSING
