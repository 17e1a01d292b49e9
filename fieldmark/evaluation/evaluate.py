"""Metrics of a run's classifier on its own test split, or on another data set whose classes are aligned by name."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.evaluation.results import LearningCurve, Metrics
from fieldmark.inference.classifier import Classifier, ModelOutputs
from fieldmark.inference.run_folder import load_catalog, read_dataset_path

PREDICTION_OUTPUTS = ("logits", "probabilities", "known_score")
"""Outputs of the model that are kept of each image, in the order of the fields of `Predictions`."""
TTA_CROP_FRACTION = 7 / 8
"""Side of the central crop of test-time augmentation, as a share of the image's."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Metrics):
    """Metrics of a classifier, with warnings on what they are based on."""

    warnings: tuple[str, ...]
    """Images of unknown classes, classes without images, images of the training, unreadable ones."""
    is_own_test_split: bool
    """Whether the images are the test split of the run itself."""
    learning_curve: LearningCurve | None = None
    """Of the run, with its own test split; None if it was not computed."""

    def to_dict(self) -> dict[str, Any]:
        curve = {"learning_curve": self.learning_curve and self.learning_curve.to_dict()}
        return super().to_dict() | (curve if self.is_own_test_split else {}) | {"warnings": list(self.warnings)}


@dataclass(frozen=True)
class Selection:
    """The images that a classifier is evaluated on."""

    catalog: Catalog
    images: list[Photo]
    """Those of the classifier's classes."""
    group_of_path: dict[str, str]
    """Groups as found by the run's audit; empty for another data set."""
    unknown_classes: list[str]
    """Classes of the data set that the classifier does not have."""
    absent_classes: list[str]
    """Classes of the classifier without an image."""


def evaluate(
    run: str | Path,
    photos: str | Path | None,
    reporter: Reporter,
    *,
    tta: bool = False,
    positive: str | None = None,
) -> Evaluation:
    """Metrics of a run's classifier on its test split, or on another data set: its test split if it has one, else all.

    Classes are aligned by name; images of other classes are left out.

    Args:
        run: a finished run; with `photos`, a bundle or an exported file will do.
        photos: another data set; by default the run's own test split.
        reporter: shows the progress.
        tta: test-time augmentation: average the logits of four views of each image (`tta_views`).
        positive: the positive one of two classes; by default the classifier's own.

    Raises:
        FieldmarkError: there is no finished run, no readable image, or no image of the classifier's classes.
    """
    classifier = Classifier(run)
    decision_threshold, positive = _decision_threshold(classifier, positive)
    selection = _select_images(classifier, Path(run), photos, reporter)
    predictions, unreadable = _predict(classifier, selection, tta, reporter)
    metrics = compute_metrics(predictions, classifier.classes, classifier.info.threshold, positive, decision_threshold)
    n_trained = len(_training_paths(Path(run), selection.catalog.source) & {photo.path for photo in selection.images})
    return Evaluation(
        **vars(metrics),
        warnings=tuple(_warnings(selection, n_trained, unreadable)),
        is_own_test_split=photos is None,
        learning_curve=_read_learning_curve(Path(run)) if photos is None else None,
    )


def _select_images(classifier: Classifier, run: Path, photos: str | Path | None, reporter: Reporter) -> Selection:
    """The images of the classifier's classes in the run's test split or in another data set."""
    groups: dict[str, str] = {}
    if photos is None:
        catalog, images, groups = _test_images(run)
    else:
        catalog = read_catalog(photos, min_classes=1)
        for warning in catalog.warnings:
            reporter.warning(warning)
        images = [photo for photo in catalog.photos if photo.split == "test"] or list(catalog.photos)
    classes, present = set(map(printable, classifier.classes)), {printable(photo.label) for photo in images}
    images = [photo for photo in images if printable(photo.label) in classes]
    if not images:
        names = summarize_names([printable(name) for name in classifier.classes])
        raise FieldmarkError(f"no image in {catalog.root} is of a class of {run}: {names}")
    return Selection(catalog, images, groups, sorted(present - classes), sorted(classes - present))


def _predict(
    classifier: Classifier, selection: Selection, tta: bool, reporter: Reporter
) -> tuple[Predictions, list[str]]:
    """Predictions of the readable images, and the paths of the others."""
    class_index = {printable(name): k for k, name in enumerate(classifier.classes)}
    readable, outputs, unreadable = list[Photo](), list[ModelOutputs](), list[str]()
    results = _infer_images(classifier, selection, tta)
    with reporter.progress_bar("evaluating", "photos") as advance:
        for k, (photo, output) in enumerate(zip(selection.images, results, strict=True)):
            if output is None:
                unreadable.append(photo.path)
            else:
                readable.append(photo)
                outputs.append({name: output[name] for name in PREDICTION_OUTPUTS})  # the evidence takes memory
            advance(k + 1, len(selection.images))
    if not readable:
        raise FieldmarkError(f"no image in {selection.catalog.root} can be read; see `fieldmark check`")
    predictions = Predictions(
        *(np.stack([output[name] for output in outputs]) for name in PREDICTION_OUTPUTS),
        labels=np.array([class_index[printable(photo.label)] for photo in readable]),
        groups=_group_indices(readable, selection.group_of_path),
    )
    return predictions, unreadable


def _warnings(selection: Selection, n_trained: int, unreadable: list[str]) -> Iterator[str]:
    if n_trained:
        yield f"{pluralize(n_trained, 'image')} were used in training: the metrics are optimistic"
    if selection.unknown_classes:
        yield f"images of unknown classes excluded: {summarize_names(selection.unknown_classes)}"
    if selection.absent_classes:
        yield f"no images of {summarize_names(selection.absent_classes)}"
    if unreadable:
        yield f"{pluralize(len(unreadable), 'image')} could not be read: {summarize_names(unreadable)}"


def tta_views(image: np.ndarray) -> Iterator[np.ndarray]:
    """Four views of an image, uint8 (s, s, 3): itself, its central 7/8 resized to (s, s), and both mirrored."""
    side = image.shape[0]
    edge = side * (1 - TTA_CROP_FRACTION) / 2
    box = (edge, edge, side - edge, side - edge)
    zoomed = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box)
    for view in (image, np.asarray(zoomed)):
        yield view
        yield np.ascontiguousarray(view[:, ::-1])


def _infer_images(classifier: Classifier, selection: Selection, tta: bool) -> Iterator[ModelOutputs | None]:
    """Outputs of each image, in order; None for an unreadable one."""
    preprocessing, temperature = classifier.info.preprocessing, classifier.info.temperature

    def infer(photo: Photo) -> ModelOutputs | None:
        box = photo.box if preprocessing.get("boxes") else None
        try:
            pixels = preprocess(selection.catalog.read_bytes(photo), preprocessing, box)
        except UnreadableImageError:
            return None
        if not tta:
            return classifier.infer(pixels)
        views = [classifier.infer(view) for view in tta_views(pixels)]
        mean = {name: np.mean([view[name] for view in views], 0) for name in ("logits", "known_score")}
        return mean | {"probabilities": softmax(mean["logits"] / temperature)}

    return ordered_map(infer, selection.images, runtime.available_cpus())


def _decision_threshold(classifier: Classifier, positive: str | None) -> tuple[float, str | None]:
    """The decision threshold on the probability of the positive class, and that class."""
    own, decision = classifier.info.positive, classifier.info.decision_threshold
    if positive is None or positive == own:
        return decision, own
    if len(classifier.classes) != 2 or positive not in classifier.classes:
        names = summarize_names(classifier.classes)
        raise FieldmarkError(f"--positive {positive}: name one of two classes; these are {names}")
    return 1 - decision, positive


def _group_indices(photos: list[Photo], group_of_path: dict[str, str]) -> np.ndarray:
    """The group of each image as an index: of the run's audit, or of the data set; else it is alone."""
    names = [group_of_path.get(photo.path) or photo.group or f"\0{photo.path}" for photo in photos]
    return np.unique(names, return_inverse=True)[1]


def _training_paths(run: Path, root: Path) -> set[str]:
    """The training and validation images of the run, if `root` is its own data set."""
    try:
        if read_dataset_path(run) != root.resolve():
            return set()
        return {photo.path for photo in read_split_file(run / "split.csv") if photo.split != "test"}
    except FieldmarkError:  # a bundle without its run
        return set()


def _test_images(run: Path) -> tuple[Catalog, list[Photo], dict[str, str]]:
    """A run's data set, its test split, and the group of each image as found by the run's audit."""
    read_dataset_path(run)  # raises if it is no run
    rows = [photo for photo in read_split_file(run / "split.csv") if photo.split == "test"]
    if not rows:
        raise FieldmarkError(f"{run} has no test split: give another data set to evaluate on")
    catalog = load_catalog(run)
    boxes = {photo.path: photo.box for photo in catalog.photos}
    groups = {row["path"]: row.get("group") or "" for row in io.read_csv(run / "predictions.csv")}
    return catalog, [replace(photo, box=boxes.get(photo.path)) for photo in rows], groups


def _read_learning_curve(run: Path) -> LearningCurve | None:
    """The learning curve that the training computed from its cached features."""
    try:
        curve = io.read_json(run / "metrics.json").get("learning_curve")
        return curve and LearningCurve.from_dict(curve)
    except (OSError, FieldmarkError, KeyError, TypeError):
        return None


# ---- text

SUMMARY_METRICS = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "ece", "coverage", "accuracy_known")
BINARY_METRICS = ("roc_auc", "sensitivity", "specificity", "ppv", "npv")


def summary_lines(metrics: Metrics, curve: LearningCurve | None = None) -> Iterator[str]:
    """The metrics as lines for a terminal."""
    in_groups = "" if metrics.n_groups == metrics.n else f" in {metrics.n_groups:,} groups"
    yield f"{metrics.n:,} images{in_groups}; 95 % confidence intervals in brackets"
    for name in SUMMARY_METRICS:
        yield _format_metric(name, getattr(metrics, name), metrics.intervals[name])
    if binary := metrics.binary:
        at = binary.at_threshold
        yield f"binary, positive class {binary.positive}:"
        for name in BINARY_METRICS:
            yield _format_metric(name, getattr(binary, name), metrics.intervals[name])
        yield f"at the decision threshold {at.threshold:.3f} (Youden's J on the validation set):"
        for name in BINARY_METRICS[1:]:
            yield _format_metric(name, getattr(at, name), at.intervals[name])
    if curve:
        yield "learning curve on frozen features (training images, accuracy):"
        for point in curve.points:
            yield f"  {point.photos:8,} images  {point.accuracy:.4f}"
        yield f"  twice as many     {curve.doubled:.4f} (extrapolated)"
    if metrics.confused:
        yield "most confused:"
    for pair in metrics.confused:
        low, high = pair.ci95
        share = f"{pair.share:.1%} ({low:.1%} to {high:.1%})"
        yield f"  {pair.label} predicted as {pair.predicted}: {pluralize(pair.n, 'image')}, {share}"


def _format_metric(name: str, value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return f"  {name:18} -"
    return f"  {name:18} {value:.4f}  ({interval[0]:.4f} to {interval[1]:.4f})"
