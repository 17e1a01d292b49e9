"""Network -> one ONNX file with normalisation, temperature and evidence inside, checked against the original."""

import copy
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark import records
from fieldmark.dataset import Normalise
from fieldmark.known import Known
from fieldmark.network import Network
from fieldmark.predict import Classifier


class Answering(nn.Module):
    """uint8 photos (n, size, size, 3) -> probabilities and logits (n, classes), evidence (n, h, w), known_score (n,).

    The evidence is that of the top class.
    """

    def __init__(self, network: Network, known: Known, info: dict[str, Any]) -> None:
        super().__init__()
        look = info["preprocessing"]
        self.network, self.known, self.temperature = network, known, info["temperature"]
        self.normalise = Normalise(look["mean"], look["std"])

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.network.features(self.normalise(photos.permute(0, 3, 1, 2)))
        logits = self.network.head(features)
        probabilities = (logits / self.temperature).softmax(1)
        known_score = self.known(features.mean((2, 3)), logits)
        return probabilities, logits, self.network.head.evidence(features, probabilities.argmax(1)), known_score


def export(network: Network, known: Known, info: dict[str, Any], file: Path) -> None:
    """Write the network as ONNX; `info` (what bundle.json holds) goes along as metadata, so that one file is enough."""
    import onnx

    look = info["preprocessing"]
    answering = Answering(network, known, info).cpu().eval()
    photos = torch.zeros(2, look["size"], look["size"], 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            answering,
            (photos,),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["photos"],
            output_names=["probabilities", "logits", "evidence", "known_score"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert program is not None
    model = program.model_proto
    model.metadata_props.append(onnx.StringStringEntryProto(key="fieldmark", value=records.text(info)))
    half = file.with_suffix(".half")
    half.write_bytes(model.SerializeToString())
    half.replace(file)


def judging_time(network: Network, size: int) -> float:
    """About the seconds in which the export judges one photo on the CPU: a sixteenth of torch's batch of sixteen.

    onnxruntime is as fast with one photo as torch with a batch (docs/performance.md); torch with one is far slower.
    """
    judge = copy.deepcopy(network).cpu().eval()
    photos = torch.zeros(16, network.spec["channels"], size, size).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(4):
            began = time.perf_counter()
            judge(photos)
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / len(photos)


def verify(
    network: Network, known: Known, info: dict[str, Any], classifier: Classifier, photos: list[np.ndarray]
) -> dict[str, Any]:
    """Largest difference of a probability, and share of equal labels, between torch and the export on real photos."""
    answering = Answering(network, known, info).cpu().eval()
    differences, agreed = [0.0], 0
    with torch.inference_mode():
        for photo in photos:
            ours = answering(torch.from_numpy(photo)[None])[0][0].numpy()
            theirs = classifier.judge(photo)["probabilities"]
            differences.append(float(np.abs(ours - theirs).max()))
            agreed += int(ours.argmax() == theirs.argmax())
    return {
        "max_difference": max(differences),
        "label_agreement": agreed / len(photos) if photos else None,
        "photos": len(photos),
    }
