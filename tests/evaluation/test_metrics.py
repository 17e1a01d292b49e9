"""Metrics equal their definitions, their intervals hold their level, and they survive metrics.json unchanged."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fieldmark.evaluation.evaluate import summary_lines
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.evaluation.results import Metrics

NAMES = ["ash", "birch", "cedar", "elm", "fir", "oak", "yew"]


@st.composite
def classified(draw) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) and labels (n,)."""
    n, classes, seed = draw(st.integers(1, 30)), draw(st.integers(2, 7)), draw(st.integers(0, 9999))
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * draw(st.sampled_from([0.1, 1, 10]))
    return softmax(logits, axis=1).astype(np.float32), rng.integers(0, classes, n)


def predictions(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Predictions:
    """Predictions whose OOD score is the confidence and whose logits are those of temperature 1."""
    logits = np.log(np.maximum(probabilities, 1e-12))
    own = np.arange(len(labels)) if groups is None else groups
    return Predictions(logits, probabilities, probabilities.max(1, initial=0), labels, own)


def metrics_of(
    probabilities: np.ndarray, labels: np.ndarray, threshold: float = 0.0, groups: np.ndarray | None = None
) -> Metrics:
    metrics = compute_metrics(predictions(probabilities, labels, groups), NAMES[: probabilities.shape[1]], threshold)
    assert Metrics.from_dict(metrics.to_dict()) == metrics
    assert Metrics.from_dict(json.loads(json.dumps(metrics.to_dict(), allow_nan=False))) == metrics
    assert all(isinstance(line, str) for line in summary_lines(metrics))
    return metrics


@settings(max_examples=30)
@given(classified(), st.floats(0, 1))
def test_metrics_equal_their_definitions(images: tuple[np.ndarray, np.ndarray], threshold: float):
    probabilities, labels = images
    metrics = metrics_of(probabilities, labels, threshold)
    n, classes = probabilities.shape
    pairs = [(int(label), int(row.argmax())) for label, row in zip(labels, probabilities, strict=True)]
    confusion = Counter(pairs)
    assert metrics.confusion == tuple(tuple(confusion[a, b] for b in range(classes)) for a in range(classes))
    assert metrics.n == n
    assert metrics.accuracy == pytest.approx(sum(a == b for a, b in pairs) / n)
    ranks = [
        sorted(range(classes), key=lambda k: -row[k]).index(a) for a, row in zip(labels, probabilities, strict=True)
    ]
    assert metrics.top5 == pytest.approx(sum(rank < 5 for rank in ranks) / n)
    recalls, f1s = [], []
    for k, name in enumerate(NAMES[:classes]):
        true, predicted, both = sum(a == k for a, _ in pairs), sum(b == k for _, b in pairs), confusion[k, k]
        f1 = 2 * both / (true + predicted) if true + predicted else 0.0
        row = metrics.per_class[name]
        expected = (both / predicted if predicted else 0.0, both / true if true else 0.0, f1, true)
        assert (row.precision, row.recall, row.f1, row.n) == pytest.approx(expected)
        for value, interval, total in (
            (row.recall, row.recall_ci95, true),
            (row.precision, row.precision_ci95, predicted),
        ):
            assert (interval is None) == (total == 0)
            assert interval is None or interval[0] - 1e-9 <= value <= interval[1] + 1e-9
        if true:
            recalls.append(both / true)
            f1s.append(f1)
    is_whole = len(recalls) == classes  # of a missing class nothing is averaged
    assert metrics.balanced_accuracy == (pytest.approx(np.mean(recalls)) if is_whole else None)
    assert metrics.macro_f1 == (pytest.approx(np.mean(f1s)) if is_whole else None)
    assert len(metrics.absent_classes) == classes - len(recalls)
    log_likelihoods = [math.log(max(row[a], 1e-12)) for a, row in zip(labels, probabilities, strict=True)]
    assert metrics.loss == pytest.approx(-np.mean(log_likelihoods), rel=1e-4, abs=1e-6)
    accepted = [row.max() >= threshold for row in probabilities]
    assert metrics.coverage == pytest.approx(np.mean(accepted))
    correct = [a == b for (a, b), is_accepted in zip(pairs, accepted, strict=True) if is_accepted]
    assert metrics.accuracy_known == (pytest.approx(np.mean(correct)) if correct else None)


def test_keys_of_metrics_json():
    """The contract: scripts read these keys, in this order, with the binary metrics beside the others."""
    rng = np.random.default_rng(0)
    entry = metrics_of(softmax(rng.normal(size=(40, 2)), 1), np.arange(40) % 2).to_dict()
    assert list(entry) == [
        "n", "groups", "intervals", "accuracy", "top5", "coverage", "accuracy_known", "ci95", "balanced_accuracy",
        "macro_f1", "per_class", "confusion", "confused", "ece", "loss", "threshold", "reliability", "ece_before",
        "coverage_curve", "sensitivity", "specificity", "ppv", "npv", "roc_auc", "roc", "at_threshold", "positive",
    ]  # fmt: skip
    assert list(entry["intervals"]) == [
        "accuracy", "top5", "coverage", "accuracy_known", "balanced_accuracy", "macro_f1", "ece",
        "sensitivity", "specificity", "ppv", "npv", "roc_auc",
    ]  # fmt: skip
    assert list(entry["at_threshold"]) == [
        "threshold", "intervals", "accuracy", "sensitivity", "specificity", "ppv", "npv",
    ]  # fmt: skip
    assert entry["ci95"] == entry["intervals"]["accuracy"] and isinstance(entry["ci95"], list)


@settings(max_examples=30)
@given(st.integers(1, 400), st.data())
def test_interval_of_independent_images_is_wilsons(n: int, data: st.DataObject):
    n_correct = data.draw(st.integers(0, n))
    labels = np.array([0] * n_correct + [1] * (n - n_correct))
    metrics = metrics_of(np.tile([0.9, 0.1], (n, 1)), labels)
    z, p = 1.959964, n_correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert metrics.ci95 == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30)
@given(st.integers(2, 7), st.integers(1, 5))
def test_perfect_classifier(classes: int, each: int):
    labels = np.tile(np.arange(classes), each)
    metrics = metrics_of(np.eye(classes)[labels], labels, 0.99)
    for name in ("accuracy", "top5", "balanced_accuracy", "macro_f1", "coverage", "accuracy_known"):
        assert getattr(metrics, name) == 1.0
    assert metrics.ece == metrics.loss == 0.0
    assert metrics.ci95 and metrics.ci95[0] < 1 and metrics.ci95[1] == pytest.approx(1)
    if classes == 2:
        assert metrics.binary
        assert metrics.binary.roc_auc == metrics.binary.sensitivity == metrics.binary.specificity == 1.0


def test_without_images_there_are_no_metrics():
    with pytest.raises(ValueError, match="no images"):
        compute_metrics(predictions(np.zeros((0, 3)), np.zeros(0, int)), NAMES[:3], 0.5)


@settings(max_examples=30)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_binary_metrics_equal_their_definitions(seed: int, a: int, b: int, swap: bool):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * a + [1] * b)
    second = rng.choice([0.1, 0.3, 0.4, 0.6, 0.9], a + b)  # with ties
    binary = metrics_of(np.stack([1 - second, second], axis=1), labels).binary
    assert binary
    rare = 0 if a <= b else 1
    score = second if rare else 1 - second
    pairs = [(x, y) for x in score[labels == rare] for y in score[labels != rare]]
    assert binary.positive == NAMES[rare]
    assert binary.roc_auc == pytest.approx(np.mean([(x > y) + 0.5 * (x == y) for x, y in pairs]))
    assert binary.sensitivity == pytest.approx((score[labels == rare] > 0.5).mean())
    assert binary.specificity == pytest.approx((score[labels != rare] < 0.5).mean())
    assert binary.ppv == (pytest.approx((labels[score > 0.5] == rare).mean()) if (score > 0.5).any() else None)
    assert binary.npv == (pytest.approx((labels[score < 0.5] != rare).mean()) if (score < 0.5).any() else None)


def test_no_binary_metrics_if_one_class_has_no_image():
    assert metrics_of(np.array([[0.9, 0.1]]), np.array([0])).binary is None


@settings(max_examples=30)
@given(st.integers(0, 9999), st.floats(0.1, 0.9))
def test_the_positive_class_can_be_chosen(seed: int, decision: float):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * 7 + [1] * 12)
    second = rng.random(19)
    both = predictions(np.stack([1 - second, second], 1), labels)
    first, other = (
        compute_metrics(both, NAMES[:2], 0, name, at).binary
        for name, at in (("ash", 1 - decision), ("birch", decision))
    )
    assert first and other and first.roc_auc == pytest.approx(other.roc_auc)
    for a, b in (("sensitivity", "specificity"), ("ppv", "npv")):
        assert getattr(first, a) == getattr(other, b)
        assert getattr(first.at_threshold, a) == getattr(other.at_threshold, b)
    assert other.at_threshold.sensitivity == pytest.approx((second[labels == 1] >= decision).mean())


def test_groups_widen_the_intervals():
    """Sixty images of ten birds, each bird right or wrong as a whole, are ten independent observations."""
    labels, birds = np.arange(60) // 6 % 2, np.arange(60) // 6
    correct = np.isin(birds, [1, 3, 4, 6, 7, 8])
    probabilities = np.where((labels == correct)[:, None], [0.1, 0.9], [0.9, 0.1])
    alone, grouped = metrics_of(probabilities, labels), metrics_of(probabilities, labels, groups=birds)
    assert (alone.n, alone.n_groups, grouped.n_groups) == (60, 60, 10)
    values, grouped_values = alone.to_dict(), grouped.to_dict()
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece", "roc_auc", "sensitivity"):
        assert grouped_values[name] == values[name]
        (low, high), (inner_low, inner_high) = grouped_values["intervals"][name], values["intervals"][name]
        assert low <= inner_low and high >= inner_high and high - low > 1.2 * (inner_high - inner_low), name
    renamed = metrics_of(probabilities, labels, groups=9 - birds)
    assert renamed.intervals == grouped.intervals


def test_most_confused_pairs():
    labels = np.array([0] * 10 + [1] * 4 + [2] * 5)
    predicted = np.array([1] * 3 + [2] + [0] * 6 + [0] + [1] * 3 + [2] * 5)
    metrics = metrics_of(np.eye(3)[predicted], labels)
    assert [(pair.label, pair.predicted, pair.n) for pair in metrics.confused] == [
        ("ash", "birch", 3),
        ("birch", "ash", 1),
        ("ash", "cedar", 1),
    ]
    low, high = metrics.confused[0].ci95
    assert metrics.confused[0].share == 0.3 and low < 0.3 < high
    assert any("ash predicted as birch: 3 images, 30.0%" in line for line in summary_lines(metrics))


@settings(max_examples=30)
@given(classified())
def test_coverage_curve_ends_with_all_images(images: tuple[np.ndarray, np.ndarray]):
    metrics = metrics_of(*images)
    curve = metrics.coverage_curve
    assert curve[-1].coverage == 1 and curve[-1].accuracy == pytest.approx(metrics.accuracy)
    thresholds = [point.threshold for point in curve]
    assert thresholds == sorted(thresholds, reverse=True)
    for point in curve:  # its threshold accepts at least so many
        assert (images[0].max(1) >= point.threshold).mean() >= point.coverage - 1e-9


@settings(max_examples=30)
@given(classified())
def test_reliability_sums_to_the_calibration_error(images: tuple[np.ndarray, np.ndarray]):
    metrics = metrics_of(*images)
    for bins, ece in (
        (metrics.reliability.before, metrics.ece_before),
        (metrics.reliability.after, metrics.ece),
    ):
        assert sum(row.n for row in bins) == metrics.n
        gap = sum(row.n * abs(row.confidence - row.accuracy) for row in bins) / metrics.n
        is_unknown = bins is metrics.reliability.after and metrics.absent_classes
        assert ece is None if is_unknown else gap == pytest.approx(ece, abs=1e-6)


def test_predictions_are_saved_and_concatenated(tmp_path: Path):
    rng = np.random.default_rng(0)
    parts = [
        predictions(softmax(rng.normal(size=(n, 3)), 1), rng.integers(0, 3, n), np.arange(n) // 2) for n in (5, 0, 4)
    ]
    parts[0].save(tmp_path / "answers.npz")
    loaded = Predictions.load(tmp_path / "answers.npz")
    for name, value in vars(parts[0]).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    together = Predictions.concatenate(parts)
    assert len(together) == 9 and together.groups.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.npz"]
