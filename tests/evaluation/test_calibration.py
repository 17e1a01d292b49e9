"""Calibration recovers known parameters, and keeps the defaults with too few images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from fieldmark.evaluation.calibration import (
    expected_calibration_error,
    fit_decision_threshold,
    fit_ood_threshold,
    fit_temperature,
)


@given(st.integers(0, 9999), st.integers(1, 300))
def test_calibration_error_by_its_definition(seed: int, n: int):
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(n), rng.random(n) < 0.6
    expected = 0.0
    for k in range(15):
        inside = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)


def test_calibration_error_at_the_ends():
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    assert expected_calibration_error(np.array([0.0]), np.array([False])) == 0


@pytest.mark.parametrize("true", [0.2, 0.7, 1.0, 2.5, 8.0])
def test_temperature_is_recovered(true: float):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 5)) * 3 * max(1, true)
    gumbel = -np.log(-np.log(rng.random(logits.shape)))
    labels = (logits / true + gumbel).argmax(1)  # a sample of softmax(logits / true)
    assert fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_temperature_stays_within_bounds():
    logits, labels = np.eye(4)[np.arange(40) % 4], np.arange(40) % 4
    assert 0.05 <= fit_temperature(logits, labels) < 0.06  # all correct
    assert 19 < fit_temperature(logits, (labels + 1) % 4) <= 20  # all wrong


def test_the_ood_threshold_accepts_91_percent():
    scores = np.random.default_rng(0).random(400)
    assert (scores >= fit_ood_threshold(scores)).sum() == 364


def draw_log_odds(rng: np.random.Generator, n: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """(log odds, truth) of two normal distributions of variance 1, at +- half the distance; a third is positive."""
    positive = np.arange(n) % 3 == 0
    return rng.normal(np.where(positive, distance / 2, -distance / 2)), positive


def youden(log_odds: np.ndarray, positive: np.ndarray, threshold: float) -> float:
    found = expit(log_odds) >= threshold
    return found[positive].mean() - found[~positive].mean()


@given(st.integers(0, 9999), st.integers(20, 60), st.floats(0, 20))
def test_the_decision_threshold_of_the_other_class_is_its_complement(seed: int, n: int, distance: float):
    log_odds, positive = draw_log_odds(np.random.default_rng(seed), n, distance)
    threshold = fit_decision_threshold(expit(log_odds), positive)
    assert log_odds.min() - 1e-6 <= logit(np.clip(threshold, 1e-6, 1 - 1e-6)) <= log_odds.max() + 1e-6
    assert fit_decision_threshold(1 - expit(log_odds), ~positive) == pytest.approx(1 - threshold, abs=0.02)
    if distance > 12:
        assert youden(log_odds, positive, threshold) == 1


def test_the_decision_threshold_is_closer_to_the_best_one_than_the_best_of_the_validation_images():
    """Between two normal distributions the best threshold has log odds of 0."""
    rng, errors, losses = np.random.default_rng(0), [], []
    test = draw_log_odds(rng, 20_000, 2.0)
    for _ in range(50):
        log_odds, positive = draw_log_odds(rng, 150, 2.0)
        fitted = fit_decision_threshold(expit(log_odds), positive)
        luckiest = max(expit(log_odds), key=lambda threshold: youden(log_odds, positive, threshold))
        errors.append([abs(logit(fitted)), abs(logit(luckiest))])
        losses.append([youden(*test, threshold) for threshold in (fitted, luckiest)])
    (ours, empirical), (j, empirical_j) = np.mean(errors, 0), np.mean(losses, 0)
    assert ours < 0.7 * empirical and ours < 0.25
    assert j > empirical_j and j == pytest.approx(youden(*test, 0.5), abs=0.01)


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [1.0], [0.2, 0.2000001]])
def test_a_decision_threshold_of_few_distinct_probabilities_is_a_probability(values: list[float]):
    probabilities, positive = np.resize(np.array(values, np.float32), 30), np.arange(30) % 2 == 1
    threshold = fit_decision_threshold(probabilities, positive)
    assert min(values) - 1e-6 <= threshold <= max(values) + 1e-6
    if len(values) > 1:
        assert threshold == pytest.approx(sum(values) / 2, abs=1e-3)


def test_few_images_calibrate_nothing():
    logits, labels = np.random.default_rng(0).normal(size=(19, 3)), np.zeros(19, int)
    assert fit_temperature(logits, labels) == 1.0
    assert fit_ood_threshold(logits[:, 0]) == 0.0 and fit_decision_threshold(logits[:, 0], labels == 0) == 0.5
    assert fit_temperature(np.zeros((0, 3)), labels[:0]) == 1.0
