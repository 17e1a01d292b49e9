"""The folder of a trained network: weights, classes, preprocessing, calibration; no pickle.

    bundle/  model.safetensors   the weights under the network's own names
             model.onnx          the same network with normalisation and calibration inside (fieldmark.exporters.onnx)
             known.safetensors   the out-of-distribution scorer (fieldmark.models.ood)
             bundle.json         everything else, also inside model.onnx

Reading `bundle.json` needs no torch; `save`, `load_network` and `load_ood_scorer` do.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import one_line
from fieldmark.data import image_hashes
from fieldmark.inference import hub

if TYPE_CHECKING:
    from torch import Tensor

    from fieldmark.models import Network
    from fieldmark.models.ood import OODScorer

FORMAT_VERSION = 1
"""Raised when an older Fieldmark could no longer read what a newer one writes."""

MODEL_ID_LENGTH = 12
"""Hex digits of the identifier of a model: among a million models, two agree by chance with a probability of 0.2 %."""
REQUIRED_KEYS = {"classes": list, "preprocessing": dict, "temperature": float, "threshold": float, "network": dict}
RECORDED_PACKAGES = ("fieldmark", "torch", "pillow", "numpy", "onnxruntime")


class PreprocessingInfo(TypedDict):
    """How an image becomes the network's input."""

    size: int
    """Side of the square input in pixels."""
    crop: float
    """Share of the shorter side that the central crop keeps, above 0 and at most 1."""
    mean: list[float]
    """Subtracted from each channel, in pixel units (0 to 255)."""
    std: list[float]
    """Each channel is divided by it, in pixel units."""
    interpolation: str
    """"bicubic" or "bilinear"."""
    fit: NotRequired[str]
    """"squash": the whole image is resized to a square; "crop", or no entry: its central square is taken."""
    boxes: NotRequired[bool]
    """Whether the network was trained on crops to the bounding boxes of the dataset (`--crop-boxes`)."""


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What `bundle.json` and the metadata of an exported model hold.

    Attributes:
        format: version of the format, at most `FORMAT_VERSION`.
        classes: class names in the order of the outputs.
        preprocessing: how an image becomes the network's input.
        temperature: divisor of the logits before the softmax, above 0.
        threshold: images with a `known_score` below it, between 0 and 1, are out of distribution.
        network: the specification of the network, as `fieldmark.build` takes it.
        fingerprint: hash of the training data.
        versions: versions of the libraries, by package.
        positive: of two classes, the one to be detected.
        decision: probability from which `positive` is predicted, between 0 and 1.
        precision: "int8" for a quantized model.
        verified: comparison of an exported model with the network (`fieldmark.exporters`).
        model: identifier of the model, 12 hex digits: weights, classes, preprocessing or calibration of two models with
            the same one are equal. An FP32 export has that of its run, an INT8 one its own; None in older bundles.
        extra: keys of later versions, which are passed on.
    """

    format: int
    classes: list[str]
    preprocessing: PreprocessingInfo
    temperature: float
    threshold: float
    network: dict[str, Any]
    fingerprint: str | None = None
    versions: dict[str, str | int] | None = None
    positive: str | None = None
    decision: float | None = None
    precision: str | None = None
    verified: dict[str, Any] | None = None
    model: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def decision_threshold(self) -> float:
        """The probability from which `positive` is predicted: `decision`, or one half where none was fitted."""
        return 0.5 if self.decision is None else self.decision

    @property
    def is_trained_on_crops(self) -> bool:
        """Whether the training images were cropped to bounding boxes."""
        return bool(self.preprocessing.get("boxes"))

    def to_dict(self) -> dict[str, Any]:
        """As in `bundle.json`; optional keys only if they are set."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return {name: value for name, value in values.items() if value is not None} | self.extra

    @classmethod
    def from_dict(cls, data: Any, source: object) -> "BundleInfo":
        """The reverse of `to_dict`; errors name the `source`.

        Raises:
            FieldmarkError: `data` is not a bundle's, is damaged, or a later version wrote it.
        """
        if not isinstance(data, dict) or not isinstance(data.get("format"), int):
            raise FieldmarkError(f"{source} was not made by Fieldmark")
        if data["format"] > FORMAT_VERSION:
            raise FieldmarkError(
                f"{source} was made by a later Fieldmark (format {data['format']}, this one reads up to "
                f"{FORMAT_VERSION}): install that one"
            )
        if missing := [key for key, kind in REQUIRED_KEYS.items() if not isinstance(data.get(key), kind)]:
            raise FieldmarkError(f"{source} is damaged: it has no {' and no '.join(missing)}")
        own = {item.name for item in fields(cls)} - {"extra"}
        return cls(
            **{key: value for key, value in data.items() if key in own},
            extra={key: value for key, value in data.items() if key not in own},
        )


def make_info(
    network: "Network",
    classes: list[str],
    preprocessing: Mapping[str, Any],
    temperature: float,
    threshold: float,
    fingerprint: str,
) -> BundleInfo:
    """The info of a trained network, with the versions of the libraries in use."""
    versions = runtime.describe_environment()
    return BundleInfo(
        format=FORMAT_VERSION,
        classes=classes,
        preprocessing=PreprocessingInfo(**preprocessing),
        temperature=temperature,
        threshold=threshold,
        network=network.spec.to_dict(),
        fingerprint=fingerprint,
        versions={package: versions[package] for package in RECORDED_PACKAGES if package in versions},
    )


def identify_model(info: BundleInfo, content: Iterable[bytes | memoryview]) -> str:
    """The identifier of a model: 12 hex digits of the SHA-256 of all that its predictions follow from.

    Args:
        info: of which libraries, training data and verification do not count.
        content: the weights, or the graph with them.
    """
    decisive = [info.classes, info.preprocessing, info.temperature, info.threshold, info.network]
    digest = hashlib.sha256(io.to_json(decisive).encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:MODEL_ID_LENGTH]


def save(
    folder: Path,
    info: BundleInfo,
    network: "Network",
    ood_scorer: "OODScorer",
    trained_on: image_hashes.ImageHashes | None = None,
) -> BundleInfo:
    """Write `model.safetensors`, `known.safetensors` and `bundle.json` into the folder.

    Args:
        trained_on: hashes of the training and validation images, which go with the weights.

    Returns:
        what `bundle.json` holds: the info, with the identifier of the model.
    """
    from fieldmark.models.state import iter_bytes, save_state

    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"network": info.network, "preprocessing": dict(info.preprocessing)}
    if trained_on is not None:
        record[image_hashes.TRAINED_ON_KEY] = trained_on.to_dict()
    save_state(folder / "model.safetensors", network.state_dict(), record)
    save_state(folder / "known.safetensors", ood_scorer.state_dict())
    weights = itertools.chain(iter_bytes(network.state_dict()), iter_bytes(ood_scorer.state_dict()))
    named = replace(info, model=identify_model(info, weights))
    io.write_json(folder / "bundle.json", named.to_dict())
    return named


def find_onnx_file(model: str | Path) -> Path:
    """The ONNX model of a run, a bundle folder, an exported file or an address on the hub.

    Raises:
        FieldmarkError: there is no model, or the run has not finished.
    """
    model = hub.download_bundle(str(model)) if hub.is_hub_address(model) else Path(model)
    if model.is_file() and model.suffix == ".onnx":
        return model
    for folder in (model / "bundle", model, *_chosen_bundle(model)):
        if (folder / "model.onnx").is_file():
            return folder / "model.onnx"
    if (model / "recipe.yaml").is_file():
        raise FieldmarkError(f"the run {model} has not finished; resume it: fieldmark train ... --out {model} --resume")
    raise FieldmarkError(f"{model} is no run, bundle or exported model" + ("" if model.exists() else ": it is missing"))


def resolve_run(run: str | Path) -> Path:
    """The run itself; of a search, that of the best trial."""
    folder = Path(run)
    best = sorted(folder.glob("best-*"))
    return best[0] if best and not (folder / "bundle").exists() else folder


def _chosen_bundle(folder: Path) -> Iterator[Path]:
    """The bundle of the best fold of a cross-validation, or of the best trial of a search."""
    try:
        bundle = io.read_json(folder / "metrics.json").get("bundle")
        yield folder / Path(bundle).parent.name / "bundle"
    except (OSError, AttributeError, TypeError, FieldmarkError):
        yield resolve_run(folder) / "bundle"


def read_info(model: str | Path) -> BundleInfo:
    """The `bundle.json` of a run or bundle.

    Raises:
        FieldmarkError: there is none, it is damaged, or a later version wrote it.
    """
    file = find_onnx_file(model).with_name("bundle.json")
    try:
        return BundleInfo.from_dict(io.read_json(file), file)
    except OSError as error:
        raise FieldmarkError(f"cannot read {file}: {error}") from None


def load_ood_scorer(model: str | Path) -> "OODScorer":
    """The out-of-distribution scorer: features (n, d), logits (n, classes) -> score (n,).

    Raises:
        FieldmarkError: it is missing, damaged, or of an earlier version.
    """
    from fieldmark.models import rebuild
    from fieldmark.models.ood import make_scorer

    info, file = read_info(model), find_onnx_file(model).with_name("known.safetensors")
    state = _load_tensors(file)
    if "class_means" not in state:
        raise FieldmarkError(f"{file} is of an earlier version: train again to export the network anew")
    try:
        scorer = make_scorer(rebuild(info.network))
        scorer.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise FieldmarkError(f"{file} is damaged: {one_line(error)}") from None
    return scorer.eval()


def load_network(model: str | Path) -> "Network":
    """The trained network as a torch module in eval mode: normalised images (n, 3, h, w) -> logits (n, classes).

    Raises:
        FieldmarkError: as `read_info`, or the weights are missing, damaged or of another network.
    """
    from fieldmark.models import Preprocessing, rebuild

    info, file = read_info(model), find_onnx_file(model).with_name("model.safetensors")
    state = _load_tensors(file)
    try:
        network = rebuild(info.network)
        network.load_state_dict(state)
        size, crop, mean, std, interpolation = (info.preprocessing[name] for name in Preprocessing.__annotations__)
        network.preprocessing = Preprocessing(size, crop, tuple(mean), tuple(std), interpolation)
    except (KeyError, TypeError, RuntimeError) as error:
        raise FieldmarkError(f"{file} is damaged or of another network: {one_line(error)}") from None
    return network.eval()


def read_trained_on(model: str | Path) -> image_hashes.ImageHashes | None:
    """Hashes of the images that a run or bundle was trained on; None if they were not kept, as by an exported file.

    Raises:
        FieldmarkError: they are damaged.
    """
    file = find_onnx_file(model).with_name("model.safetensors")
    try:
        return image_hashes.read_trained_on(file)
    except ValueError as error:
        raise FieldmarkError(f"{file}: {error}") from None


def _load_tensors(file: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise FieldmarkError(f"{file} is damaged: {one_line(error)}") from None
