"""Test images for the report, as tiles of a page: errors, confused pairs, and a class sheet."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.readers.files import FileTree
from fieldmark.data.thumbnails import thumbnail_uri, to_data_uri
from fieldmark.explanation import overlay
from fieldmark.explanation.class_sheet import select_examples
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import LabelledPrediction, read_test_predictions

Tile = dict[str, Any]
"""A prediction for a template: the fields of `LabelledPrediction` and its `picture`."""

MAX_CONFUSED_PAIRS, IMAGES_PER_PAIR = 3, 3
"""Confused pairs whose images are shown, and images of each."""
MAX_SHEET_CLASSES = 12
"""Classes on the evidence sheet, the hardest ones where there are more."""
TILE_PIXELS = 200
"""Pixels of a picture on it."""


def read_predictions(run: Path) -> list[LabelledPrediction]:
    """The test predictions of a run, or of all its folds."""
    return [prediction for folder in fold_folders(run) for prediction in read_test_predictions(folder)]


def fold_folders(run: Path) -> list[Path]:
    """The folds of a run, or the run alone."""
    return sorted(folder for folder in run.glob("fold-*") if folder.is_dir()) or [run]


class ImageTiles:
    """Predictions with `picture`: the image as a data URI, None where it is gone."""

    def __init__(self, files: FileTree | None) -> None:
        self.files = files
        self.load_classifier = cache(_load_classifier)

    def with_pictures(self, chosen: Iterable[LabelledPrediction]) -> list[Tile]:
        return [vars(one) | {"picture": thumbnail_uri(self.files, one.path)} for one in chosen]

    def with_evidence(self, prediction: LabelledPrediction) -> Tile:
        """Also with `evidence`: an overlay of that for the predicted class; None without the classifier."""
        classifier = self.load_classifier(prediction.run) if self.files else None
        if self.files is None or classifier is None:
            return {**self.with_pictures([prediction])[0], "evidence": None}
        try:
            pixels = preprocess(self.files.read_bytes(prediction.path), classifier.info.preprocessing)
        except (UnreadableImageError, OSError):
            return vars(prediction) | {"picture": None, "evidence": None}
        evidence = overlay.overlay_data_uri(pixels, classifier.infer(pixels)["evidence"], side=TILE_PIXELS)
        return vars(prediction) | {
            "picture": to_data_uri(Image.fromarray(pixels), TILE_PIXELS),
            "evidence": evidence,
        }


def _load_classifier(run: Path) -> Classifier | None:
    try:
        classifier = Classifier(run)
    except FieldmarkError:
        return None
    # With bounding boxes the input is not the whole image.
    return None if classifier.info.is_trained_on_crops else classifier


def confusion_examples(
    confused: list[dict[str, Any]], predictions: list[LabelledPrediction], tiles: ImageTiles
) -> list[dict[str, Any]]:
    """Most confident errors of the most frequent confusions, `wrong`, beside a correct image of that class, `right`."""
    by_confidence = sorted(predictions, key=lambda one: -one.confidence)
    examples = []
    for pair in confused[:MAX_CONFUSED_PAIRS]:
        label, predicted = pair["label"], pair["predicted"]
        wrong = [one for one in by_confidence if (one.label, one.predicted) == (label, predicted)][:IMAGES_PER_PAIR]
        right = [one for one in by_confidence if (one.label, one.predicted) == (predicted, predicted)][:1]
        if wrong:
            examples.append({**pair, "wrong": tiles.with_pictures(wrong), "right": tiles.with_pictures(right)})
    return examples


def class_sheet_rows(
    classes: list[str], predictions: list[LabelledPrediction], tiles: ImageTiles
) -> list[dict[str, Any]]:
    """Of each of the first classes the `typical`, the `confused` and the `uncertain` photo
    (`fieldmark.explanation.class_sheet.select_examples`), with the class evidence for the predicted class."""
    of_class = defaultdict[str, list[LabelledPrediction]](list)
    for one in predictions:
        of_class[one.label].append(one)
    return [
        {"name": name} | {kind: tiles.with_evidence(one) for kind, one in select_examples(of_class[name])}
        for name in [name for name in classes if of_class[name]][:MAX_SHEET_CLASSES]
    ]
