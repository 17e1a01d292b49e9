"""A finished run -> the images it was trained on, where they still are, their splits, and its language."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language, finite_float, get_language
from fieldmark.core.parallel import ordered_map
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.image_hashes import ImageHashes
from fieldmark.data.moved import MovedFiles, find_moved
from fieldmark.data.readers import read_catalog
from fieldmark.data.splits import read_split_file
from fieldmark.inference.bundle import BundleInfo, PreprocessingInfo
from fieldmark.recipes import recipe as recipes

T = TypeVar("T")
IMAGE_HASHES_FILE = "images.npz"


def read_dataset_path(run: Path) -> Path:
    """The dataset that the run was trained on: a folder, an archive, a manifest.

    Raises:
        FieldmarkError: the folder is not a finished run.
    """
    if not (run / "audit.json").exists() and (run / "fold-1").is_dir():
        raise FieldmarkError(
            f"{run} is a cross-validation, whose metrics are in its report: give one of its folds, or other images"
        )
    try:
        return Path(io.read_json(run / "audit.json")["folder"])
    except (OSError, KeyError, TypeError):
        raise FieldmarkError(f"{run} is not a finished run (it has no audit.json): pass the images as PHOTOS") from None


def load_catalog(run: Path, photos: str | Path | None = None) -> Catalog:
    """The images of the run's dataset, under the paths that the run knows.

    Args:
        photos: where they are now, if they were moved, also under other names: they are found by their content.

    Raises:
        FieldmarkError: the folder is not a finished run, or its images are not there.
    """
    source = read_dataset_path(run)
    if photos is not None:
        return _find_moved_images(run, read_catalog(photos, min_classes=1))
    try:
        return read_catalog(source, min_classes=1)
    except FieldmarkError as error:
        raise FieldmarkError(f"{error}; if the images of {run} were moved, say where they are by --photos") from None


def _find_moved_images(run: Path, catalog: Catalog) -> Catalog:
    """The images of a run in another place."""
    rows, hashes = {row.path: row for row in read_split_file(run / "split.csv")}, load_image_hashes(run)
    content = dict(zip(hashes.paths, hashes.hashes.content.tolist(), strict=True)) if hashes else {}
    boxes = {photo.path: photo.box for photo in catalog.photos}
    # Runs of earlier versions have no hashes: their images are taken to have kept their paths.
    moved = find_moved(catalog, content) if content else {path: path for path in rows if path in boxes}
    found = tuple(replace(row, box=boxes[moved[path]]) for path, row in rows.items() if path in moved)
    if not found:
        raise FieldmarkError(f"{printable(str(catalog.root))} has none of the {len(rows):,} images of {run}")
    warnings = catalog.warnings
    if n_gone := len(rows) - len(found):
        warnings += (f"{pluralize(n_gone, 'image')} of {run} not found in {printable(str(catalog.root))}",)
    classes = tuple(sorted({photo.label for photo in found}))
    return replace(catalog, files=MovedFiles(catalog.files, moved), photos=found, classes=classes, warnings=warnings)


class RunImages(NamedTuple):
    """The readable images of a run by path, and their hashes in that order."""

    paths: list[str]
    hashes: ImageHashes


def save_image_hashes(run: Path, images: RunImages) -> None:
    """Write RUN/images.npz, atomically."""
    with io.atomic_path(run / IMAGE_HASHES_FILE) as partial, partial.open("wb") as handle:
        np.savez_compressed(handle, paths=np.array(images.paths, str), **vars(images.hashes))


def load_image_hashes(run: Path) -> RunImages | None:
    """What `save_image_hashes` wrote; None in a run of an earlier version, or if it is damaged."""
    try:
        with np.load(run / IMAGE_HASHES_FILE, allow_pickle=False) as arrays:
            hashes = ImageHashes(arrays["content"], arrays["signatures"], float(arrays["max_distance"]))
            return RunImages(arrays["paths"].tolist(), hashes)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


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


@dataclass(frozen=True)
class RunSplits:
    """The training and validation split of a run, each sorted by path: an export is verified and calibrated on them.

    Never the test split: it decides nothing. Other images than the run's bring their own splits; if they have none, all
    of them are the validation split.
    """

    catalog: Catalog
    preprocessing: PreprocessingInfo
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]

    @classmethod
    def from_run(cls, run: Path, photos: str | Path | None, info: BundleInfo) -> "RunSplits":
        """The splits of a run's dataset, or those of the dataset `photos`, with which a bundle will do.

        Raises:
            FieldmarkError: there are no such images.
        """
        catalog = load_catalog(run) if photos is None else read_catalog(photos, min_classes=1)
        if photos is not None and (run / "split.csv").is_file():
            with suppress(FieldmarkError):  # others of its classes
                catalog = _find_moved_images(run, catalog)
        photos_by_path, split_file = {photo.path: photo for photo in catalog.photos}, run / "split.csv"
        split_rows = read_split_file(split_file) if split_file.is_file() else ()
        rows = [replace(row, box=photos_by_path[row.path].box) for row in split_rows if row.path in photos_by_path]
        class_names = {printable(name) for name in info.classes}
        rows = [row for row in rows or catalog.photos if printable(row.label) in class_names]
        has_no_splits = all(row.split is None for row in rows)
        train = tuple(row for row in rows if row.split == "train")
        val = tuple(row for row in rows if row.split == "val" or has_no_splits)
        if not (train or val):
            raise FieldmarkError(
                f"{catalog.root} has no images of the training or validation split of {run}: pass others as PHOTOS"
            )
        return cls(catalog, info.preprocessing, train, val)

    def map_images(self, photos: Sequence[Photo], function: Callable[[np.ndarray], T]) -> Iterator[tuple[Photo, T]]:
        """Apply `function` to the preprocessed images, uint8 (size, size, 3), in threads; unreadable ones are skipped.

        Raises:
            FieldmarkError: none of them can be read.
        """

        def load_and_apply(photo: Photo) -> tuple[Photo, T] | None:
            box = photo.box if self.preprocessing.get("boxes") else None
            try:
                image = preprocess(self.catalog.read_bytes(photo), self.preprocessing, box)
            except UnreadableImageError:
                return None
            return photo, function(image)

        any_readable = False
        for result in ordered_map(load_and_apply, photos, runtime.available_cpus()):
            if result is not None:
                any_readable = True
                yield result
        if not any_readable:
            raise FieldmarkError(f"no image of the run in {self.catalog.root} can be read: pass the images as PHOTOS")


def sample_evenly(photos: Sequence[Photo], max_count: int) -> Sequence[Photo]:
    """At most `max_count` of the images at equal distances: since they are sorted by path, of all classes."""
    return [photos[k * len(photos) // max_count] for k in range(max_count)] if len(photos) > max_count else photos
