"""Network -> one ONNX file that includes normalisation, temperature scaling, class evidence and OOD score."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.core import io, timing
from fieldmark.core.runtime import silenced
from fieldmark.data.dataset import Normalize
from fieldmark.exporters import graph_cache
from fieldmark.inference.bundle import BundleInfo
from fieldmark.models import Network
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.ood import OODScorer

if TYPE_CHECKING:
    from onnx import ModelProto

METADATA_KEY = "fieldmark"
"""The metadata key under which an exported file holds the content of bundle.json."""
TOLERANCE = 1e-5
"""Largest difference of a probability between the network and its export that counts as equal."""
NUM_VERIFICATION_IMAGES = 32
"""Images on which an export is verified, at most: the network in torch takes longer for one than the export."""
CALIBRATION_CONSTANTS = ("temperature", "known.mean", "known.sd", "known.near_sd", "known.far_sd")
"""Names of the constants of the graph that are fitted to the validation split."""


@dataclass(frozen=True)
class ExportCheck:
    """Comparison of an exported model with the network on real images.

    Attributes:
        max_difference: largest difference of a probability.
        label_agreement: share of images with the same most probable class, between 0 and 1; None without images.
        images: number of images.
    """

    max_difference: float
    label_agreement: float | None
    images: int

    @property
    def is_equivalent(self) -> bool:
        """Whether all labels agree, and all probabilities within `TOLERANCE`."""
        return self.max_difference <= TOLERANCE and self.label_agreement in (1.0, None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "max_difference": self.max_difference,
            "label_agreement": self.label_agreement,
            "photos": self.images,
        }


class InferenceBackend(Protocol):
    """Anything that infers one image: the Classifier, OpenVINO's model."""

    def infer(self, image: np.ndarray, /) -> Mapping[str, np.ndarray]: ...


class ExportWrapper(nn.Module):
    """The graph that is exported: preprocessing's normalisation, the network, calibration.

    uint8 images (n, size, size, 3) -> probabilities and logits (n, classes), class evidence (n, h, w) of the most
    probable class, known_score (n,). Names of attributes become names of constants in the graph.
    """

    temperature: Tensor

    def __init__(self, network: Network, known: OODScorer, info: BundleInfo) -> None:
        super().__init__()
        preprocessing = info.preprocessing
        self.network, self.known = network, known
        self.register_buffer("temperature", torch.tensor(info.temperature))
        self.normalise = Normalize(tuple(preprocessing["mean"]), tuple(preprocessing["std"]))

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.network.features(self.normalise(photos.permute(0, 3, 1, 2)))
        logits = self.network.head(features)
        probabilities = (logits / self.temperature).softmax(1)
        known_score = self.known(self.network.head.score_features(features), logits)
        return probabilities, logits, self.network.head.evidence(features, probabilities.argmax(1)), known_score


def export_onnx(network: Network, known: OODScorer, info: BundleInfo, file: Path) -> None:
    """Write the network as one ONNX file with `info` in its metadata."""
    size = info.preprocessing["size"]
    wrapper = ExportWrapper(_copy_for_tracing(network, size), copy.deepcopy(known), info).cpu().eval()
    buffers = {name: wrapper.get_buffer(name) for name in CALIBRATION_CONSTANTS}
    values = {name: buffer.numpy().copy() for name, buffer in buffers.items()}
    for k, buffer in enumerate(buffers.values()):  # the exporter would drop / 1 and - 0, and make one of what is equal
        buffer.fill_(2.125 + k)
    model = graph_cache.trace(wrapper, f"{network.spec} {size}", lambda: _trace(wrapper, size))
    set_constants(model, values)
    save_onnx(model, info, file)


def _trace(wrapper: ExportWrapper, size: int) -> "ModelProto":
    photos = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore"), silenced("torch.onnx"):  # the exporter's own deprecations
        program = torch.onnx.export(
            wrapper,
            (photos,),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["photos"],
            output_names=["probabilities", "logits", "evidence", "known_score"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert program is not None
    return program.model_proto


def _copy_for_tracing(network: Network, size: int) -> Network:
    """An equivalent copy in eval mode on the CPU that torch traces in half the time.

    Batch norms are fused, as the exporter would do later, and nothing works in place, which it would have to undo.
    """
    network_copy = copy.deepcopy(network).cpu().eval()
    for module in network_copy.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # a setting, no tensor
    shape = (2, network_copy.spec.channels, size, size)
    photos = torch.linspace(-1, 1, math.prod(shape)).view(shape)  # any that are not constant
    network_copy.backbone = fuse_batch_norms(network_copy.backbone, photos)  # type: ignore[assignment]  # a Backbone, as what it copies
    return network_copy


def set_constants(model: "ModelProto", values: Mapping[str, Any]) -> None:
    """Set constants of the graph by name, as float32."""
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))


def save_onnx(model: "ModelProto", info: BundleInfo, file: Path) -> None:
    """Write the graph as a file with `info` as its only metadata."""
    import onnx

    del model.metadata_props[:]
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=io.to_json(info.to_dict())))
    with io.atomic_path(file) as partial:
        partial.write_bytes(model.SerializeToString())


def set_metadata(file: Path, info: BundleInfo) -> None:
    """Replace the metadata of an exported file."""
    import onnx

    save_onnx(onnx.load(file), info, file)


def measure_inference_seconds(network: Network, size: int) -> float:
    """Estimated seconds that the exported model takes for one image on the CPU: a sixteenth of a batch of 16 in torch.

    onnxruntime is as fast with one image as torch with a batch (docs/lab/prediction.md); torch with one is far slower.
    """
    model = copy.deepcopy(network).cpu().eval()
    images = torch.zeros(16, network.spec.channels, size, size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return timing.measure(lambda: model(images), runs=3).median / len(images)


def verify(
    network: Network, ood_scorer: OODScorer, info: BundleInfo, backend: InferenceBackend, images: Sequence[np.ndarray]
) -> ExportCheck:
    """Compare an exported model with the network on images, uint8 (size, size, 3)."""
    wrapper = ExportWrapper(network, ood_scorer, info).cpu().eval()
    differences, matching_labels = [0.0], 0
    with torch.inference_mode():
        for image in images:
            expected = wrapper(torch.from_numpy(image)[None])[0][0].numpy()
            actual = backend.infer(image)["probabilities"]
            differences.append(float(np.abs(expected - actual).max()))
            matching_labels += int(expected.argmax() == actual.argmax())
    return ExportCheck(max(differences), matching_labels / len(images) if images else None, len(images))
