"""Fieldmark as an estimator of scikit-learn, for cross_val_score, GridSearchCV and pipelines."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, column_or_1d

from fieldmark.core import io
from fieldmark.inference.inputs import find_inputs
from fieldmark.pipeline import api
from fieldmark.pipeline.run import Run

MANIFEST_COLUMNS = ["path", "label"]


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of images: `fit` trains it as `fieldmark.train`, on the images alone that it is given.

    Of these, 15 % are held out for validation: they select the epoch and calibrate the probabilities. There is no test
    set within them, as `score` and cross-validation have their own.

    Args:
        backbone, attention, after, head, image_size, weights, epochs, budget, quality, batch, augment, lr:
            settings of a recipe; None is the recipe's default.
        recipe: a `Recipe`, the name of one, or a YAML file.
        out: new folder for the run; by default a temporary one, which is deleted with the estimator.
        random_state: seed of the split and of every random draw.
        verbose: show progress and warnings.

    Attributes:
        classes_: (n_classes,) the labels, sorted.
        run_: the run, with its report.

    >>> from sklearn.model_selection import cross_val_score
    >>> cross_val_score(ImageClassifier(epochs=0), paths, labels, cv=5)  # doctest: +SKIP
    array([0.92, 0.90, 0.91, 0.93, 0.91])
    """

    def __init__(
        self,
        *,
        backbone: str | None = None,
        attention: str | None = None,
        after: str | None = None,
        head: str | None = None,
        image_size: int | None = None,
        weights: str | None = None,
        epochs: int | None = None,
        budget: str | None = None,
        quality: str | None = None,
        batch: int | None = None,
        augment: str | None = None,
        lr: float | None = None,
        recipe: Any = None,
        out: str | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.backbone, self.attention, self.after, self.head = backbone, attention, after, head
        self.image_size, self.weights, self.epochs, self.budget = image_size, weights, epochs, budget
        self.quality, self.batch, self.augment, self.lr = quality, batch, augment, lr
        self.recipe, self.out, self.random_state, self.verbose = recipe, out, random_state, verbose

    def fit(self, X: Any, y: Any) -> "ImageClassifier":
        """Train on images X with labels y.

        Args:
            X: n paths, PIL images or uint8 arrays (h, w, 3), or one array (n, h, w, 3).
            y: (n,) numbers or texts.

        Raises:
            ValueError: X and y differ in length, y is missing, or there is one class alone.
            FieldmarkError: as `fieldmark.train`.
        """
        if y is None:
            raise ValueError("a classifier requires y to be passed, but the target y is None")
        images, labels = _as_list(X), column_or_1d(y, warn=True)
        check_classification_targets(labels)
        if len(images) != len(labels):
            raise ValueError(f"X has {len(images)} images, but y {len(labels)} labels")
        self.classes_ = unique_labels(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y has {len(self.classes_)} class; a classifier needs two")
        self._folder = io.TemporaryFolder()
        folder = self._folder.path
        number_of = {label: number for number, label in enumerate(self.classes_.tolist())}
        numbers = [number_of[label] for label in labels.tolist()]
        manifest = _write_manifest(images, numbers, folder / "data")
        out = folder / "run" if self.out is None else Path(self.out)
        self.run_: Run = api.train(manifest, self.recipe, out=out, progress=self.verbose, **self._recipe_fields())
        self._classifier = self.run_.classifier()
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, n_classes) in the order of `classes_`."""
        check_is_fitted(self, "run_")
        trained = [int(name) for name in self._classifier.classes]
        probabilities = np.zeros((len(images := _as_list(X)), len(self.classes_)))
        if images:
            probabilities[:, trained] = self._classifier.predict_proba(images)
        return probabilities

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n,) of the most probable classes."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def _recipe_fields(self) -> dict[str, Any]:
        names = ("backbone", "attention", "after", "head", "image_size", "weights", "epochs", "budget", "quality")
        names += ("batch", "augment", "lr")
        fields = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        seed = {} if self.random_state is None else {"seed": int(self.random_state)}
        return fields | seed | {"test_share": 0.0}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        tags.classifier_tags.poor_score = True
        tags.non_deterministic = False
        return tags


def _as_list(X: Any) -> list[Any]:
    """The images one by one; a column of paths is a list of them."""
    if isinstance(X, str | os.PathLike | bytes):
        raise ValueError("X is one image: give a list of them")
    images = list(X)
    if images and isinstance(images[0], np.ndarray | list | tuple) and np.asarray(images[0]).dtype.kind in "OUS":
        images = [image[0] for image in images]  # (n, 1), as a ColumnTransformer gives
    return images


def _write_manifest(images: list[Any], labels: Sequence[int], folder: Path) -> Path:
    """A manifest of images with numbers as labels; what is no path is written as a PNG file."""
    folder.mkdir(parents=True)
    rows, seen = list[dict[str, Any]](), set[tuple[str, int]]()
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if isinstance(image, str | os.PathLike):
            path = os.path.abspath(image)
            if (path, label) in seen:  # drawn twice, as by a bootstrap
                continue
            seen.add((path, label))
        else:
            path = f"{index:06d}.png"
            _as_image(image).save(folder / path, compress_level=1)
        rows.append({"path": path, "label": label})
    file = folder / "manifest.csv"
    io.write_csv(file, rows, MANIFEST_COLUMNS)
    return file


def _as_image(image: Any) -> Image.Image:
    from fieldmark.data.image import decode

    ((_, source),) = find_inputs(image)
    return decode(source)
