"""Figures equal their definitions, and their intervals hold what they promise."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fieldmark.evaluation.metrics import Predictions, compute_metrics, summary_lines

NAMES = ["ash", "birch", "cedar", "elm", "fir", "oak", "yew"]


@st.composite
def judged(draw) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) and labels (n,)."""
    n, classes, seed = draw(st.integers(1, 30)), draw(st.integers(2, 7)), draw(st.integers(0, 9999))
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * draw(st.sampled_from([0.1, 1, 10]))
    return softmax(logits, axis=1).astype(np.float32), rng.integers(0, classes, n)


def answers(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Predictions:
    """Answers whose score is the confidence and whose logits are those of temperature 1."""
    logits = np.log(np.maximum(probabilities, 1e-12))
    own = np.arange(len(labels)) if groups is None else groups
    return Predictions(logits, probabilities, probabilities.max(1, initial=0), labels, own)


def of(probabilities: np.ndarray, labels: np.ndarray, least: float = 0.0, groups: np.ndarray | None = None) -> dict:
    found = compute_metrics(answers(probabilities, labels, groups), NAMES[: probabilities.shape[1]], least)
    assert found is not None
    json.dumps(found, allow_nan=False)
    assert all(isinstance(line, str) for line in summary_lines(found))
    return found


@settings(max_examples=30)
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
        row = found["per_class"][name]
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        for key, some in (("recall", true), ("precision", said)):
            interval = row[f"{key}_ci95"]
            assert (interval is None) == (some == 0)
            assert interval is None or interval[0] - 1e-9 <= row[key] <= interval[1] + 1e-9
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


@settings(max_examples=30)
@given(st.integers(1, 400), st.data())
def test_the_interval_is_wilsons(n: int, data: st.DataObject):
    right = data.draw(st.integers(0, n))
    labels = np.array([0] * right + [1] * (n - right))
    found = of(np.tile([0.9, 0.1], (n, 1)), labels)
    z, p = 1.959964, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert found["ci95"] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30)
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
    assert compute_metrics(answers(np.zeros((0, 3)), np.zeros(0, int)), NAMES[:3], 0.5) is None


@settings(max_examples=30)
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
    assert found["ppv"] == (pytest.approx((labels[score > 0.5] == rare).mean()) if (score > 0.5).any() else None)
    assert found["npv"] == (pytest.approx((labels[score < 0.5] != rare).mean()) if (score < 0.5).any() else None)


def test_two_classes_of_which_one_has_no_photo():
    assert "roc_auc" not in of(np.array([[0.9, 0.1]]), np.array([0]))


@settings(max_examples=30)
@given(st.integers(0, 9999), st.floats(0.1, 0.9))
def test_the_other_class_can_be_the_positive_one(seed: int, decision: float):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * 7 + [1] * 12)
    second = rng.random(19)
    said = answers(np.stack([1 - second, second], 1), labels)
    one, other = (
        compute_metrics(said, NAMES[:2], 0, name, at) for name, at in (("ash", 1 - decision), ("birch", decision))
    )
    assert one and other and one["roc_auc"] == pytest.approx(other["roc_auc"])
    for a, b in (("sensitivity", "specificity"), ("ppv", "npv")):
        assert one[a] == other[b] and one["at_threshold"][a] == other["at_threshold"][b]
    assert other["at_threshold"]["sensitivity"] == pytest.approx((second[labels == 1] >= decision).mean())


def test_groups_are_drawn_whole():
    """Sixty photos of ten birds, each bird right or wrong as a whole: sixty witnesses would be too sure."""
    labels, birds = np.arange(60) // 6 % 2, np.arange(60) // 6
    right = np.isin(birds, [1, 3, 4, 6, 7, 8])
    probabilities = np.where((labels == right)[:, None], [0.1, 0.9], [0.9, 0.1])
    alone, grouped = of(probabilities, labels), of(probabilities, labels, groups=birds)
    assert (alone["n"], alone["groups"], grouped["groups"]) == (60, 60, 10)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "roc_auc", "sensitivity"):
        assert grouped[name] == alone[name]
        (low, high), (inner_low, inner_high) = grouped["intervals"][name], alone["intervals"][name]
        assert low <= inner_low and high >= inner_high and high - low > 1.2 * (inner_high - inner_low), name
    renamed = of(probabilities, labels, groups=9 - birds)
    assert renamed["intervals"] == grouped["intervals"]


def test_the_most_confused_pairs():
    labels = np.array([0] * 10 + [1] * 4 + [2] * 5)
    predicted = np.array([1] * 3 + [2] + [0] * 6 + [0] + [1] * 3 + [2] * 5)
    found = of(np.eye(3)[predicted], labels)["confused"]
    assert [(pair["label"], pair["predicted"], pair["n"]) for pair in found] == [
        ("ash", "birch", 3),
        ("birch", "ash", 1),
        ("ash", "cedar", 1),
    ]
    assert found[0]["share"] == 0.3 and found[0]["ci95"][0] < 0.3 < found[0]["ci95"][1]


@settings(max_examples=30)
@given(judged())
def test_the_coverage_curve_ends_with_all_photos(photos: tuple[np.ndarray, np.ndarray]):
    found = of(*photos)
    curve = found["coverage_curve"]
    assert curve[-1]["coverage"] == 1 and curve[-1]["accuracy"] == pytest.approx(found["accuracy"])
    thresholds = [point["threshold"] for point in curve]
    assert thresholds == sorted(thresholds, reverse=True)
    for point in curve:  # its threshold answers at least so many
        assert (photos[0].max(1) >= point["threshold"]).mean() >= point["coverage"] - 1e-9


@settings(max_examples=30)
@given(judged())
def test_reliability_sums_to_the_calibration_error(photos: tuple[np.ndarray, np.ndarray]):
    found = of(*photos)
    for when, ece in (("before", "ece_before"), ("after", "ece")):
        bins = found["reliability"][when]
        assert sum(row["n"] for row in bins) == found["n"]
        gap = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / found["n"]
        assert gap == pytest.approx(found[ece], abs=1e-6)


def test_answers_in_a_file_and_together(tmp_path: Path):
    rng = np.random.default_rng(0)
    each = [answers(softmax(rng.normal(size=(n, 3)), 1), rng.integers(0, 3, n), np.arange(n) // 2) for n in (5, 0, 4)]
    each[0].save(tmp_path / "answers.npz")
    again = Predictions.load(tmp_path / "answers.npz")
    for name, value in vars(each[0]).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    together = Predictions.concatenate(each)
    assert len(together) == 9 and together.groups.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.npz"]
