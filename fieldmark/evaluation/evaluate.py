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
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Catalog, Photo, count, listing, printable
from fieldmark.data.image import Unreadable, prepare
from fieldmark.data.readers import read
from fieldmark.data.splits import read_split
from fieldmark.evaluation.metrics import Answers, Figures, figures
from fieldmark.inference.classifier import Classifier, Found, ahead
from fieldmark.inference.run_folder import catalog_of, source_of

SAID = ("logits", "probabilities", "known_score")
CLOSER = 7 / 8
"""The part of a photo's side that test-time augmentation looks at more closely."""


def evaluate(
    run: str | Path,
    photos: str | Path | None,
    reporter: Reporter,
    *,
    tta: bool = False,
    positive: str | None = None,
) -> Figures:
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
    decision, positive = _decision(classifier, positive)
    number = {printable(name): k for k, name in enumerate(classifier.classes)}
    groups: dict[str, str] = {}
    if photos is None:
        catalog, judged, groups = _test_photos(Path(run))
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
    seen, answers, unreadable = list[Photo](), list[Found](), list[str]()
    with reporter.bar("judging", "photos") as advance:
        for k, (photo, found) in enumerate(_judged(classifier, catalog, judged, tta)):
            if found is None:
                unreadable.append(photo.path)
            else:
                seen.append(photo)
                answers.append({name: found[name] for name in SAID})  # not the evidence of all photos
            advance(k + 1, len(judged))
    if not seen:
        raise FieldmarkError(f"no photo in {catalog.root} can be read; `fieldmark check` says why")
    used = _trained_on(Path(run), catalog.source) & {photo.path for photo in judged}
    warnings = [
        used and f"{count(len(used), 'photo')} of these it was trained with: the figures flatter it",
        unknown and f"photos of classes that the classifier does not know left out: {listing(unknown)}",
        (gone := sorted(set(number) - present)) and f"no photos of {listing(gone)}",
        unreadable and f"{count(len(unreadable), 'photo')} could not be read: {listing(unreadable)}",
    ]
    together = Answers(
        *(np.stack([found[name] for found in answers]) for name in SAID),
        labels=np.array([number[printable(photo.label)] for photo in seen]),
        groups=_groups(seen, groups),
    )
    found = figures(together, classifier.classes, classifier.info["threshold"], positive, decision)
    assert found is not None
    if photos is None:
        found["learning_curve"] = _learning_curve(Path(run))
    return found | {"warnings": [text for text in warnings if text]}


def views(photo: np.ndarray) -> Iterator[np.ndarray]:
    """uint8 (s, s, 3) -> as it is, mirrored, its middle 7/8 at full size, that mirrored."""
    side = photo.shape[0]
    edge = side * (1 - CLOSER) / 2
    box = (edge, edge, side - edge, side - edge)
    closer = Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC, box)
    for view in (photo, np.asarray(closer)):
        yield view
        yield np.ascontiguousarray(view[:, ::-1])


def _judged(
    classifier: Classifier, catalog: Catalog, judged: list[Photo], tta: bool
) -> Iterator[tuple[Photo, Found | None]]:
    """Each photo with what is said of it; None where it cannot be read."""
    look, t = classifier.info["preprocessing"], classifier.info["temperature"]

    def judge(photo: Photo) -> Found:
        pixels = prepare(catalog.contents(photo), look, photo.box if look.get("boxes") else None)
        if not tta:
            return classifier.judge(pixels)
        each = [classifier.judge(view) for view in views(pixels)]
        found = {name: np.mean([one[name] for one in each], 0) for name in ("logits", "known_score")}
        return found | {"probabilities": softmax(found["logits"] / t)}

    sources = ((photo.path, photo) for photo in judged)
    for photo, (_, found) in zip(judged, ahead(sources, judge, runtime.cores()), strict=True):
        yield photo, None if isinstance(found, Unreadable) else found


def _decision(classifier: Classifier, positive: str | None) -> tuple[float, str | None]:
    """The probability from which a photo is called positive, and which class that is."""
    own, decision = classifier.info.get("positive"), classifier.info.get("decision", 0.5)
    if positive is None or positive == own:
        return decision, own
    if len(classifier.classes) != 2 or positive not in classifier.classes:
        raise FieldmarkError(f"--positive {positive}: name one of two classes; these are {listing(classifier.classes)}")
    return 1 - decision, positive


def _groups(photos: list[Photo], known: dict[str, str]) -> np.ndarray:
    """A number for the group of each photo: that of the run's audit, or that which the photos come with."""
    names = [known.get(photo.path) or photo.group or f"\0{photo.path}" for photo in photos]
    return np.unique(names, return_inverse=True)[1]


def _trained_on(run: Path, root: Path) -> set[str]:
    """The photos below `root` that the run trained on or chose by, where it is the run's own folder."""
    try:
        if source_of(run) != root.resolve():
            return set()
        return {photo.path for photo in read_split(run / "split.csv") if photo.split != "test"}
    except FieldmarkError:  # a bundle alone does not know
        return set()


def _test_photos(run: Path) -> tuple[Catalog, list[Photo], dict[str, str]]:
    """What a run was trained on, its test photos, and the group of each as the run's audit found it."""
    source_of(run)  # or it is no run
    rows = [photo for photo in read_split(run / "split.csv") if photo.split == "test"]
    if not rows:
        raise FieldmarkError(f"{run} has no test photos: give another folder to evaluate on")
    catalog = catalog_of(run)
    boxes = {photo.path: photo.box for photo in catalog.photos}
    groups = {row["path"]: row.get("group") or "" for row in io.rows(run / "predictions.csv")}
    return catalog, [replace(photo, box=boxes.get(photo.path)) for photo in rows], groups


def _learning_curve(run: Path) -> dict[str, Any] | None:
    """What the training found out about more photos, from its cached features (`curve.learning_curve`)."""
    try:
        return json.loads((run / "metrics.json").read_text(encoding="utf-8")).get("learning_curve")
    except (OSError, ValueError):
        return None
