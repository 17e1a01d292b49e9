"""The learning curve rises where more photos help, and a look-alike does not vouch for its own label."""

import json

import numpy as np

from fieldmark.evaluation.learning_curve import learning_curve

NAMES = ["ash", "birch", "cedar"]


def photos(each: int, noise: tuple[float, float, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 24) around a corner for each class, a class with its own noise; labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    corners = np.eye(24)[:3] * 3
    spread = np.array(noise)[labels][:, None]
    return (corners[labels] + spread * rng.normal(size=(3 * each, 24))).astype(np.float32), labels


def test_it_rises_and_names_who_gains():
    features, labels = photos(80, (0.2, 1.6, 1.6))
    found = learning_curve(features, labels, list(range(240)), NAMES)
    assert found is not None
    json.dumps(found, allow_nan=False)
    accuracies = [point["accuracy"] for point in found["points"]]
    assert [point["photos"] for point in found["points"]] == [24, 48, 96, 192]
    assert accuracies[-1] > accuracies[0] + 0.05 and accuracies[-1] <= found["doubled"] <= 1
    for point in found["points"]:
        low, high = point["ci95"]
        assert low < point["accuracy"] < high
    rows = {row["name"]: row for row in found["classes"]}
    assert {row["n"] for row in rows.values()} == {80} and rows["ash"]["recall"] > 0.95
    gains = [row["recall"] - row["half"] for row in found["classes"]]
    assert gains == sorted(gains, reverse=True)


def test_what_is_learnt_already_stays():
    features, labels = photos(20, (0.01, 0.01, 0.01))
    found = learning_curve(features, labels, list(range(60)), NAMES)
    assert found is not None and found["points"][-1]["accuracy"] == found["doubled"] == 1.0


def test_a_group_is_on_one_side():
    """Labels drawn by lot for groups of five copies: whoever had seen a copy would know."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    features, labels = np.repeat(rng.normal(size=(60, 96)), 5, 0).astype(np.float32), rng.integers(0, 3, 60)[groups]
    found = learning_curve(features, labels, groups.tolist(), NAMES)
    seen = learning_curve(features, labels, list(range(300)), NAMES)
    assert found and seen
    assert found["points"][-1]["accuracy"] < 0.55 and seen["points"][-1]["accuracy"] > 0.95


def test_too_few_photos_tell_nothing():
    features, labels = photos(3, (1, 1, 1))
    assert learning_curve(features, labels, list(range(9)), NAMES) is None
    features, labels = photos(20, (1, 1, 1))
    assert learning_curve(features[:20], labels[:20], list(range(20)), NAMES) is None
