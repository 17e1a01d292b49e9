"""Exported network + training and validation photos -> the same in 8 bits, and what that costs; refused if too much."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from onnx import ModelProto
from scipy.special import softmax

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import Photo
from fieldmark.evaluation import calibration
from fieldmark.exporters.onnx import CALIBRATION_CONSTANTS, save_onnx, set_constants
from fieldmark.exporters.quantize import create_session, make_probe, quantize_model
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.sides import RunSplits, sample_evenly
from fieldmark.models import ood

Int8Report = dict[str, Any]
T = TypeVar("T")

NUM_CALIBRATION_IMAGES = 128
"""Training photos that give the maps their ranges: with 300 labels agree no more often."""
MAX_VALIDATION_IMAGES = 5000
"""Validation photos that say what it costs, where there are more."""
NUM_TIMING_IMAGES = 10
"""Photos by which speed is measured, each several times."""
MIN_ACCURACY_CHANGE = -0.02
"""The change in accuracy must not be below this at the lower end of its 95 % interval."""
MAX_COST_RATIO = 0.95
"""What may be left of the size, or of the time, if it is to be worth it."""
Z_95 = 1.959964


def export_int8(file: Path, int8_file: Path, info: Int8Report, splits: RunSplits, reporter: Reporter) -> Int8Report:
    """Write an exported file in 8 bits, calibrated on training photos, held against itself on validation photos.

    Temperature, known_score and thresholds are fitted to what it says of the latter.

    Args:
        file: what `export.export` wrote.
        small_file: where it goes.
        info: what bundle.json holds.
        sides: photos of the run, some on either side.
        reporter: hears of the progress.

    Returns:
        label_agreement, accuracy, accuracy_32_bits; difference, ci95, won, lost, n (see `change`); bytes and
        bytes_32_bits; seconds and seconds_32_bits that a photo takes, by the number of threads.

    Raises:
        FieldmarkError: the accuracy may fall by more than 2 points, or neither size nor time falls.
    """
    calibration_photos, validation_photos = (
        sample_evenly(splits.train, NUM_CALIBRATION_IMAGES),
        sample_evenly(splits.val, MAX_VALIDATION_IMAGES),
    )
    with reporter.progress_bar("calibrating", "photos") as advance:

        def map_images(function: Callable[[np.ndarray], T]) -> Iterator[T]:
            for k, (_, result) in enumerate(splits.map_images(calibration_photos, function)):
                advance(k + 1, len(calibration_photos))
                yield result

        quantized = quantize_model(file, map_images)
    infer_fp32, infer_int8 = Classifier(file).infer, make_int8_probe(quantized)
    outputs = list[tuple[Photo, Int8Report]]()
    with reporter.progress_bar("comparing", "photos") as advance:
        for output in splits.map_images(
            validation_photos, lambda photo: infer_int8(photo) | {"before": infer_fp32(photo)["logits"]}
        ):
            outputs.append(output)
            advance(len(outputs), len(validation_photos))
    class_indices = {printable(name): k for k, name in enumerate(info["classes"])}
    labels = np.array([class_indices[printable(photo.label)] for photo, _ in outputs])
    fp32_logits, int8_logits, parts = (
        np.stack([entry[name] for _, entry in outputs]) for name in ("before", "logits", "parts")
    )
    fp32_predictions, int8_predictions = fp32_logits.argmax(1), int8_logits.argmax(1)
    report: Int8Report = {"label_agreement": float((fp32_predictions == int8_predictions).mean())}
    report |= {
        "accuracy": float((int8_predictions == labels).mean()),
        "accuracy_32_bits": float((fp32_predictions == labels).mean()),
    }
    report |= paired_accuracy_change(fp32_predictions == labels, int8_predictions == labels)
    if report["ci95"][0] < MIN_ACCURACY_CHANGE:
        raise FieldmarkError(_format_refusal(report))
    info = recalibrate(quantized, info, int8_logits, parts, labels) | {"precision": "int8", "verified": report}
    save_onnx(quantized, info, int8_file)
    report = report | {"bytes": int8_file.stat().st_size, "bytes_32_bits": file.stat().st_size}
    timing_images = [
        photo for _, photo in splits.map_images(sample_evenly(validation_photos, NUM_TIMING_IMAGES), np.asarray)
    ]
    times = {str(n): measure_latency([file, int8_file], timing_images, n) for n in (1, runtime.available_cpus())}
    report["seconds_32_bits"], report["seconds"] = ({n: pair[k] for n, pair in times.items()} for k in (0, 1))
    if report["bytes"] > MAX_COST_RATIO * report["bytes_32_bits"] and _is_slower(report, MAX_COST_RATIO):
        raise FieldmarkError("8 bits make this network neither smaller nor faster here: export without --int8")
    return report


def make_int8_probe(quantized: ModelProto) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A photo -> its `logits` (classes,) and `parts` (3,), of which known_score is made (`Known.parts`)."""
    parts = next(node.input[0] for node in quantized.graph.node if "known.mean" in node.input)
    probe = make_probe(quantized, ["logits", parts])

    def infer(photo: np.ndarray) -> dict[str, np.ndarray]:
        outputs = probe(photo)
        return {"logits": outputs["logits"][0], "parts": outputs[parts][0]}

    return infer


def recalibrate(
    quantized: ModelProto, info: Int8Report, logits: np.ndarray, parts: np.ndarray, labels: np.ndarray
) -> Int8Report:
    """Fit temperature, known_score and thresholds to what a network says of its validation photos.

    What belongs in the graph is put there; the rest is in the info that comes back.

    Args:
        small: the network in 8 bits.
        info: what bundle.json holds.
        logits: (n, classes), and parts: (n, 3), both from `asked`.
        labels: the numbers of the true classes, (n,).
    """
    temperature = calibration.fit_temperature(logits, labels)
    components = torch.from_numpy(parts)
    mean, sd = ood.fit_statistics(components)
    scores = ood.combine_components(components, mean, sd).numpy()
    set_constants(quantized, dict(zip(CALIBRATION_CONSTANTS, (temperature, mean.numpy(), sd.numpy()), strict=True)))
    info = info | {
        "temperature": temperature,
        "threshold": calibration.fit_ood_threshold(scores),
    }
    if "positive" in info:
        positive_index = info["classes"].index(info["positive"])
        info["decision"] = calibration.fit_decision_threshold(
            softmax(logits / temperature, axis=1)[:, positive_index], labels == positive_index
        )
    return info


def paired_accuracy_change(correct_before: np.ndarray, correct_after: np.ndarray) -> Int8Report:
    """Whether each of n photos is told right before and after, (n,) truth values -> how much the accuracy changes.

    The interval is that of Agresti & Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": Wald's for paired shares, after half a photo was added to each of the four cells. So it has a width
    where all photos are told alike: with fewer than 96 its lower end is below -2 points whatever they say.

    Returns:
        difference: after minus before; ci95; won and lost: photos that only one of the two tells right; n.
    """
    won, lost, n = (
        int((correct_after & ~correct_before).sum()),
        int((correct_before & ~correct_after).sum()),
        len(correct_before),
    )
    centre = (won - lost) / (n + 2)
    half_width = Z_95 * math.sqrt(won + lost + 1 - (n + 2) * centre**2) / (n + 2)
    ci95 = [max(-1.0, centre - half_width), min(1.0, centre + half_width)]
    return {"difference": (won - lost) / max(1, n), "ci95": ci95, "won": won, "lost": lost, "n": n}


def measure_latency(files: Sequence[Path], images: Sequence[np.ndarray], threads: int, rounds: int = 3) -> list[float]:
    """Seconds that each file takes for a photo, one by one: the median. They take turns: the machine may be busy."""
    sessions = [create_session(str(file), threads) for file in files]
    times: list[list[float]] = [[] for _ in files]
    for round_number in range(rounds + 1):
        for ort_session, durations in zip(sessions, times, strict=True):
            for photo in images:
                started = time.perf_counter()
                ort_session.run(None, {"photos": photo[None]})
                if round_number:  # the first one warms up
                    durations.append(time.perf_counter() - started)
    return [statistics.median(spent) for spent in times]


# ---- what people read


def format_report(name: str, report: Int8Report) -> Iterator[str]:
    """What a person reads of a file in 8 bits."""
    yield (
        f"{name} says what 32 bits say on {report['label_agreement']:.1%} of "
        f"{pluralize(report['n'], 'validation photo')}; "
        f"right are {report['accuracy']:.1%}, in 32 bits {report['accuracy_32_bits']:.1%}: {_format_change(report)}"
    )
    yield f"  {report['bytes'] / 1e6:.1f} MB, in 32 bits {report['bytes_32_bits'] / 1e6:.1f} MB"
    for n, fp32_seconds in report["seconds_32_bits"].items():
        int8_seconds, threads = report["seconds"][n], pluralize(int(n), "thread")
        milliseconds = f"{1e3 * int8_seconds:.1f} ms a photo, in 32 bits {1e3 * fp32_seconds:.1f} ms"
        yield f"  {milliseconds} ({threads} on this machine)"
    if _is_slower(report):
        yield "  it is slower on this machine: what is gained is size"


def _is_slower(report: Int8Report, ratio: float = 1.0) -> bool:
    """Whether 8 bits take longer than this part of the time, with every number of threads."""
    return all(report["seconds"][n] > ratio * was for n, was in report["seconds_32_bits"].items())


def _format_change(report: Int8Report) -> str:
    low, high = (100 * bound for bound in report["ci95"])
    return f"{100 * report['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"


def _format_refusal(report: Int8Report) -> str:
    enough = math.ceil(Z_95 / -MIN_ACCURACY_CHANGE) - 2
    few = f"; fewer than {enough} can never show that it does not" if report["n"] < enough else ""
    return (
        "8 bits may cost more than 2 points of accuracy, so nothing is written: "
        f"of {pluralize(report['n'], 'validation photo')} {report['accuracy']:.1%} are right, in 32 bits "
        f"{report['accuracy_32_bits']:.1%}: {_format_change(report)}, "
        f"labels agree on {report['label_agreement']:.1%}{few}; "
        "export without --int8"
    )
