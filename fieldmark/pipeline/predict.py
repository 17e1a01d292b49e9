"""Images -> predictions, by this process or a Ray cluster, written to a file as they come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.stdin_list import STDIN
from fieldmark.explanation import overlay
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction
from fieldmark.inference.ray import RayPredictor
from fieldmark.inference.writers import CsvWriter, JsonLinesWriter, ParquetWriter, PredictionWriter, write_predictions

WRITERS = {"csv": CsvWriter, "jsonl": JsonLinesWriter, "parquet": ParquetWriter}


@dataclass(frozen=True)
class PredictionOptions:
    """How `predict_images` predicts and what it writes.

    Attributes:
        top: number of most probable classes in a prediction.
        file_format: csv, jsonl or parquet, if predictions are written to `file` (parquet: a folder).
        resume: continue `file`: images that it has predictions of are left out.
        heatmap_dir: new folder for overlays of the class evidence.
        engine: plain (this process) or ray.
        address: of a Ray cluster, as auto or HOST:6379; None starts one on this machine.
        allow_private_hosts: also read images at addresses that lead to this machine or its own network; None for
            what FIELDMARK_ALLOW_PRIVATE_HOSTS says.
    """

    top: int = 5
    file_format: str | None = None
    file: Path | None = None
    resume: bool = False
    heatmap_dir: Path | None = None
    engine: str = "plain"
    address: str | None = None
    allow_private_hosts: bool | None = None

    def __post_init__(self) -> None:
        if self.resume and (self.heatmap_dir or not self.file):
            raise FieldmarkError("--resume continues a file of predictions: name it by --csv, --jsonl or --parquet")
        if self.engine not in ("plain", "ray"):
            raise FieldmarkError(f"--engine is {self.engine!r}, but can be plain or ray")
        if self.address and self.engine == "plain":
            raise FieldmarkError("--address is for --engine ray")
        if self.heatmap_dir and self.engine == "ray":
            raise FieldmarkError("--heatmap is for --engine plain")


def predict_images(model: str, images: Sequence[str], options: PredictionOptions) -> Iterator[Prediction]:
    """Predict images one by one; each prediction is in the file before it is yielded.

    Args:
        model: a run, its bundle, or an exported .onnx file.
        images: files, folders, globs, archives, shards, tables and addresses.

    Raises:
        FieldmarkError: there is no such model, no image, or the file cannot be written.
    """
    permission = options.allow_private_hosts
    predictor = (
        RayPredictor(model, options.address, allow_private_hosts=permission)
        if options.engine == "ray"
        else Classifier(model, allow_private_hosts=permission)
    )
    writer = _open_writer(options)  # after the predictor: a wrong model leaves no file
    n_predictions = 0
    for prediction in _stream(predictor, images, writer, options):
        n_predictions += 1
        yield prediction
    if not n_predictions and not options.resume:
        raise FieldmarkError(f"no image found in {' '.join(images)}: give files, or folders that contain images")


def _open_writer(options: PredictionOptions) -> PredictionWriter | None:
    if options.file is None or options.file_format is None:
        return None
    return WRITERS[options.file_format](options.file, options.resume)


def _is_done(writer: PredictionWriter | None, path: str) -> bool:
    """Whether the file has a prediction of this image; of what came from stdin one cannot know."""
    return writer is not None and path != STDIN and writer.has_prediction(path)


def _stream(
    predictor: Classifier | RayPredictor,
    images: Sequence[str],
    writer: PredictionWriter | None,
    options: PredictionOptions,
) -> Iterator[Prediction]:
    if options.heatmap_dir and isinstance(predictor, Classifier):
        predictions = overlay.predict_with_heatmaps(predictor, images, options.heatmap_dir, options.top)
    else:
        predictions = predictor.stream(images, options.top, partial(_is_done, writer))
    return write_predictions(predictions, writer) if writer else iter(predictions)
