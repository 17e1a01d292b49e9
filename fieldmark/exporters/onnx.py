"""Network -> one ONNX file with normalisation, temperature and evidence inside, checked against the original."""

import copy
import logging
import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.core import io
from fieldmark.data.dataset import Normalize
from fieldmark.exporters import graph_cache
from fieldmark.models import Network
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.ood import OODScorer

if TYPE_CHECKING:
    from onnx import ModelProto

METADATA_KEY = "fieldmark"
"""Under this name an exported file carries what bundle.json holds."""
TOLERANCE = 1e-5
"""Largest difference of a probability between the network and its export that is called equal."""
NUM_VERIFICATION_IMAGES = 32
"""Photos on which an export is held against the network: one takes torch longer than the export."""
CALIBRATION_CONSTANTS = ("temperature", "known.mean", "known.sd")
"""What is fitted to validation photos: constants of the graph under these names."""


class InferenceBackend(Protocol):
    """Whatever answers in the network's place: predict's Classifier, OpenVINO's run time."""

    def infer(self, image: np.ndarray, /) -> Mapping[str, np.ndarray]: ...


class ExportWrapper(nn.Module):
    """uint8 photos (n, size, size, 3) -> probabilities and logits (n, classes), evidence (n, h, w), known_score (n,).

    The evidence is that of the top class.
    """

    temperature: Tensor

    def __init__(self, network: Network, known: OODScorer, info: dict[str, Any]) -> None:
        super().__init__()
        preprocessing = info["preprocessing"]
        self.network, self.known = network, known
        self.register_buffer("temperature", torch.tensor(info["temperature"]))
        self.normalise = Normalize(preprocessing["mean"], preprocessing["std"])

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.network.features(self.normalise(photos.permute(0, 3, 1, 2)))
        logits = self.network.head(features)
        probabilities = (logits / self.temperature).softmax(1)
        known_score = self.known(features.mean((2, 3)), logits)
        return probabilities, logits, self.network.head.evidence(features, probabilities.argmax(1)), known_score


def export_onnx(network: Network, known: OODScorer, info: dict[str, Any], file: Path) -> None:
    """Write the network as ONNX; `info` (what bundle.json holds) goes along as metadata, so that one file is enough."""
    size = info["preprocessing"]["size"]
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
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
    """A copy that says the same, in eval mode on the CPU: torch takes half the time to trace it.

    Norms are folded, as the exporter would do later, and nothing works in place, which has to be undone.
    """
    network_copy = copy.deepcopy(network).cpu().eval()
    for module in network_copy.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # a setting, no tensor
    shape = (2, network_copy.spec.channels, size, size)
    photos = torch.linspace(-1, 1, math.prod(shape)).view(shape)  # any that are not all alike
    network_copy.backbone = fuse_batch_norms(network_copy.backbone, photos)  # type: ignore[assignment]  # a Backbone, as what it copies
    return network_copy


def set_constants(model: "ModelProto", values: Mapping[str, Any]) -> None:
    """Give constants of the graph other values, by name; they become float32."""
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))


def save_onnx(model: "ModelProto", info: dict[str, Any], file: Path) -> None:
    """The graph as a file, with `info` as its only metadata."""
    import onnx

    del model.metadata_props[:]
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=io.to_json(info)))
    temporary_file = file.with_suffix(".half")
    temporary_file.write_bytes(model.SerializeToString())
    temporary_file.replace(file)


def set_metadata(file: Path, info: dict[str, Any]) -> None:
    """Give an exported file other metadata."""
    import onnx

    save_onnx(onnx.load(file), info, file)


def measure_inference_seconds(network: Network, size: int) -> float:
    """About the seconds in which the export judges one photo on the CPU: a sixteenth of torch's batch of sixteen.

    onnxruntime is as fast with one photo as torch with a batch (docs/performance.md); torch with one is far slower.
    """
    model = copy.deepcopy(network).cpu().eval()
    photos = torch.zeros(16, network.spec.channels, size, size).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            model(photos)
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:]) / len(photos)


def verify(
    network: Network, known: OODScorer, info: dict[str, Any], backend: InferenceBackend, images: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Largest difference of a probability, and share of equal labels, between torch and the export on real photos."""
    wrapper = ExportWrapper(network, known, info).cpu().eval()
    differences, matching_labels = [0.0], 0
    with torch.inference_mode():
        for photo in images:
            expected = wrapper(torch.from_numpy(photo)[None])[0][0].numpy()
            actual = backend.infer(photo)["probabilities"]
            differences.append(float(np.abs(expected - actual).max()))
            matching_labels += int(expected.argmax() == actual.argmax())
    return {
        "max_difference": max(differences),
        "label_agreement": matching_labels / len(images) if images else None,
        "photos": len(images),
    }
