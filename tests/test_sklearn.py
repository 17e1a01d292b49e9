"""The estimator of scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import fieldmark as fm
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
