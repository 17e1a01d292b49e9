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
from fieldmark.data.catalog import count
from fieldmark.exporters.onnx import TOLERANCE, VERIFIED, export, stamp, verify
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.sides import Sides, spread

Found = dict[str, Any]


def export_run(
    run: str | Path,
    out: str | Path,
    reporter: Reporter,
    *,
    photos: str | Path | None = None,
    int8: bool = False,
    openvino: bool = False,
) -> Found:
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
    info = bundle.read(run)
    sides = Sides.of(run, photos, info)
    if int8 and not (sides.train and sides.val):
        raise FieldmarkError(
            f"--int8 needs photos that {run} was trained on and photos that it was chosen by: give the run itself, "
            "or photos in train/ and val/"
        )
    runtime.prepare()
    network, known = bundle.network(run), bundle.known(run)
    some = [photo for _, photo in sides.each(spread(sides.val or sides.train, VERIFIED), np.asarray)]
    out.mkdir(parents=True)
    try:
        file = out / "model.onnx"
        export(network, known, info, file)
        checked = verify(network, known, info, Classifier(file), some)
        stamp(file, info | {"verified": checked})
        found: Found = {"files": [str(file)], **checked, "onnx": checked}
        if openvino:
            xml = out / "model.xml"
            intermediate.write(file, xml, info)
            checked = verify(network, known, info, intermediate.Intermediate(xml), some)
            intermediate.write(file, xml, info | {"verified": checked})
            found["files"] += [str(xml), str(xml.with_suffix(".bin"))]
            found["openvino"] = checked
            found["max_difference"] = max(found["max_difference"], checked["max_difference"])
            found["label_agreement"] = min(found["label_agreement"], checked["label_agreement"])
        if int8:
            from fieldmark.exporters.int8 import eight_bits

            small = out / "model_int8.onnx"
            found["int8"] = eight_bits(file, small, info, sides, reporter)
            found["files"].append(str(small))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return found


def equal(found: Found) -> bool:
    """Whether the files in 32 bits say what the network says."""
    return found["max_difference"] <= TOLERANCE and found["label_agreement"] == 1.0


# ---- what people read


def lines(found: Found) -> Iterator[str]:
    """What a person reads of an export."""
    yield from _compared("model.onnx", found["onnx"])
    if "openvino" in found:
        yield from _compared("model.xml", found["openvino"])
        yield "  computed in 32 bits: OpenVINO takes bfloat16 where it can, unless INFERENCE_PRECISION_HINT is f32"
    if "int8" in found:
        from fieldmark.exporters import int8

        yield from int8.lines("model_int8.onnx", found["int8"])
    yield from (f"Written: {file}" for file in found["files"])


def _compared(name: str, checked: Found) -> Iterator[str]:
    agreed = round(checked["label_agreement"] * checked["photos"])
    yield (
        f"{name} differs from the network by up to {checked['max_difference']:.1e} in a probability, "
        f"labels agree on {agreed} of {count(checked['photos'], 'photo')}"
    )
