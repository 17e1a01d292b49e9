"""The estimator of scikit-learn."""

import csv
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import fieldmark as fm
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.splits import read_split_file
from fieldmark.sklearn import ImageClassifier

SETTINGS: dict[str, Any] = {"image_size": 64, "batch": 8, "epochs": 0, "random_state": 0}


@pytest.fixture(scope="module")
def paths(small_photos: Path) -> list[str]:
    return sorted(map(str, small_photos.glob("*/*.jpg")))


@pytest.fixture(scope="module")
def labels(paths: list[str]) -> np.ndarray:
    return np.array([Path(path).parent.name for path in paths])


@pytest.fixture(scope="module")
def fitted(paths: list[str], labels: np.ndarray) -> ImageClassifier:
    return ImageClassifier(**SETTINGS).fit(paths, labels)


def test_it_predicts_labels_and_probabilities(fitted: ImageClassifier, paths: list[str], labels: np.ndarray):
    assert list(fitted.classes_) == sorted(set(labels))
    probabilities = fitted.predict_proba(paths)
    assert probabilities.shape == (48, 3) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert np.array_equal(fitted.predict(paths), fitted.classes_[probabilities.argmax(1)])
    assert fitted.score(paths, labels) > 0.8 and fitted.predict([]).shape == (0,)
    assert fitted.run_.report.exists()


def test_it_trains_on_all_that_it_is_given_but_the_validation_set(fitted: ImageClassifier):
    splits = [row.split for row in read_split_file(fitted.run_.folder / "split.csv")]
    assert set(splits) == {"train", "val"} and len(splits) == 48 and 6 <= splits.count("val") <= 9
    assert fitted.run_.test is None and fitted.run_.validation is not None
    assert "There is no test set." in fitted.run_.report.read_text()
    assert "There is no test set." in (fitted.run_.folder / "card.md").read_text()
    with pytest.raises(FieldmarkError, match="has no test split"):
        fm.evaluate(fitted.run_, progress=False)


def test_arrays_and_numbers_do_as_well(paths: list[str], labels: np.ndarray):
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in paths])
    numbers = np.array([{"disc": 10, "square": 2, "cross, blue": 7}[label] for label in labels])
    estimator = fm.sklearn.ImageClassifier(**SETTINGS).fit(images, numbers)
    assert list(estimator.classes_) == [2, 7, 10] and estimator.score(images, numbers) > 0.8
    column = np.array(paths, object)[:, None]
    assert estimator.predict(column).dtype == numbers.dtype


def test_it_cross_validates_and_stands_in_a_pipeline(paths: list[str], labels: np.ndarray):
    pipeline = make_pipeline(FunctionTransformer(), ImageClassifier(**SETTINGS))
    scores = cross_val_score(pipeline, np.array(paths), labels, cv=2)
    assert scores.shape == (2,) and scores.mean() > 0.7


def test_it_keeps_the_rules_of_estimators(paths: list[str], labels: np.ndarray):
    estimator = ImageClassifier(**SETTINGS, backbone="efficientnet_lite0")
    copy: Any = clone(estimator)
    copy.set_params(epochs=3)
    assert copy.get_params() == {**estimator.get_params(), "epochs": 3} and "epochs=3" in repr(copy)
    with pytest.raises(NotFittedError):
        estimator.predict(paths)
    with pytest.raises(ValueError, match="X has 3 images, but y 2 labels"):
        estimator.fit(paths[:3], labels[:2])
    with pytest.raises(ValueError, match="1 class"):
        estimator.fit(paths[:3], labels[:3])
    with pytest.raises(ValueError, match="give a list"):
        estimator.fit(paths[0], labels)
    with pytest.raises(TypeError, match="float64"):
        estimator.fit(np.random.default_rng(0).random((4, 8, 8, 3)), [0, 1, 0, 1])


# ---- scikit-learn's own checks


class NearestMean:
    """In place of a trained network: the class whose mean image is the nearest."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.classes = [str(label) for label in np.unique(labels)]
        self.means = np.stack([images[labels == label].mean(0) for label in np.unique(labels)])

    def predict_proba(self, images: list[np.ndarray]) -> np.ndarray:
        rows = np.stack([np.asarray(image, float).ravel() for image in images])
        distances = ((rows[:, None] - self.means) ** 2).sum(2) / 300
        scores = np.exp(distances.min(1, keepdims=True) - distances)
        return scores / scores.sum(1, keepdims=True)


def train_nearest_mean(manifest: Path, *_: object, **__: object) -> Any:
    """In place of `fieldmark.train`: a run on the images of the manifest."""
    with manifest.open() as file:
        rows = list(csv.DictReader(file))
    images = np.stack([np.asarray(Image.open(manifest.parent / row["path"]), float).ravel() for row in rows])
    classifier = NearestMean(images, np.array([int(row["label"]) for row in rows]))
    return SimpleNamespace(classifier=lambda: classifier)


class RowsAsImages(ImageClassifier):
    """Takes what the checks give, rows of numbers: each becomes a grey image of one line."""

    def fit(self, X: Any, y: Any) -> "RowsAsImages":
        X = validate_data(self, X)
        self.lowest_, self.highest_ = X.min(), X.max()
        super().fit(self._draw(X), y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "run_")
        return super().predict_proba(self._draw(validate_data(self, X, reset=False)))

    def _draw(self, X: Any) -> list[np.ndarray]:
        shares = np.clip((X - self.lowest_) / max(self.highest_ - self.lowest_, 1e-9), 0, 1)
        return [np.repeat((255 * row).astype(np.uint8)[None, :, None], 3, 2) for row in shares]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


EXPECTED_FAILURES = {
    "check_estimators_pickle": "a fitted one holds a session of onnxruntime; what lasts is its run: give out=",
}


def test_it_passes_the_checks_of_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    """They leave out what takes images: so rows become images, and a classifier that needs no network is trained."""
    monkeypatch.setattr("fieldmark.sklearn.api.train", train_nearest_mean)
    with warnings.catch_warnings(action="ignore"):
        results = check_estimator(RowsAsImages(), expected_failed_checks=EXPECTED_FAILURES, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == EXPECTED_FAILURES.keys()
    assert sum(result["status"] == "passed" for result in results) > 45
