"""Metrics of a run's classifier on its own test split, or on another data set whose classes are aligned by name."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
from fieldmark.data.decoded import content_hash, thumbnail
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.image_hashes import HashCollector, ImageHashes
from fieldmark.data.readers import read_catalog
from fieldmark.data.split_names import class_key
from fieldmark.data.splits import read_split_file
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.evaluation.results import LearningCurve, Metrics
from fieldmark.inference import hub
from fieldmark.inference.bundle import read_trained_on, resolve_run
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
    n_trained: int = 0
    """Images that the classifier was trained on, which are left out."""
    is_own_test_split: bool
    """Whether the images are the test split of the run itself."""
    learning_curve: LearningCurve | None = None
    """Of the run, with its own test split; None if it was not computed."""

    def to_dict(self) -> dict[str, Any]:
        curve = {"learning_curve": self.learning_curve and self.learning_curve.to_dict()}
        return super().to_dict() | (
            (curve if self.is_own_test_split else {"trained_on": self.n_trained}) | {"warnings": list(self.warnings)}
        )


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
    respelled: list[str]
    """Labels that differ from the classifier's only in case, white space or Unicode form."""


def evaluate(
    run: str | Path,
    photos: str | Path | None,
    reporter: Reporter,
    *,
    tta: bool = False,
    positive: str | None = None,
    moved_to: str | Path | None = None,
) -> Evaluation:
    """Metrics of a run's classifier on its test split, or on another data set: its test split if it has one, else all.

    Classes are aligned by name; images of other classes are left out.

    Args:
        run: a finished run; with `photos`, a bundle or an exported file will do.
        photos: another data set; by default the run's own test split.
        reporter: shows the progress.
        tta: test-time augmentation: average the logits of four views of each image (`tta_views`).
        positive: the positive one of two classes; by default the classifier's own.
        moved_to: where the run's own images are now, if they were moved.

    Raises:
        FieldmarkError: there is no finished run, no readable image, or no image of the classifier's classes.
    """
    run = run if hub.is_hub_address(run) else resolve_run(run)
    classifier = Classifier(run)
    decision_threshold, positive = _decision_threshold(classifier, positive)
    if photos is not None and moved_to is not None:
        raise FieldmarkError("give other images to evaluate on, or --photos where the run's own ones are now")
    selection = _select_images(classifier, Path(run), photos, moved_to, reporter)
    trained_on = None if photos is None else read_trained_on(run)
    predictions, hashes, unreadable = _predict(classifier, selection, tta, reporter, has_hashes=trained_on is not None)
    trained = _TrainedImages() if trained_on is None else _find_trained_images(trained_on, hashes, str(run))
    if trained.n == len(predictions):
        raise FieldmarkError(f"{trained.text(trained.n)}: give images that it has not seen")
    if trained.n:
        predictions = predictions.select(~trained.rows)
    metrics = compute_metrics(predictions, classifier.classes, classifier.info.threshold, positive, decision_threshold)
    return Evaluation(
        **vars(metrics),
        warnings=tuple(_warnings(selection, trained, metrics, unreadable)),
        n_trained=trained.n,
        is_own_test_split=photos is None,
        learning_curve=_read_learning_curve(Path(run)) if photos is None else None,
    )


def _select_images(
    classifier: Classifier, run: Path, photos: str | Path | None, moved_to: str | Path | None, reporter: Reporter
) -> Selection:
    """The images of the classifier's classes in the run's test split or in another data set."""
    groups: dict[str, str] = {}
    if photos is None:
        catalog, images, groups = _test_images(run, moved_to)
    else:
        catalog = read_catalog(photos, min_classes=1)
        for warning in catalog.warnings:
            reporter.warning(warning)
        images = [photo for photo in catalog.photos if photo.split == "test"] or list(catalog.photos)
    images, respelled = _spell_as_trained(images, classifier.classes)
    classes, present = set(map(printable, classifier.classes)), {printable(photo.label) for photo in images}
    images = [photo for photo in images if printable(photo.label) in classes]
    if not images:
        names = summarize_names([printable(name) for name in classifier.classes])
        raise FieldmarkError(f"no image in {catalog.root} is of a class of {run}: {names}")
    return Selection(catalog, images, groups, sorted(present - classes), respelled)


def _spell_as_trained(images: list[Photo], classes: list[str]) -> tuple[list[Photo], list[str]]:
    """The images with the classifier's own spelling of their classes, and the labels that had another one."""
    spelled: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spelled[class_key(name)].append(name)
    exact = set(map(printable, classes))
    renamed = {
        label: names[0]
        for label in {photo.label for photo in images}
        if printable(label) not in exact and len(names := spelled.get(class_key(label), [])) == 1
    }
    return [replace(photo, label=renamed.get(photo.label, photo.label)) for photo in images], sorted(renamed)


@dataclass(frozen=True)
class _TrainedImages:
    """Images that a classifier was trained on.

    Attributes:
        rows: which they are, bool (n,).
        n_identical: how many are the same files.
        model: the classifier.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    n_identical: int = 0
    model: str = ""

    @property
    def n(self) -> int:
        return int(self.rows.sum())

    def text(self, n_images: int) -> str:
        """How many, of `n_images`."""
        which = "all" if self.n == n_images else f"{self.n:,} of"
        encoded = f", {self.n - self.n_identical:,} of them encoded anew" if self.n > self.n_identical else ""
        return f"{which} {pluralize(n_images, 'image')} were used to train {self.model}{encoded}"


def _find_trained_images(trained_on: ImageHashes, hashes: ImageHashes, model: str) -> _TrainedImages:
    return _TrainedImages(trained_on.contains(hashes), int(trained_on.is_identical(hashes).sum()), model)


def _predict(
    classifier: Classifier, selection: Selection, tta: bool, reporter: Reporter, *, has_hashes: bool
) -> tuple[Predictions, ImageHashes, list[str]]:
    """Predictions of the readable images, their hashes if `has_hashes`, and the paths of the others."""
    class_index = {printable(name): k for k, name in enumerate(classifier.classes)}
    readable, outputs, hashes, unreadable = list[Photo](), list[ModelOutputs](), HashCollector(), list[str]()
    results = _infer_images(classifier, selection, tta, has_hashes)
    with reporter.progress_bar("evaluating", "photos") as advance:
        for k, (photo, result) in enumerate(zip(selection.images, results, strict=True)):
            if result is None:
                unreadable.append(photo.path)
            else:
                readable.append(photo)
                outputs.append({name: result.outputs[name] for name in PREDICTION_OUTPUTS})  # evidence takes memory
                if result.hashed is not None:
                    hashes.add(*result.hashed)
            advance(k + 1, len(selection.images))
    if not readable:
        raise FieldmarkError(f"no image in {selection.catalog.root} can be read; see `fieldmark check`")
    predictions = Predictions(
        *(np.stack([output[name] for output in outputs]) for name in PREDICTION_OUTPUTS),
        labels=np.array([class_index[printable(photo.label)] for photo in readable]),
        groups=_group_indices(readable, selection.group_of_path),
    )
    return predictions, hashes.hashes(), unreadable


def _warnings(selection: Selection, trained: _TrainedImages, metrics: Metrics, unreadable: list[str]) -> Iterator[str]:
    if trained.n:
        n = metrics.n + trained.n
        yield f"{trained.text(n)}: the metrics are those of the other {metrics.n:,}"
    if selection.respelled:
        yield f"classes that the classifier spells in another way: {summarize_names(selection.respelled)}"
    if selection.unknown_classes:
        yield f"images of unknown classes excluded: {summarize_names(selection.unknown_classes)}"
    if metrics.absent_classes:
        yield f"no images of {summarize_names(metrics.absent_classes)}: accuracy is that of the other classes"
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


@dataclass(frozen=True)
class _InferredImage:
    """Outputs for one image, and what its hashes are made of: the SHA-256 of its file and its thumbnail."""

    outputs: ModelOutputs
    hashed: tuple[str, np.ndarray] | None


def _infer_images(
    classifier: Classifier, selection: Selection, tta: bool, has_hashes: bool
) -> Iterator[_InferredImage | None]:
    """Outputs of each image, in order; None for an unreadable one."""
    preprocessing, temperature = classifier.info.preprocessing, classifier.info.temperature

    def infer(photo: Photo) -> _InferredImage | None:
        box = photo.box if preprocessing.get("boxes") else None
        try:
            content = selection.catalog.read_bytes(photo)
            pixels = preprocess(content, preprocessing, box)
        except UnreadableImageError:
            return None
        hashed = (content_hash(content, box), thumbnail(Image.fromarray(pixels))) if has_hashes else None
        if not tta:
            return _InferredImage(classifier.infer(pixels), hashed)
        views = [classifier.infer(view) for view in tta_views(pixels)]
        mean = {name: np.mean([view[name] for view in views], 0) for name in ("logits", "known_score")}
        return _InferredImage(mean | {"probabilities": softmax(mean["logits"] / temperature)}, hashed)

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


def _test_images(run: Path, moved_to: str | Path | None) -> tuple[Catalog, list[Photo], dict[str, str]]:
    """A run's data set, its test split, and the group of each image as found by the run's audit."""
    read_dataset_path(run)  # raises if it is no run
    rows = [photo for photo in read_split_file(run / "split.csv") if photo.split == "test"]
    if not rows:
        raise FieldmarkError(f"{run} has no test split: give another data set to evaluate on")
    catalog = load_catalog(run, moved_to)
    boxes = {photo.path: photo.box for photo in catalog.photos}
    if moved_to is not None:
        rows = [row for row in rows if row.path in boxes]
        if not rows:
            raise FieldmarkError(f"{moved_to} has none of the test images of {run}")
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
