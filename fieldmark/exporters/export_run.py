"""Export a run: ONNX, INT8 ONNX and OpenVINO files, each verified against the network on real images."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize
from fieldmark.exporters import int8 as int8_export
from fieldmark.exporters.onnx import (
    NUM_VERIFICATION_IMAGES,
    ExportCheck,
    InferenceBackend,
    export_onnx,
    set_metadata,
    verify,
)
from fieldmark.inference import bundle
from fieldmark.inference.bundle import BundleInfo, resolve_run
from fieldmark.inference.classifier import CPU, Classifier
from fieldmark.inference.run_folder import RunSplits, sample_evenly
from fieldmark.models import Network
from fieldmark.models.ood import OODScorer


@dataclass(frozen=True)
class ExportReport:
    """Files of an export and how closely they match the network.

    Attributes:
        files: paths of the files that were written.
        onnx: verification of model.onnx.
        openvino: verification of model.xml, if it was written.
        int8: cost and gain of model_int8.onnx, if it was written.
    """

    files: tuple[str, ...]
    onnx: ExportCheck
    openvino: ExportCheck | None = None
    int8: int8_export.Int8Report | None = None

    @property
    def fp32_checks(self) -> tuple[ExportCheck, ...]:
        """The verifications of the FP32 files."""
        return (self.onnx,) if self.openvino is None else (self.onnx, self.openvino)

    @property
    def is_equivalent(self) -> bool:
        """Whether all FP32 files agree with the network."""
        return all(check.is_equivalent for check in self.fp32_checks)

    def to_dict(self) -> dict[str, Any]:
        """As in JSON: `max_difference` and `label_agreement` are those of the worse FP32 file."""
        report: dict[str, Any] = {
            "files": list(self.files),
            "max_difference": max(check.max_difference for check in self.fp32_checks),
            "label_agreement": min(check.label_agreement or 0.0 for check in self.fp32_checks),
            "photos": self.onnx.images,
            "onnx": self.onnx.to_dict(),
        }
        if self.openvino is not None:
            report["openvino"] = self.openvino.to_dict()
        if self.int8 is not None:
            report["int8"] = self.int8.to_dict()
        return report


@dataclass(frozen=True)
class _ExportInputs:
    """A run's network, and the images uint8 (size, size, 3) on which its exports are verified."""

    info: BundleInfo
    splits: RunSplits
    network: Network
    ood_scorer: OODScorer
    images: list[np.ndarray]

    def verify(self, backend: InferenceBackend) -> ExportCheck:
        return verify(self.network, self.ood_scorer, self.info, backend, self.images)


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
    """Write model.onnx and further formats into the new folder `out`, which is removed on failure.

    Args:
        run: a finished run; with `photos`, its bundle will do.
        out: a folder that does not exist.
        reporter: progress reporter.
        photos: the run's images if they were moved, or others of its classes.
        int8: also write model_int8.onnx, with convolutions in INT8.
        openvino: also write model.xml and model.bin for the OpenVINO runtime.

    Raises:
        FieldmarkError: no finished run, no images, or INT8 costs too much accuracy.
        ModuleNotFoundError: OpenVINO is not installed.
    """
    run, out = resolve_run(run), Path(out)
    io.require_new(out)
    if openvino:
        import_module("fieldmark.exporters.openvino")  # where it is not installed, nothing else is begun
    inputs = _load_inputs(run, photos, int8)
    out.mkdir(parents=True)
    try:
        file = out / "model.onnx"
        report = ExportReport((str(file),), _export_onnx(inputs, file))
        if openvino:
            xml = out / "model.xml"
            check = _export_openvino(inputs, file, xml)
            report = replace(report, openvino=check, files=(*report.files, str(xml), str(xml.with_suffix(".bin"))))
        if int8:
            int8_file = out / "model_int8.onnx"
            int8_report = int8_export.export_int8(file, int8_file, inputs.info, inputs.splits, reporter)
            report = replace(report, int8=int8_report, files=(*report.files, str(int8_file)))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def _load_inputs(run: Path, photos: str | Path | None, int8: bool) -> _ExportInputs:
    info = bundle.read_info(run)
    splits = RunSplits.from_run(run, photos, info)
    if int8 and not (splits.train and splits.val):
        raise FieldmarkError(
            f"--int8 needs training and validation images of {run}: pass the run itself, or images in train/ and val/"
        )
    verification_images = sample_evenly(splits.val or splits.train, NUM_VERIFICATION_IMAGES)
    images = [image for _, image in splits.map_images(verification_images, np.asarray)]
    return _ExportInputs(info, splits, bundle.load_network(run), bundle.load_ood_scorer(run), images)


def _export_onnx(inputs: _ExportInputs, file: Path) -> ExportCheck:
    export_onnx(inputs.network, inputs.ood_scorer, inputs.info, file)
    check = inputs.verify(Classifier(file, CPU))
    set_metadata(file, replace(inputs.info, verified=check.to_dict()))
    return check


def _export_openvino(inputs: _ExportInputs, file: Path, xml: Path) -> ExportCheck:
    from fieldmark.exporters.openvino import OpenVINOModel, save_openvino

    save_openvino(file, xml, inputs.info)
    check = inputs.verify(OpenVINOModel(xml))
    save_openvino(file, xml, replace(inputs.info, verified=check.to_dict()))
    return check


# ---- texts


def format_report(report: ExportReport) -> Iterator[str]:
    """The report in English, line by line."""
    yield _format_check("model.onnx", report.onnx)
    if report.openvino is not None:
        yield _format_check("model.xml", report.openvino)
        yield "  verified with INFERENCE_PRECISION_HINT=f32: by default OpenVINO may compute in bfloat16"
    if report.int8 is not None:
        yield from int8_export.format_report("model_int8.onnx", report.int8)
    yield from (f"Written: {file}" for file in report.files)


def _format_check(name: str, check: ExportCheck) -> str:
    return (
        f"{name}: probabilities differ from the network's by at most {check.max_difference:.1e}, labels agree on "
        f"{round((check.label_agreement or 0.0) * check.images)} of {pluralize(check.images, 'image')}"
    )
