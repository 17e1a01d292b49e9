"""The learning curve rises where more images help, and no image is predicted from its own group."""

import json

import numpy as np

from fieldmark.evaluation.learning_curve import learning_curve
from fieldmark.evaluation.results import LearningCurve

NAMES = ["ash", "birch", "cedar"]


def images(each: int, noise: tuple[float, float, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 24) around a corner for each class, a class with its own noise; labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    corners = np.eye(24)[:3] * 3
    spread = np.array(noise)[labels][:, None]
    return (corners[labels] + spread * rng.normal(size=(3 * each, 24))).astype(np.float32), labels


def test_it_rises_and_names_the_classes_that_gain():
    features, labels = images(80, (0.2, 1.6, 1.6))
    curve = learning_curve(features, labels, list(range(240)), NAMES)
    assert curve is not None
    assert LearningCurve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False))) == curve
    accuracies = [point.accuracy for point in curve.points]
    assert [point.photos for point in curve.points] == [24, 48, 96, 192]
    assert accuracies[-1] > accuracies[0] + 0.05 and accuracies[-1] <= curve.doubled <= 1
    for point in curve.points:
        low, high = point.ci95
        assert low < point.accuracy < high
    rows = {row.name: row for row in curve.classes}
    assert {row.n for row in rows.values()} == {80} and rows["ash"].recall > 0.95
    gains = [row.recall - row.half for row in curve.classes]
    assert gains == sorted(gains, reverse=True)


def test_perfect_accuracy_extrapolates_to_itself():
    features, labels = images(20, (0.01, 0.01, 0.01))
    curve = learning_curve(features, labels, list(range(60)), NAMES)
    assert curve is not None and curve.points[-1].accuracy == curve.doubled == 1.0


def test_a_group_is_in_one_fold():
    """Random labels for groups of five copies: a classifier that was trained on a copy would know them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    features, labels = np.repeat(rng.normal(size=(60, 96)), 5, 0).astype(np.float32), rng.integers(0, 3, 60)[groups]
    grouped = learning_curve(features, labels, groups.tolist(), NAMES)
    leaked = learning_curve(features, labels, list(range(300)), NAMES)
    assert grouped and leaked
    assert grouped.points[-1].accuracy < 0.55 and leaked.points[-1].accuracy > 0.95


def test_too_few_images_give_no_curve():
    features, labels = images(3, (1, 1, 1))
    assert learning_curve(features, labels, list(range(9)), NAMES) is None
    features, labels = images(20, (1, 1, 1))
    assert learning_curve(features[:20], labels[:20], list(range(20)), NAMES) is None
