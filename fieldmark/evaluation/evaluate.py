"""A run's classifier + labelled photos -> figures: of its own test photos, or of another folder."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.readers import read_catalog
from fieldmark.data.splits import read_split_file
from fieldmark.evaluation.metrics import Metrics, Predictions, compute_metrics
from fieldmark.inference.classifier import Classifier, ModelOutputs
from fieldmark.inference.run_folder import load_catalog, read_dataset_path

KEPT_OUTPUTS = ("logits", "probabilities", "known_score")
TTA_CROP_FRACTION = 7 / 8
"""The part of a photo's side that test-time augmentation looks at more closely."""


def evaluate(
    run: str | Path,
    photos: str | Path | None,
    reporter: Reporter,
    *,
    tta: bool = False,
    positive: str | None = None,
) -> Metrics:
    """Figures of a run's classifier on its test photos, or on another folder: its test/ if it has one, else all of it.

    Classes are aligned by name: photos of classes that the classifier does not know are left out and named in
    `warnings`, as are its classes of which there is no photo, and photos on which the run was trained.

    Args:
        run: a finished run; with `photos`, a bundle or an exported file will do.
        photos: another folder; without it, the run's own test photos.
        reporter: hears of the progress.
        tta: judge each photo in four views (`views`), by the mean of their logits.
        positive: of two classes the one that is looked for; without it, the classifier's own.

    Raises:
        FieldmarkError: no finished run, no photos, or none of its classes.
    """
    classifier = Classifier(run)
    decision_threshold, positive = _decision_threshold(classifier, positive)
    class_index = {printable(name): k for k, name in enumerate(classifier.classes)}
    groups: dict[str, str] = {}
    if photos is None:
        catalog, images, groups = _test_images(Path(run))
    else:
        catalog = read_catalog(photos, min_classes=1)
        for warning in catalog.warnings:
            reporter.warning(warning)
        images = [photo for photo in catalog.photos if photo.split == "test"] or list(catalog.photos)
    present = {printable(photo.label) for photo in images}
    unknown_classes = sorted(present - set(class_index))
    images = [photo for photo in images if printable(photo.label) in class_index]
    if not images:
        raise FieldmarkError(
            f"no photo in {catalog.root} is of a class that {run} knows: {summarize_names(list(class_index))}"
        )
    readable, outputs, unreadable = list[Photo](), list[ModelOutputs](), list[str]()
    with reporter.progress_bar("judging", "photos") as advance:
        for k, (photo, result) in enumerate(_predict_images(classifier, catalog, images, tta)):
            if result is None:
                unreadable.append(photo.path)
            else:
                readable.append(photo)
                outputs.append({name: result[name] for name in KEPT_OUTPUTS})  # not the evidence of all photos
            advance(k + 1, len(images))
    if not readable:
        raise FieldmarkError(f"no photo in {catalog.root} can be read; `fieldmark check` says why")
    training_paths = _training_paths(Path(run), catalog.source) & {photo.path for photo in images}
    warnings = [
        training_paths
        and f"{pluralize(len(training_paths), 'photo')} of these it was trained with: the figures flatter it",
        unknown_classes
        and f"photos of classes that the classifier does not know left out: {summarize_names(unknown_classes)}",
        (absent_classes := sorted(set(class_index) - present)) and f"no photos of {summarize_names(absent_classes)}",
        unreadable and f"{pluralize(len(unreadable), 'photo')} could not be read: {summarize_names(unreadable)}",
    ]
    predictions = Predictions(
        *(np.stack([found[name] for found in outputs]) for name in KEPT_OUTPUTS),
        labels=np.array([class_index[printable(photo.label)] for photo in readable]),
        groups=_group_indices(readable, groups),
    )
    result = compute_metrics(
        predictions, classifier.classes, classifier.info["threshold"], positive, decision_threshold
    )
    assert result is not None
    if photos is None:
        result["learning_curve"] = _read_learning_curve(Path(run))
    return result | {"warnings": [text for text in warnings if text]}


def tta_views(photo: np.ndarray) -> Iterator[np.ndarray]:
    """uint8 (s, s, 3) -> as it is, mirrored, its middle 7/8 at full size, that mirrored."""
    side = photo.shape[0]
    edge = side * (1 - TTA_CROP_FRACTION) / 2
    box = (edge, edge, side - edge, side - edge)
    zoomed = Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC, box)
    for view in (photo, np.asarray(zoomed)):
        yield view
        yield np.ascontiguousarray(view[:, ::-1])


def _predict_images(
    classifier: Classifier, catalog: Catalog, images: list[Photo], tta: bool
) -> Iterator[tuple[Photo, ModelOutputs | None]]:
    """Each photo with what is said of it; None where it cannot be read."""
    preprocessing, temperature = classifier.info["preprocessing"], classifier.info["temperature"]

    def predict_one(photo: Photo) -> ModelOutputs | None:
        box = photo.box if preprocessing.get("boxes") else None
        try:
            pixels = preprocess(catalog.read_bytes(photo), preprocessing, box)
        except UnreadableImageError:
            return None
        if not tta:
            return classifier.infer(pixels)
        view_outputs = [classifier.infer(view) for view in tta_views(pixels)]
        found = {name: np.mean([one[name] for one in view_outputs], 0) for name in ("logits", "known_score")}
        return found | {"probabilities": softmax(found["logits"] / temperature)}

    yield from zip(images, ordered_map(predict_one, images, runtime.available_cpus()), strict=True)


def _decision_threshold(classifier: Classifier, positive: str | None) -> tuple[float, str | None]:
    """The probability from which a photo is called positive, and which class that is."""
    own, decision = classifier.info.get("positive"), classifier.info.get("decision", 0.5)
    if positive is None or positive == own:
        return decision, own
    if len(classifier.classes) != 2 or positive not in classifier.classes:
        raise FieldmarkError(
            f"--positive {positive}: name one of two classes; these are {summarize_names(classifier.classes)}"
        )
    return 1 - decision, positive


def _group_indices(photos: list[Photo], group_of_path: dict[str, str]) -> np.ndarray:
    """A number for the group of each photo: that of the run's audit, or that which the photos come with."""
    names = [group_of_path.get(photo.path) or photo.group or f"\0{photo.path}" for photo in photos]
    return np.unique(names, return_inverse=True)[1]


def _training_paths(run: Path, root: Path) -> set[str]:
    """The photos below `root` that the run trained on or chose by, where it is the run's own folder."""
    try:
        if read_dataset_path(run) != root.resolve():
            return set()
        return {photo.path for photo in read_split_file(run / "split.csv") if photo.split != "test"}
    except FieldmarkError:  # a bundle alone does not know
        return set()


def _test_images(run: Path) -> tuple[Catalog, list[Photo], dict[str, str]]:
    """What a run was trained on, its test photos, and the group of each as the run's audit found it."""
    read_dataset_path(run)  # or it is no run
    rows = [photo for photo in read_split_file(run / "split.csv") if photo.split == "test"]
    if not rows:
        raise FieldmarkError(f"{run} has no test photos: give another folder to evaluate on")
    catalog = load_catalog(run)
    boxes = {photo.path: photo.box for photo in catalog.photos}
    groups = {row["path"]: row.get("group") or "" for row in io.read_csv(run / "predictions.csv")}
    return catalog, [replace(photo, box=boxes.get(photo.path)) for photo in rows], groups


def _read_learning_curve(run: Path) -> dict[str, Any] | None:
    """What the training found out about more photos, from its cached features (`curve.learning_curve`)."""
    try:
        return json.loads((run / "metrics.json").read_text(encoding="utf-8")).get("learning_curve")
    except (OSError, ValueError):
        return None
