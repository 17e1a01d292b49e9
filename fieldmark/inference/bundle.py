"""Trained network <-> the folder that carries it: weights, classes, preprocessing, calibration; no pickle.

    bundle/  model.safetensors   the weights under the network's own names
             model.onnx          the same network with preprocessing and calibration inside (fieldmark.exporters.onnx)
             known.safetensors   what tells photos like those of the training from others (fieldmark.models.ood)
             bundle.json         everything else, also inside model.onnx

Reading needs no torch; `network` and `write_weights` do.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError

if TYPE_CHECKING:
    from fieldmark.models import Network
    from fieldmark.models.ood import OODScorer

FORMAT_VERSION = 1
"""Raised when an older Fieldmark could no longer read what a newer one writes."""

REQUIRED_KEYS = {"classes": list, "preprocessing": dict, "temperature": float, "threshold": float, "network": dict}

BundleInfo = dict[str, Any]


def make_info(
    network: "Network",
    classes: list[str],
    preprocessing: BundleInfo,
    temperature: float,
    threshold: float,
    fingerprint: str,
) -> BundleInfo:
    """What `bundle.json` holds."""
    packages = ("fieldmark", "torch", "pillow", "numpy", "onnxruntime")
    versions = runtime.describe_environment()
    return {
        "format": FORMAT_VERSION,
        "classes": classes,
        "preprocessing": preprocessing,
        "temperature": temperature,
        "threshold": threshold,
        "network": network.spec.to_dict(),
        "fingerprint": fingerprint,
        "versions": {package: versions[package] for package in packages if package in versions},
    }


def save(folder: Path, info: BundleInfo, network: "Network", known: "OODScorer") -> None:
    """`model.safetensors`, `known.safetensors` and `bundle.json` into the folder."""
    from fieldmark.models.state import save_state

    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder / "model.safetensors", network.state_dict())
    save_state(folder / "known.safetensors", known.state_dict())
    io.write_json(folder / "bundle.json", info)


def find_onnx_file(model_path: str | Path) -> Path:
    """RUN, bundle folder or exported file -> the .onnx file that answers.

    Raises:
        FieldmarkError: nothing of ours is there, or the run has not finished.
    """
    model_path = Path(model_path)
    if model_path.is_file() and model_path.suffix == ".onnx":
        return model_path
    for folder in (model_path / "bundle", model_path):
        if (folder / "model.onnx").is_file():
            return folder / "model.onnx"
    if (model_path / "recipe.yaml").is_file():
        raise FieldmarkError(
            f"the run {model_path} has not finished; go on with: fieldmark train ... --out {model_path} --resume"
        )
    raise FieldmarkError(
        f"{model_path} is no run, bundle or exported model" + ("" if model_path.exists() else ": it does not exist")
    )


def validate_info(info: BundleInfo, source: object) -> BundleInfo:
    """The info itself, when this version can read it."""
    if not isinstance(info, dict) or not isinstance(info.get("format"), int):
        raise FieldmarkError(f"{source} was not made by Fieldmark")
    if info["format"] > FORMAT_VERSION:
        raise FieldmarkError(
            f"{source} was made by a later Fieldmark (format {info['format']}, this one reads up to {FORMAT_VERSION}): "
            "install that one"
        )
    if missing_keys := [
        key for key, required_type in REQUIRED_KEYS.items() if not isinstance(info.get(key), required_type)
    ]:
        raise FieldmarkError(f"{source} is damaged: it has no {' and no '.join(missing_keys)}")
    return info


def read_info(folder: str | Path) -> BundleInfo:
    """What the `bundle.json` of a run or bundle says.

    Raises:
        FieldmarkError: there is none, it is damaged, or a later version wrote it.
    """
    file = find_onnx_file(folder).with_name("bundle.json")
    try:
        return validate_info(json.loads(file.read_text(encoding="utf-8")), file)
    except (OSError, ValueError) as error:
        raise FieldmarkError(f"cannot read {file}: {error}") from None


def load_ood_scorer(folder: str | Path) -> "OODScorer":
    """What tells the training's photos from others: pooled features (n, c), logits (n, classes) -> score (n,).

    Raises:
        FieldmarkError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fieldmark.models.ood import OODScorer

    file = find_onnx_file(folder).with_name("known.safetensors")
    try:
        state = load_file(file)
        scorer = OODScorer(state["centroids"])
        scorer.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise FieldmarkError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from None
    return scorer.eval()


def load_network(folder: str | Path) -> "Network":
    """The trained network as a torch module in eval mode: normalised photos (n, 3, h, w) -> logits (n, classes).

    Raises:
        FieldmarkError: as `read`, or the weights are missing, damaged or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fieldmark.models import Preprocessing, rebuild

    info, file = read_info(folder), find_onnx_file(folder).with_name("model.safetensors")
    try:
        rebuilt = rebuild(info["network"])
        rebuilt.load_state_dict(load_file(file))
        size, crop, mean, std, interpolation = (info["preprocessing"][name] for name in Preprocessing.__annotations__)
        rebuilt.preprocessing = Preprocessing(size, crop, tuple(mean), tuple(std), interpolation)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise FieldmarkError(f"{file} is damaged or of another network: {' '.join(str(error).split())[:200]}") from None
    return rebuilt.eval()
