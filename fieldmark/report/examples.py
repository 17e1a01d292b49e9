"""RUN + its photos -> the test photos that tell most, as tiles of a page: mistakes, confusions, an evidence sheet."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import finite_float
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.readers.files import FileTree
from fieldmark.data.thumbnails import thumbnail_uri, to_data_uri
from fieldmark.explanation import overlay
from fieldmark.explanation.class_sheet import select_examples
from fieldmark.inference.classifier import Classifier

Prediction = dict[str, Any]

MAX_CONFUSED_PAIRS, IMAGES_PER_PAIR = 3, 3
"""Confused pairs whose photos are shown, and so many of each."""
MAX_SHEET_CLASSES = 12
"""Classes on the evidence sheet, the hardest ones where there are more."""
TILE_PIXELS = 200
"""Pixels of a picture on it."""


def read_predictions(run: Path) -> list[Prediction]:
    """The answers in predictions.csv, of all folds where there are several, each with the `run` that gave it.

    `confidence` is a number, `correct` and `known` are truth values.
    """
    return [
        {
            **row,
            "run": folder,
            "confidence": confidence,
            "correct": row["label"] == row["predicted"],
            "known": str(row.get("known")).lower() in ("true", "1"),
        }
        for folder in fold_folders(run)
        for row in io.read_csv(folder / "predictions.csv")
        if (confidence := finite_float(row["confidence"])) is not None
    ]


def fold_folders(run: Path) -> list[Path]:
    """The folds of a run, or the run alone."""
    return sorted(folder for folder in run.glob("fold-*") if folder.is_dir()) or [run]


class ImageTiles:
    """Predictions -> the same with `picture`: the photo as a data URI, None where it cannot be had."""

    def __init__(self, files: FileTree | None) -> None:
        self.files = files
        self.load_classifier = cache(_load_classifier)

    def with_pictures(self, chosen: Iterable[Prediction]) -> list[Prediction]:
        return [{**one, "picture": thumbnail_uri(self.files, one["path"])} for one in chosen]

    def with_evidence(self, prediction: Prediction) -> Prediction:
        """With `evidence` for its answer too, laid over what the network saw; None where the classifier is gone."""
        classifier = self.load_classifier(prediction["run"]) if self.files else None
        if self.files is None or classifier is None:
            return {**self.with_pictures([prediction])[0], "evidence": None}
        try:
            pixels = preprocess(self.files.read_bytes(prediction["path"]), classifier.info["preprocessing"])
        except (UnreadableImageError, OSError):
            return {**prediction, "picture": None, "evidence": None}
        evidence = overlay.overlay_data_uri(pixels, classifier.infer(pixels)["evidence"], side=TILE_PIXELS)
        return {**prediction, "picture": to_data_uri(Image.fromarray(pixels), TILE_PIXELS), "evidence": evidence}


def _load_classifier(run: Path) -> Classifier | None:
    try:
        classifier = Classifier(run)
    except FieldmarkError:
        return None
    # One that looks into boxes sees something else than the whole photo.
    return None if classifier.info["preprocessing"].get("boxes") else classifier


def confusion_examples(
    confused: list[dict[str, Any]], predictions: list[Prediction], tiles: ImageTiles
) -> list[dict[str, Any]]:
    """Of the commonest confusions the surest photos, `wrong`, beside one that is that class, `right`."""
    by_confidence = sorted(predictions, key=lambda one: -one["confidence"])
    examples = []
    for pair in confused[:MAX_CONFUSED_PAIRS]:
        label, predicted = pair["label"], pair["predicted"]
        wrong = [one for one in by_confidence if (one["label"], one["predicted"]) == (label, predicted)][
            :IMAGES_PER_PAIR
        ]
        right = [one for one in by_confidence if (one["label"], one["predicted"]) == (predicted, predicted)][:1]
        if wrong:
            examples.append({**pair, "wrong": tiles.with_pictures(wrong), "right": tiles.with_pictures(right)})
    return examples


def class_sheet_rows(classes: list[str], predictions: list[Prediction], tiles: ImageTiles) -> list[dict[str, Any]]:
    """Of each of the first classes the `typical`, the `confused` and the `uncertain` photo
    (`fieldmark.explanation.class_sheet.select_examples`), with the class evidence for the predicted class."""
    of_class = defaultdict[str, list[Prediction]](list)
    for one in predictions:
        of_class[one["label"]].append(one)
    return [
        {"name": name} | {one["kind"]: tiles.with_evidence(one) for one in select_examples(of_class[name])}
        for name in [name for name in classes if of_class[name]][:MAX_SHEET_CLASSES]
    ]
