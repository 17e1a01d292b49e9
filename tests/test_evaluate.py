"""Figures equal their definitions, calibration finds what was planted, and classes are aligned by name."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from fieldmark import evaluate
from fieldmark.errors import FieldmarkError
from fieldmark.evaluate import calibration_error, figures, temperature, threshold
from fieldmark.progress import Reporter

NAMES = ["ash", "birch", "cedar", "elm", "fir", "oak", "yew"]


@st.composite
def judged(draw) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) and labels (n,)."""
    n, classes, seed = draw(st.integers(1, 30)), draw(st.integers(2, 7)), draw(st.integers(0, 9999))
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * draw(st.sampled_from([0.1, 1, 10]))
    return softmax(logits, axis=1).astype(np.float32), rng.integers(0, classes, n)


def of(probabilities: np.ndarray, labels: np.ndarray, least: float = 0.0) -> dict:
    found = figures(probabilities, labels, NAMES[: probabilities.shape[1]], least)
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


@given(judged(), st.floats(0, 1))
def test_figures_by_their_definitions(photos: tuple[np.ndarray, np.ndarray], least: float):
    probabilities, labels = photos
    found = of(probabilities, labels, least)
    n, classes = probabilities.shape
    pairs = [(int(label), int(row.argmax())) for label, row in zip(labels, probabilities, strict=True)]
    confusion = Counter(pairs)
    assert found["confusion"] == [[confusion[a, b] for b in range(classes)] for a in range(classes)]
    assert found["n"] == n
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / n)
    ranks = [
        sorted(range(classes), key=lambda k: -row[k]).index(a) for a, row in zip(labels, probabilities, strict=True)
    ]
    assert found["top5"] == pytest.approx(sum(rank < 5 for rank in ranks) / n)
    recalls, f1s = [], []
    for k, name in enumerate(NAMES[:classes]):
        true, said, both = sum(a == k for a, _ in pairs), sum(b == k for _, b in pairs), confusion[k, k]
        f1 = 2 * both / (true + said) if true + said else 0.0
        expected = {
            "precision": both / said if said else 0.0,
            "recall": both / true if true else 0.0,
            "f1": f1,
            "n": true,
        }
        assert found["per_class"][name] == pytest.approx(expected)
        if true:
            recalls.append(both / true)
            f1s.append(f1)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["macro_f1"] == pytest.approx(np.mean(f1s))
    assert found["loss"] == pytest.approx(
        -np.mean([math.log(max(row[a], 1e-12)) for a, row in zip(labels, probabilities, strict=True)]),
        rel=1e-4,
        abs=1e-6,
    )
    known = [row.max() >= least for row in probabilities]
    assert found["coverage"] == pytest.approx(np.mean(known))
    right = [a == b for (a, b), sure in zip(pairs, known, strict=True) if sure]
    assert found["accuracy_known"] == (pytest.approx(np.mean(right)) if right else None)


@given(st.integers(1, 400), st.data())
def test_the_interval_is_wilsons(n: int, data: st.DataObject):
    right = data.draw(st.integers(0, n))
    labels = np.array([0] * right + [1] * (n - right))
    found = of(np.tile([0.9, 0.1], (n, 1)), labels)
    z, p = 1.959964, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert found["ci95"] == pytest.approx(expected, abs=1e-6)


@given(st.integers(2, 7), st.integers(1, 5))
def test_a_perfect_classifier(classes: int, each: int):
    labels = np.tile(np.arange(classes), each)
    found = of(np.eye(classes)[labels], labels, 0.99)
    for name in ("accuracy", "top5", "balanced_accuracy", "macro_f1", "coverage", "accuracy_known"):
        assert found[name] == 1.0
    assert found["ece"] == found["loss"] == 0.0
    assert found["ci95"][1] == pytest.approx(1)
    assert found["ci95"][0] < 1
    assert classes > 2 or found["roc_auc"] == found["sensitivity"] == found["specificity"] == 1.0


def test_no_photos_no_figures():
    assert figures(np.zeros((0, 3)), np.zeros(0, int), NAMES[:3], 0.5) is None


@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_two_classes(seed: int, a: int, b: int, swap: bool):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * a + [1] * b)
    second = rng.choice([0.1, 0.3, 0.4, 0.6, 0.9], a + b)  # with ties
    found = of(np.stack([1 - second, second], axis=1), labels)
    rare = 0 if a <= b else 1
    score = second if rare else 1 - second
    pairs = [(x, y) for x in score[labels == rare] for y in score[labels != rare]]
    assert found["positive"] == NAMES[rare]
    assert found["roc_auc"] == pytest.approx(np.mean([(x > y) + 0.5 * (x == y) for x, y in pairs]))
    assert found["sensitivity"] == pytest.approx((score[labels == rare] > 0.5).mean())
    assert found["specificity"] == pytest.approx((score[labels != rare] < 0.5).mean())


def test_two_classes_of_which_one_has_no_photo():
    assert "roc_auc" not in of(np.array([[0.9, 0.1]]), np.array([0]))


# ---- calibration


@given(st.integers(0, 9999), st.integers(1, 300))
def test_calibration_error_by_its_definition(seed: int, n: int):
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(n), rng.random(n) < 0.6
    expected = 0.0
    for k in range(15):
        inside = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected)


def test_calibration_error_at_the_ends():
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    assert calibration_error(np.array([0.0]), np.array([False])) == 0


@pytest.mark.parametrize("planted", [0.2, 0.7, 1.0, 2.5, 8.0])
def test_temperature_finds_the_planted_one(planted: float):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 5)) * 3 * max(1, planted)
    gumbel = -np.log(-np.log(rng.random(logits.shape)))
    labels = (logits / planted + gumbel).argmax(1)  # a draw from softmax(logits / planted)
    assert temperature(logits, labels) == pytest.approx(planted, rel=0.05)


def test_temperature_stays_within_bounds():
    logits, labels = np.eye(4)[np.arange(40) % 4], np.arange(40) % 4
    assert 0.05 <= temperature(logits, labels) < 0.06  # all right: as sure as it may be
    assert 19 < temperature(logits, (labels + 1) % 4) <= 20  # all wrong


@pytest.mark.parametrize("t", [0.5, 3.0])
def test_the_threshold_lets_95_percent_through(t: float):
    logits = np.random.default_rng(0).normal(size=(400, 4))
    confidence = softmax(logits / t, axis=1).max(1)
    assert (confidence >= threshold(logits, t)).sum() == 380


def test_few_photos_calibrate_nothing():
    logits, labels = np.random.default_rng(0).normal(size=(19, 3)), np.zeros(19, int)
    assert temperature(logits, labels) == 1.0
    assert threshold(logits, 1.0) == 0.0
    assert temperature(np.zeros((0, 3)), labels[:0]) == 1.0


# ---- a run


def test_the_test_photos_give_the_figures_of_the_training(small_run: Path):
    written = json.loads((small_run / "metrics.json").read_text())["test"]
    found = evaluate.evaluate(small_run, None, Reporter())
    assert found.pop("warnings") == []
    assert found == written


def test_another_folder_is_aligned_by_name(small_run: Path, small_photos: Path, tmp_path: Path):
    shutil.copytree(small_photos / "disc", tmp_path / "disc")
    shutil.copytree(small_photos / "square", tmp_path / "a new one")
    shutil.copytree(small_photos / "square", tmp_path / "square")
    (tmp_path / "square" / "00.jpg").write_bytes(b"not a photo")
    found = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert found["n"] == 31
    assert {name: row["n"] for name, row in found["per_class"].items()} == {"cross, blue": 0, "disc": 16, "square": 15}
    assert found["accuracy"] > 0.8
    unknown, gone, unreadable = found["warnings"]
    assert "a new one" in unknown
    assert "cross, blue" in gone
    assert "1 photo " in unreadable and "square/00.jpg" in unreadable


def test_what_cannot_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    for name in ("a", "b"):
        shutil.copytree(small_photos / "disc", tmp_path / "other" / name)
        (tmp_path / "bad" / ("disc", "square")[name == "b"]).mkdir(parents=True)
        (tmp_path / "bad" / ("disc", "square")[name == "b"] / "1.jpg").write_bytes(b"")
    for photos, says in (("other", "is of a class that"), ("bad", "can be read"), ("none", "no such folder")):
        with pytest.raises(FieldmarkError, match=says):
            evaluate.evaluate(small_run, tmp_path / photos, Reporter())
    with pytest.raises(FieldmarkError, match="give the photos to evaluate on"):
        evaluate.evaluate(small_run / "bundle", None, Reporter())


def test_photos_it_was_trained_with_are_pointed_out(small_run: Path, small_photos: Path, tmp_path: Path):
    (warning,) = evaluate.evaluate(small_run, small_photos, Reporter())["warnings"]
    assert warning.endswith("it was trained with: the figures flatter it")
    shutil.copytree(small_photos, tmp_path / "elsewhere" / "test")
    (tmp_path / "elsewhere" / "train" / "disc").mkdir(parents=True)
    shutil.copy(small_photos / "disc" / "00.jpg", tmp_path / "elsewhere" / "train" / "disc")
    shutil.copytree(small_photos / "square", tmp_path / "elsewhere" / "train" / "square")
    shutil.copytree(small_photos / "cross, blue", tmp_path / "elsewhere" / "train" / "cross, blue")
    assert evaluate.evaluate(small_run, tmp_path / "elsewhere", Reporter())["n"] == 48  # its test/ alone


def test_a_folder_of_one_class_can_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    shutil.copytree(small_photos / "disc", tmp_path / "disc")
    found = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert found["n"] == 16 and found["warnings"] == ["no photos of cross, blue, square"]
