"""Calibration recovers known parameters, and keeps the defaults with too few images."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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


@given(st.integers(0, 9999), st.integers(20, 60))
@example(163, 20)  # no threshold is better than that of none or all
def test_no_other_decision_threshold_is_better(seed: int, n: int):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    probabilities = np.clip(rng.choice(np.arange(11) / 10, n) + 0.2 * positive, 0, 1)

    def both(at: float) -> float:
        found = probabilities >= at
        return found[positive].mean() + 1 - found[~positive].mean()

    if positive.any() and not positive.all():
        best = max(both(at) for at in [*probabilities, 1.5])
        assert both(fit_decision_threshold(probabilities, positive)) == pytest.approx(best)


def test_few_images_calibrate_nothing():
    logits, labels = np.random.default_rng(0).normal(size=(19, 3)), np.zeros(19, int)
    assert fit_temperature(logits, labels) == 1.0
    assert fit_ood_threshold(logits[:, 0]) == 0.0 and fit_decision_threshold(logits[:, 0], labels == 0) == 0.5
    assert fit_temperature(np.zeros((0, 3)), labels[:0]) == 1.0
