"""RUN -> files that answer elsewhere: ONNX, ONNX in 8 bits, OpenVINO; each held against the network on real photos."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize
from fieldmark.exporters.onnx import NUM_VERIFICATION_IMAGES, TOLERANCE, export_onnx, set_metadata, verify
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.sides import RunSplits, sample_evenly

ExportReport = dict[str, Any]


@runtime.torch_settings()
def export_run(
    run: str | Path,
    out: str | Path,
    reporter: Reporter,
    *,
    photos: str | Path | None = None,
    int8: bool = False,
    openvino: bool = False,
) -> ExportReport:
    """Write model.onnx, and what else is asked for, into the new folder `out`; of what fails nothing stays.

    Args:
        run: a finished run; with `photos`, its bundle will do.
        out: must not exist.
        reporter: hears of the progress.
        photos: where the run's photos are now, or others of its classes; without it, where they were.
        int8: model_int8.onnx as well, with convolutions in 8 bits.
        openvino: model.xml and model.bin as well, for OpenVINO's run time.

    Returns:
        "files", and of those in 32 bits together "max_difference" of a probability, "label_agreement" and "photos" on
        which they were held against torch; "onnx" and "openvino": the same of each; "int8": see `int8.eight_bits`.

    Raises:
        FieldmarkError: no finished run, no photos, or 8 bits cost too much.
        ModuleNotFoundError: OpenVINO is not there.
    """
    run, out = Path(run), Path(out)
    if os.path.lexists(out):
        raise FieldmarkError(f"{out} exists: give the export another --out")
    if openvino:
        from fieldmark.exporters import openvino as intermediate  # where there is no OpenVINO, nothing else is begun
    info = bundle.read_info(run)
    splits = RunSplits.from_run(run, photos, info)
    if int8 and not (splits.train and splits.val):
        raise FieldmarkError(
            f"--int8 needs photos that {run} was trained on and photos that it was chosen by: give the run itself, "
            "or photos in train/ and val/"
        )
    network, ood_scorer = bundle.load_network(run), bundle.load_ood_scorer(run)
    images = [
        photo
        for _, photo in splits.map_images(
            sample_evenly(splits.val or splits.train, NUM_VERIFICATION_IMAGES), np.asarray
        )
    ]
    out.mkdir(parents=True)
    try:
        file = out / "model.onnx"
        export_onnx(network, ood_scorer, info, file)
        verification = verify(network, ood_scorer, info, Classifier(file), images)
        set_metadata(file, info | {"verified": verification})
        report: ExportReport = {"files": [str(file)], **verification, "onnx": verification}
        if openvino:
            xml = out / "model.xml"
            intermediate.save_openvino(file, xml, info)
            verification = verify(network, ood_scorer, info, intermediate.OpenVINOModel(xml), images)
            intermediate.save_openvino(file, xml, info | {"verified": verification})
            report["files"] += [str(xml), str(xml.with_suffix(".bin"))]
            report["openvino"] = verification
            report["max_difference"] = max(report["max_difference"], verification["max_difference"])
            report["label_agreement"] = min(report["label_agreement"], verification["label_agreement"])
        if int8:
            from fieldmark.exporters.int8 import export_int8

            int8_file = out / "model_int8.onnx"
            report["int8"] = export_int8(file, int8_file, info, splits, reporter)
            report["files"].append(str(int8_file))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def is_equivalent(report: ExportReport) -> bool:
    """Whether the files in 32 bits say what the network says."""
    return report["max_difference"] <= TOLERANCE and report["label_agreement"] == 1.0


# ---- what people read


def format_report(report: ExportReport) -> Iterator[str]:
    """What a person reads of an export."""
    yield from _format_verification("model.onnx", report["onnx"])
    if "openvino" in report:
        yield from _format_verification("model.xml", report["openvino"])
        yield "  computed in 32 bits: OpenVINO takes bfloat16 where it can, unless INFERENCE_PRECISION_HINT is f32"
    if "int8" in report:
        from fieldmark.exporters import int8

        yield from int8.format_report("model_int8.onnx", report["int8"])
    yield from (f"Written: {file}" for file in report["files"])


def _format_verification(name: str, verification: ExportReport) -> Iterator[str]:
    matching_labels = round(verification["label_agreement"] * verification["photos"])
    yield (
        f"{name} differs from the network by up to {verification['max_difference']:.1e} in a probability, "
        f"labels agree on {matching_labels} of {pluralize(verification['photos'], 'photo')}"
    )
