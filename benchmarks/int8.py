"""What 8 bits cost and bring: RUNs exported with --int8, judged on their test photos; and what else was tried.

    python benchmarks/int8.py RUN... [--trials]

As built: label agreement with 32 bits, accuracy of both, the difference with its 95 % interval (Agresti & Min 2005),
coverage by each file's own threshold, size, and milliseconds a photo (median of 30, one thread, in turn). The trials
are judged on the validation photos, since a choice is made by them; `noise` is the mean square by which centred logits
differ, over that of the logits.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime.quantization as ort

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Photo
from fieldmark.data.splits import read_split_file
from fieldmark.evaluation.paired import accuracy_change
from fieldmark.exporters import export_run, quantize
from fieldmark.exporters.int8 import NUM_CALIBRATION_IMAGES, NUM_TIMING_IMAGES, measure_latency
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import RunSplits, sample_evenly

# ---- as built


def tested(run: Path, out: Path) -> None:
    """Print a line of the run's test photos."""
    try:
        export_run.export_run(run, out, Reporter(quiet=True), int8=True)
    except FieldmarkError as problem:
        print(f"{run.name:20} refused: {problem}")
        return
    files = [out / "model.onnx", out / "model_int8.onnx"]
    before, after = map(Classifier, files)
    rows = [row for row in read_split_file(run / "split.csv") if row.split == "test"]
    sides = RunSplits.from_run(run, None, before.info)
    told = list(sides.map_images(rows, lambda photo: (before.infer(photo), after.infer(photo))))
    labels = np.array([before.classes.index(photo.label) for photo, _ in told])
    was, now = (np.array([pair[k]["logits"].argmax() for _, pair in told]) for k in (0, 1))
    known = [
        np.mean([pair[k]["known_score"] >= classifier.info.threshold for _, pair in told])
        for k, classifier in enumerate((before, after))
    ]
    print(
        f"{run.name:20} test n = {len(told)}, {line(was, now, labels)}, known {known[0]:.1%} -> {known[1]:.1%}, "
        f"{cost(files, [photo for _, photo in sides.map_images(sample_evenly(rows, NUM_TIMING_IMAGES), np.asarray)])}"
    )


def line(was: np.ndarray, now: np.ndarray, labels: np.ndarray) -> str:
    """Answers (n,) in 32 and in 8 bits, true classes (n,) -> agreement, accuracies, their difference."""
    found = accuracy_change(was == labels, now == labels)
    low, high = (100 * bound for bound in found.ci95)
    pairs = f"{found.won} won {found.lost} lost"
    return (
        f"agree {(was == now).mean():.1%}, right {(was == labels).mean():.1%} -> {(now == labels).mean():.1%}, "
        f"{100 * found.difference:+.1f} ({low:+.1f} to {high:+.1f}), {pairs}"
    )


def cost(files: list[Path], photos: list[np.ndarray]) -> str:
    sizes, (one, two) = [file.stat().st_size / 1e6 for file in files], measure_latency(files, photos, 1)
    return f"{sizes[0]:.1f} -> {sizes[1]:.1f} MB, {1e3 * one:.1f} -> {1e3 * two:.1f} ms ({two / one:.2f} x)"


# ---- what was tried

Chosen = Callable[[onnx.GraphProto], list[onnx.NodeProto]]


@contextmanager
def otherwise(corrected: bool = True, chosen: Chosen | None = None, **options: Any) -> Iterator[None]:
    """`quantise` without its correction, with other nodes, or with other settings of onnxruntime's quantiser."""
    quantiser = ort.QDQQuantizer

    def made(*args: Any, **settings: Any) -> Any:
        return quantiser(*args, **settings | options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(ort, "QDQQuantizer", made))
        if not corrected:
            stack.enter_context(patch.object(quantize, "correct_biases", lambda *_: None))
        if chosen:
            stack.enter_context(patch.object(quantize, "select_nodes", chosen))
        yield


def without(kind: str, graph: onnx.GraphProto, chosen: Chosen = quantize.select_nodes) -> list[onnx.NodeProto]:
    return [node for node in chosen(graph) if node.op_type != kind]


def with_first(graph: onnx.GraphProto, chosen: Chosen = quantize.select_nodes) -> list[onnx.NodeProto]:
    first = next(node for node in graph.node if node.op_type == "Conv")
    after = [node for node in graph.node if first.output[0] in node.input and node.op_type in ("Clip", "Relu")]
    return [first, *after, *(node for node in chosen(graph) if node not in after)]


TRIALS: dict[str, dict[str, Any]] = {
    "convolutions alone, 7-bit weights": {"corrected": False, "chosen": partial(without, "Clip")},
    "and the clips behind them": {"corrected": False},
    "and 8-bit weights": {"corrected": False, "reduce_range": False},
    "as built: and corrected means": {},
    "as built, 8-bit weights": {"reduce_range": False},
    "as built, a scale for each layer": {"per_channel": False},
    "as built, the first convolution too": {"chosen": with_first},
}


def as_it_comes(file: Path, small: Path, photos: list[np.ndarray]) -> None:
    """onnxruntime's static quantisation with its own settings but for uint8 maps, which it advises for x86."""

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(photos)

        def get_next(self) -> dict[str, np.ndarray]:
            photo = next(self.left, None)
            return {} if photo is None else {"photos": photo[None]}

    ort.quantize_static(file, small, Reader(), activation_type=ort.QuantType.QUInt8)


def tried(run: Path, out: Path) -> None:
    """Print a line for each trial, on the validation photos of the run."""
    from fieldmark.exporters.onnx import export_onnx

    file, small, info = out / "model.onnx", out / "small.onnx", bundle.read_info(run)
    export_onnx(bundle.load_network(run), bundle.load_ood_scorer(run), info, file)
    sides = RunSplits.from_run(run, None, info)
    shown = [photo for _, photo in sides.map_images(sample_evenly(sides.train, NUM_CALIBRATION_IMAGES), np.asarray)]
    val = list[tuple[Photo, np.ndarray]](sides.map_images(sides.val, np.asarray))
    labels = np.array([info.classes.index(photo.label) for photo, _ in val])
    was = logits_of(file, val)

    def show(name: str) -> None:
        now = logits_of(small, val)
        gap = now - was - (now - was).mean(1, keepdims=True)
        noise = (gap**2).sum() / ((was - was.mean(1, keepdims=True)) ** 2).sum()
        told = line(was.argmax(1), now.argmax(1), labels)
        print(
            f"{run.name:20} {name:36} {told}, noise {noise:.4f}, {cost([file, small], shown[:NUM_TIMING_IMAGES])}",
            flush=True,
        )

    as_it_comes(file, small, shown)
    show("onnxruntime as it comes")
    for name, settings in TRIALS.items():
        with otherwise(**settings):
            small.write_bytes(quantize.quantize_model(file, lambda work: map(work, shown)).SerializeToString())
        show(name)


def logits_of(file: Path, photos: list[tuple[Photo, np.ndarray]]) -> np.ndarray:
    """(n, classes)."""
    session = quantize.create_session(str(file))
    return np.concatenate([np.asarray(session.run(["logits"], {"photos": photo[None]})[0]) for _, photo in photos])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--trials", action="store_true")
    options = parser.parse_args()
    for run in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            if options.trials:
                tried(run, Path(folder))
            tested(run, Path(folder) / "out")


if __name__ == "__main__":
    main()
