"""RUN folder -> the photos that a finished training was made of, where they still are, and its language."""

import json
from dataclasses import dataclass
from pathlib import Path

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language, finite_float, get_language
from fieldmark.data.catalog import Catalog
from fieldmark.data.readers import read_catalog
from fieldmark.recipes import recipe as recipes


def read_dataset_path(run: Path) -> Path:
    """What the run was trained on: a folder, an archive, a manifest.

    Raises FieldmarkError where the run does not say.
    """
    try:
        return Path(json.loads((run / "audit.json").read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldmarkError(f"{run} is no whole run ({error}): name the photos as well") from None


def load_catalog(run: Path) -> Catalog:
    """The photos in it; FieldmarkError where they are gone, too."""
    return read_catalog(read_dataset_path(run), min_classes=1)


def resolve_language(run: Path, lang: str | None = None) -> Language:
    """The language `lang`, else that of the run's recipe, else English. Raises FieldmarkError for an unknown one."""
    if lang is not None:
        return get_language(recipes.Recipe(lang=lang).lang)
    try:
        return get_language(recipes.read_recipe(run / "recipe.yaml").lang)
    except (FieldmarkError, OSError):  # a bundle alone, or a later version's recipe
        return ENGLISH


@dataclass(frozen=True)
class LabelledPrediction:
    """The prediction for one test image, a row of predictions.csv."""

    path: str
    label: str
    """The true class."""
    predicted: str
    confidence: float
    """Of the predicted class, 0 to 1."""
    known: bool
    """False if the image is rejected as out of distribution."""
    run: Path
    """The run, or the fold, that made the prediction."""

    @property
    def is_correct(self) -> bool:
        return self.label == self.predicted


def read_test_predictions(run: Path) -> list[LabelledPrediction]:
    """The predictions of a run for its test split; empty without predictions.csv.

    Raises:
        FieldmarkError: the file is damaged.
    """
    file, predictions = run / "predictions.csv", []
    for row in io.read_csv(file):
        is_known = str(row.get("known")).lower() in ("true", "1")
        try:
            path, label, predicted, confidence = (row[name] for name in ("path", "label", "predicted", "confidence"))
        except KeyError as error:
            raise FieldmarkError(f"{file} is damaged: it has no column {error}") from None
        if (value := finite_float(confidence)) is not None:
            predictions.append(LabelledPrediction(path, label, predicted, value, is_known, run))
    return predictions
