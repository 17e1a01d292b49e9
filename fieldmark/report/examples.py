"""RUN + its photos -> the test photos that tell most, as tiles of a page: mistakes, confusions, an evidence sheet."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import number
from fieldmark.data.image import Unreadable, prepare
from fieldmark.data.readers.files import Files
from fieldmark.data.thumbnails import tile, uri
from fieldmark.explanation import overlay
from fieldmark.explanation.class_sheet import chosen
from fieldmark.inference.classifier import Classifier

Prediction = dict[str, Any]

PAIRS, OF_A_PAIR = 3, 3
"""Confused pairs whose photos are shown, and so many of each."""
SHEET = 12
"""Classes on the evidence sheet, the hardest ones where there are more."""
SIDE = 200
"""Pixels of a picture on it."""


def predictions(run: Path) -> list[Prediction]:
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
        for folder in runs(run)
        for row in io.rows(folder / "predictions.csv")
        if (confidence := number(row["confidence"])) is not None
    ]


def runs(run: Path) -> list[Path]:
    """The folds of a run, or the run alone."""
    return sorted(folder for folder in run.glob("fold-*") if folder.is_dir()) or [run]


class Looks:
    """Predictions -> the same with `picture`: the photo as a data URI, None where it cannot be had."""

    def __init__(self, photos: Files | None) -> None:
        self.photos = photos
        self.classifier = cache(_classifier)

    def plain(self, chosen: Iterable[Prediction]) -> list[Prediction]:
        return [{**one, "picture": tile(self.photos, one["path"])} for one in chosen]

    def evident(self, one: Prediction) -> Prediction:
        """With `evidence` for its answer too, laid over what the network saw; None where the classifier is gone."""
        classifier = self.classifier(one["run"]) if self.photos else None
        if self.photos is None or classifier is None:
            return {**self.plain([one])[0], "evidence": None}
        try:
            pixels = prepare(self.photos.contents(one["path"]), classifier.info["preprocessing"])
        except (Unreadable, OSError):
            return {**one, "picture": None, "evidence": None}
        evidence = overlay.tile(pixels, classifier.judge(pixels)["evidence"], side=SIDE)
        return {**one, "picture": uri(Image.fromarray(pixels), SIDE), "evidence": evidence}


def _classifier(run: Path) -> Classifier | None:
    try:
        classifier = Classifier(run)
    except FieldmarkError:
        return None
    # One that looks into boxes sees something else than the whole photo.
    return None if classifier.info["preprocessing"].get("boxes") else classifier


def confusions(confused: list[dict[str, Any]], answers: list[Prediction], looks: Looks) -> list[dict[str, Any]]:
    """Of the commonest confusions the surest photos, `wrong`, beside one that is that class, `right`."""
    surest = sorted(answers, key=lambda one: -one["confidence"])
    found = []
    for pair in confused[:PAIRS]:
        label, said = pair["label"], pair["predicted"]
        wrong = [one for one in surest if (one["label"], one["predicted"]) == (label, said)][:OF_A_PAIR]
        right = [one for one in surest if (one["label"], one["predicted"]) == (said, said)][:1]
        if wrong:
            found.append({**pair, "wrong": looks.plain(wrong), "right": looks.plain(right)})
    return found


def sheet(classes: list[str], answers: list[Prediction], looks: Looks) -> list[dict[str, Any]]:
    """Of each of the first classes the `typical`, the `confused` and the `uncertain` photo
    (`fieldmark.explanation.class_sheet.chosen`), as far as there are such, beside the evidence for what was answered."""
    of_class = defaultdict[str, list[Prediction]](list)
    for one in answers:
        of_class[one["label"]].append(one)
    return [
        {"name": name} | {one["kind"]: looks.evident(one) for one in chosen(of_class[name])}
        for name in [name for name in classes if of_class[name]][:SHEET]
    ]
