"""Exported network + training and validation split -> its INT8 version and what that costs; refused if too much."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from onnx import ModelProto
from scipy.special import softmax

from fieldmark.core import runtime, timing
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize, printable
from fieldmark.evaluation import calibration
from fieldmark.evaluation.intervals import Z_95
from fieldmark.evaluation.paired import AccuracyChange, accuracy_change
from fieldmark.exporters.onnx import CALIBRATION_CONSTANTS, save_onnx, set_constants
from fieldmark.exporters.quantize import make_probe, quantize_model
from fieldmark.inference.bundle import BundleInfo, identify_model
from fieldmark.inference.classifier import CPU, Classifier, create_session
from fieldmark.inference.run_folder import RunSplits, sample_evenly
from fieldmark.models import ood

if TYPE_CHECKING:
    import onnxruntime as ort

T = TypeVar("T")

NUM_CALIBRATION_IMAGES = 128
"""Training images that give the activations their ranges: with 300 labels agree no more often."""
MAX_VALIDATION_IMAGES = 5000
"""Validation images on which the accuracy is compared, at most."""
NUM_TIMING_IMAGES = 10
"""Images by which the latency is measured, each several times."""
MIN_ACCURACY_CHANGE = -0.02
"""The change in accuracy must not be below this at the lower end of its 95 % interval."""
MAX_COST_RATIO = 0.95
"""INT8 is worth it if it reduces the size or the latency to this share at least."""


@dataclass(frozen=True)
class Int8Accuracy:
    """INT8 against FP32 on the validation split: shares between 0 and 1.

    Attributes:
        label_agreement: share of images to which both give one label.
        accuracy: of INT8.
        accuracy_fp32: of FP32.
        change: INT8 minus FP32.
    """

    label_agreement: float
    accuracy: float
    accuracy_fp32: float
    change: AccuracyChange

    def to_dict(self) -> dict[str, Any]:
        return {
            "label_agreement": self.label_agreement,
            "accuracy": self.accuracy,
            "accuracy_32_bits": self.accuracy_fp32,
            **self.change.to_dict(),
        }


@dataclass(frozen=True)
class Int8Report:
    """What INT8 costs and gains.

    Attributes:
        accuracy: comparison with FP32 on the validation split.
        bytes: size of the INT8 file.
        bytes_fp32: size of the FP32 file.
        seconds: median latency of one image on this machine, by number of threads.
        seconds_fp32: the same of the FP32 file.
    """

    accuracy: Int8Accuracy
    bytes: int
    bytes_fp32: int
    seconds: dict[int, float]
    seconds_fp32: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        return self.accuracy.to_dict() | {
            "bytes": self.bytes,
            "bytes_32_bits": self.bytes_fp32,
            "seconds_32_bits": {str(threads): seconds for threads, seconds in self.seconds_fp32.items()},
            "seconds": {str(threads): seconds for threads, seconds in self.seconds.items()},
        }

    def is_slower(self, ratio: float = 1.0) -> bool:
        """Whether INT8 takes more than this share of FP32's time, with every number of threads."""
        return all(self.seconds[n] > ratio * seconds for n, seconds in self.seconds_fp32.items())


@dataclass(frozen=True)
class _PairedOutputs:
    """Outputs of both models for the validation split: logits (n, classes), OOD score components (n, 3)."""

    labels: np.ndarray
    fp32_logits: np.ndarray
    int8_logits: np.ndarray
    ood_components: np.ndarray


def export_int8(file: Path, int8_file: Path, info: BundleInfo, splits: RunSplits, reporter: Reporter) -> Int8Report:
    """Quantize an exported model to INT8: calibrated on training images, verified against FP32 on validation images.

    Temperature, known_score and thresholds are fitted to the outputs of the INT8 model.

    Args:
        file: the FP32 model, written by `export_onnx`.
        int8_file: where the INT8 model goes.
        info: the info of the bundle.
        splits: the run's splits, neither of them empty.
        reporter: progress reporter.

    Raises:
        FieldmarkError: the accuracy may fall by more than 2 points, or neither size nor latency falls.
    """
    quantized = _quantize(file, splits, reporter)
    outputs = _collect_outputs(file, quantized, splits, info.classes, reporter)
    accuracy = _compare_accuracy(outputs)
    if accuracy.change.ci95[0] < MIN_ACCURACY_CHANGE:
        raise FieldmarkError(_format_refusal(accuracy))
    info = recalibrate(quantized, info, outputs.int8_logits, outputs.ood_components, outputs.labels)
    model = identify_model(info, [quantized.SerializeToString()])
    save_onnx(quantized, replace(info, precision="int8", verified=accuracy.to_dict(), model=model), int8_file)
    report = _measure_cost(file, int8_file, splits, accuracy)
    if report.bytes > MAX_COST_RATIO * report.bytes_fp32 and report.is_slower(MAX_COST_RATIO):
        raise FieldmarkError("INT8 makes this network neither smaller nor faster here: export without --int8")
    return report


def _quantize(file: Path, splits: RunSplits, reporter: Reporter) -> ModelProto:
    images = sample_evenly(splits.train, NUM_CALIBRATION_IMAGES)
    with reporter.progress_bar("calibrating", "photos") as advance:

        def map_images(function: Callable[[np.ndarray], T]) -> Iterator[T]:
            for k, (_, result) in enumerate(splits.map_images(images, function)):
                advance(k + 1, len(images))
                yield result

        return quantize_model(file, map_images)


def _collect_outputs(
    file: Path, quantized: ModelProto, splits: RunSplits, class_names: Sequence[str], reporter: Reporter
) -> _PairedOutputs:
    images = sample_evenly(splits.val, MAX_VALIDATION_IMAGES)
    infer_fp32, infer_int8 = Classifier(file, CPU).infer, make_int8_probe(quantized)
    class_indices = {printable(name): k for k, name in enumerate(class_names)}
    rows = list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]()
    with reporter.progress_bar("comparing", "photos") as advance:
        pairs = splits.map_images(images, lambda image: (infer_fp32(image)["logits"], *infer_int8(image)))
        for photo, outputs in pairs:
            rows.append((class_indices[printable(photo.label)], *outputs))
            advance(len(rows), len(images))
    return _PairedOutputs(*(np.stack(column) for column in zip(*rows, strict=True)))


def make_int8_probe(quantized: ModelProto) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """An image -> its logits (classes,) and OOD score components (7,), see `OODScorer.score_components`."""
    components = next(node.input[0] for node in quantized.graph.node if "known.mean" in node.input)
    probe = make_probe(quantized, ["logits", components])

    def infer(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = probe(image)
        return outputs["logits"][0], outputs[components][0]

    return infer


def _compare_accuracy(outputs: _PairedOutputs) -> Int8Accuracy:
    before, after = outputs.fp32_logits.argmax(1), outputs.int8_logits.argmax(1)
    return Int8Accuracy(
        label_agreement=float((before == after).mean()),
        accuracy=float((after == outputs.labels).mean()),
        accuracy_fp32=float((before == outputs.labels).mean()),
        change=accuracy_change(before == outputs.labels, after == outputs.labels),
    )


def recalibrate(
    quantized: ModelProto, info: BundleInfo, logits: np.ndarray, ood_components: np.ndarray, labels: np.ndarray
) -> BundleInfo:
    """Fit temperature, OOD score and thresholds to the quantized model's outputs for the validation split.

    Temperature and the statistics of the OOD score are constants of the graph, which is changed in place.

    Args:
        quantized: the INT8 model.
        info: the info of the FP32 model.
        logits: (n, classes) of the INT8 model.
        ood_components: OOD score components (n, 7) of the INT8 model.
        labels: true class indices, (n,).

    Returns:
        The info of the INT8 model.
    """
    temperature = calibration.fit_temperature(logits, labels)
    components = torch.from_numpy(ood_components)
    statistics = ood.fit_statistics(components)
    scores = ood.combine_components(components, *statistics).numpy()
    values = (temperature, *(value.numpy() for value in statistics))
    set_constants(quantized, dict(zip(CALIBRATION_CONSTANTS, values, strict=True)))
    info = replace(info, temperature=temperature, threshold=calibration.fit_ood_threshold(scores))
    if info.positive is None:
        return info
    positive = info.classes.index(info.positive)
    probabilities = softmax(logits / temperature, axis=1)[:, positive]
    return replace(info, decision=calibration.fit_decision_threshold(probabilities, labels == positive))


def _measure_cost(file: Path, int8_file: Path, splits: RunSplits, accuracy: Int8Accuracy) -> Int8Report:
    images = [image for _, image in splits.map_images(sample_evenly(splits.val, NUM_TIMING_IMAGES), np.asarray)]
    pairs = {n: measure_latency([file, int8_file], images, n) for n in (1, runtime.available_cpus())}
    seconds_fp32, seconds = ({n: pair[k] for n, pair in pairs.items()} for k in (0, 1))
    return Int8Report(accuracy, int8_file.stat().st_size, file.stat().st_size, seconds, seconds_fp32)


def measure_latency(files: Sequence[Path], images: Sequence[np.ndarray], threads: int, rounds: int = 3) -> list[float]:
    """Median seconds of each model for one image, measured in turns since the machine may be busy."""

    def pass_over_images(session: "ort.InferenceSession") -> Callable[[], object]:
        def run() -> None:
            for image in images:
                session.run(None, {"photos": image[None]})

        return run

    calls = [pass_over_images(create_session(file, CPU, threads)) for file in files]
    return [spent.median / len(images) for spent in timing.measure_interleaved(calls, runs=rounds)]


# ---- texts


def format_report(name: str, report: Int8Report) -> Iterator[str]:
    """The report in English, line by line."""
    accuracy = report.accuracy
    yield (
        f"{name} (INT8) agrees with FP32 on {accuracy.label_agreement:.1%} of "
        f"{pluralize(accuracy.change.n, 'validation image')}; "
        f"accuracy {accuracy.accuracy:.1%} (FP32 {accuracy.accuracy_fp32:.1%}): {_format_change(accuracy.change)}"
    )
    yield f"  {report.bytes / 1e6:.1f} MB (FP32 {report.bytes_fp32 / 1e6:.1f} MB)"
    for n, fp32_seconds in report.seconds_fp32.items():
        milliseconds = f"{1e3 * report.seconds[n]:.1f} ms an image (FP32 {1e3 * fp32_seconds:.1f} ms)"
        yield f"  {milliseconds}, {pluralize(n, 'thread')} of this machine"
    if report.is_slower():
        yield "  INT8 is slower than FP32 on this machine: it only saves space"


def _format_change(change: AccuracyChange) -> str:
    low, high = (100 * bound for bound in change.ci95)
    return f"{100 * change.difference:+.1f} points ({low:+.1f} to {high:+.1f})"


def _format_refusal(accuracy: Int8Accuracy) -> str:
    enough = math.ceil(Z_95 / -MIN_ACCURACY_CHANGE) - 2
    too_few = f"; fewer than {enough} images can never rule that out" if accuracy.change.n < enough else ""
    return (
        "INT8 may cost more than 2 points of accuracy, so nothing is written: "
        f"on {pluralize(accuracy.change.n, 'validation image')} the accuracy is {accuracy.accuracy:.1%} "
        f"(FP32 {accuracy.accuracy_fp32:.1%}): {_format_change(accuracy.change)}, "
        f"labels agree on {accuracy.label_agreement:.1%}{too_few}; export without --int8"
    )
