"""Predictions -> figures with intervals; temperature and threshold from the validation photos."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn import metrics

from fieldmark.errors import FieldmarkError
from fieldmark.photos.catalog import Catalog, Photo, count, listing, printable
from fieldmark.photos.decode import Unreadable, prepare
from fieldmark.photos.inputs import read
from fieldmark.photos.split import read_split
from fieldmark.predict import Classifier, ahead
from fieldmark.progress import Reporter

Figures = dict[str, Any]

FEW = 20
"""With fewer validation photos than this nothing is calibrated."""
COVERAGE = 0.95
"""Share of the validation photos that the threshold lets through as known."""


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(logits / T) fits the labels best.

    logits (n, classes), labels (n,) -> T between 0.05 and 20; 1 where there are too few photos to tell.
    Guo et al. 2017, "On calibration of modern neural networks".
    """
    if len(labels) < FEW:
        return 1.0

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / math.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean())

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def threshold(logits: np.ndarray, t: float) -> float:
    """The confidence below which a photo is "none of these": 95 % of the validation photos lie above it."""
    if len(logits) < FEW:
        return 0.0
    return float(np.quantile(softmax(logits / t, axis=1).max(axis=1), 1 - COVERAGE))


def figures(
    probabilities: np.ndarray, labels: np.ndarray, classes: list[str], least: float, positive: str | None = None
) -> Figures | None:
    """Every figure of one set of photos; None where there are no photos.

    Args:
        probabilities: (n, classes).
        labels: (n,) true class numbers.
        least: the threshold of `known`.
        positive: of two classes the one that is looked for; without it, the rarer of these photos.
    """
    n = len(labels)
    if n == 0:
        return None
    numbers = list(range(len(classes)))
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = predicted == labels
    interval = binomtest(int(right.sum()), n).proportion_ci(method="wilson")
    # scikit-learn documents the number; its annotation knows the words only.
    scores = metrics.precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)  # type: ignore[arg-type]
    precision, recall, f1, support = map(np.asarray, scores)
    seen = support > 0
    known = confidence >= least
    top5 = (np.argsort(-probabilities, axis=1, kind="stable")[:, :5] == labels[:, None]).any(1)
    found: Figures = {
        "accuracy": float(right.mean()),
        "top5": float(top5.mean()),
        "n": n,
        "ci95": [float(interval.low), float(interval.high)],
        "balanced_accuracy": float(recall[seen].mean()),
        "macro_f1": float(f1[seen].mean()),
        "ece": calibration_error(confidence, right),
        "loss": float(-np.log(np.maximum(probabilities[np.arange(n), labels], 1e-12)).mean()),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(s)}
            for name, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
        },
        "confusion": metrics.confusion_matrix(labels, predicted, labels=numbers).tolist(),
        "threshold": least,
        "coverage": float(known.mean()),
        "accuracy_known": float(right[known].mean()) if known.any() else None,
    }
    if len(classes) == 2 and seen.all():
        one = classes.index(positive) if positive else int(np.argmin(support))
        found |= {
            "roc_auc": float(metrics.roc_auc_score(labels == one, probabilities[:, one])),
            "sensitivity": float(recall[one]),
            "specificity": float(recall[1 - one]),
            "positive": classes[one],
        }
    return found


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equal bins (Naeini et al. 2015)."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = np.bincount(place, confidence - right, bins)
    return float(np.abs(sums).sum() / len(right))


def evaluate(run: str | Path, photos: str | Path | None, reporter: Reporter) -> Figures:
    """Figures of a run's classifier on its test photos, or on another folder: its test/ if it has one, else all of it.

    Classes are aligned by name: photos of classes that the classifier does not know are left out and named in
    `warnings`, as are its classes of which there is no photo, and photos on which the run was trained.

    Raises:
        FieldmarkError: no finished run, no photos, or none of its classes.
    """
    classifier = Classifier(run)
    number = {printable(name): k for k, name in enumerate(classifier.classes)}
    if photos is None:
        catalog, judged = _test_photos(Path(run))
    else:
        catalog = read(photos, least=1)
        for warning in catalog.warnings:
            reporter.warn(warning)
        judged = [photo for photo in catalog.photos if photo.split == "test"] or list(catalog.photos)
    present = {printable(photo.label) for photo in judged}
    unknown = sorted(present - set(number))
    judged = [photo for photo in judged if printable(photo.label) in number]
    if not judged:
        raise FieldmarkError(f"no photo in {catalog.root} is of a class that {run} knows: {listing(list(number))}")
    look = classifier.info["preprocessing"]

    def seen(photo: Photo) -> np.ndarray:
        return prepare(catalog.contents(photo), look, photo.box if look.get("boxes") else None)

    probabilities, labels, unreadable = [], [], []
    with reporter.bar("judging", "photos") as advance:
        prepared = ahead(((photo.path, photo) for photo in judged), seen)
        for k, (path, photo) in enumerate(prepared):
            if isinstance(photo, Unreadable):
                unreadable.append(path)
            else:
                probabilities.append(classifier.judge(photo)["probabilities"])
                labels.append(number[printable(judged[k].label)])
            advance(k + 1, len(judged))
    if not labels:
        raise FieldmarkError(f"no photo in {catalog.root} can be read; `fieldmark check` says why")
    used = _trained_on(Path(run), catalog.source) & {photo.path for photo in judged}
    warnings = [
        used and f"{count(len(used), 'photo')} of these it was trained with: the figures flatter it",
        unknown and f"photos of classes that the classifier does not know left out: {listing(unknown)}",
        (gone := sorted(set(number) - present)) and f"no photos of {listing(gone)}",
        unreadable and f"{count(len(unreadable), 'photo')} could not be read: {listing(unreadable)}",
    ]
    least, positive = classifier.info["threshold"], classifier.info.get("positive")
    found = figures(np.stack(probabilities), np.array(labels), classifier.classes, least, positive)
    assert found is not None
    return found | {"warnings": [text for text in warnings if text]}


def _trained_on(run: Path, root: Path) -> set[str]:
    """The photos below `root` that the run trained on or chose by, where it is the run's own folder."""
    try:
        if Path(json.loads((run / "audit.json").read_text(encoding="utf-8"))["folder"]) != root.resolve():
            return set()
        return {photo.path for photo in read_split(run / "split.csv") if photo.split != "test"}
    except (OSError, ValueError, KeyError, FieldmarkError):  # a bundle alone does not know
        return set()


def _test_photos(run: Path) -> tuple[Catalog, list[Photo]]:
    """What a run was trained on, and its test photos."""
    try:
        folder = Path(json.loads((run / "audit.json").read_text(encoding="utf-8"))["folder"])
        rows = [photo for photo in read_split(run / "split.csv") if photo.split == "test"]
    except (OSError, ValueError, KeyError) as error:
        raise FieldmarkError(f"{run} is no whole run ({error}): give the photos to evaluate on as well") from None
    if not rows:
        raise FieldmarkError(f"{run} has no test photos: give another folder to evaluate on")
    catalog = read(folder, least=1)
    boxes = {photo.path: photo.box for photo in catalog.photos}
    return catalog, [replace(photo, box=boxes.get(photo.path)) for photo in rows]
