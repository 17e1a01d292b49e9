"""Planted errors are listed and hard cases are not, whatever the classes, their number and the classifier."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fieldmark.audit.label_noise import error_probabilities


def classified(n: int, classes: int, *, seed: int = 0, skill: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a classifier that is calibrated, of easy and hard images, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    evidence = rng.uniform(0, 2 * skill, (n, 1)) * np.eye(classes)[rng.integers(0, classes, n)]
    probabilities = softmax(rng.normal(0, 1.5, (n, classes)) + evidence, axis=1)
    return probabilities, (rng.random((n, 1)) > probabilities.cumsum(1)[:, :-1]).sum(1)


def mislabel(labels: np.ndarray, classes: int, share: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a share of them wrong, and which."""
    rng = np.random.default_rng(seed)
    is_wrong = rng.random(len(labels)) < share
    return np.where(is_wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels), is_wrong


@pytest.mark.parametrize("sharpness", [0.5, 1, 2])
@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_what_is_listed_is_probably_wrong(classes, share, sharpness):
    """With an under- and an overconfident classifier, too."""
    probabilities, labels = classified(2000, classes)
    said, is_wrong = mislabel(labels, classes, share)
    listed = error_probabilities(softmax(sharpness * np.log(probabilities), axis=1), said) > 0.5
    assert (listed & is_wrong).sum() >= 0.6 * listed.sum()
    if share == 0.05 and classes <= 5:
        assert (listed & is_wrong).sum() >= 0.6 * is_wrong.sum()


@pytest.mark.parametrize("skill", [1, 6])
@pytest.mark.parametrize("classes", [2, 5, 40])
@pytest.mark.parametrize("n", [20, 100, 2000])
def test_hard_cases_are_not_listed(n, classes, skill):
    probabilities, labels = classified(n, classes, skill=skill)
    assert (error_probabilities(probabilities, labels) > 0.5).sum() <= 1 + 0.001 * n


def test_a_class_that_the_features_cannot_tell_apart_is_not_listed():
    """Half of the last class looks just like the first, to a classifier that is sure of itself."""
    probabilities, labels = classified(2000, 6)
    looks_like_first = np.flatnonzero(labels == 5)[::2]
    probabilities[looks_like_first] = probabilities[np.flatnonzero(labels == 0)[: len(looks_like_first)]]
    assert (error_probabilities(probabilities, labels) > 0.5).sum() <= 0.1 * len(looks_like_first)


@settings(max_examples=10, deadline=None)
@given(st.integers(10, 60), st.integers(2, 8), st.integers(0, 99))
def test_neither_order_nor_names_matter(n, classes, seed):
    probabilities, labels = classified(n, classes, seed=seed)
    rng = np.random.default_rng(seed)
    rows, names = rng.permutation(n), rng.permutation(classes)
    plain = error_probabilities(probabilities, labels)
    renamed = error_probabilities(probabilities[rows][:, names], np.argsort(names)[labels[rows]])
    assert ((plain >= 0) & (plain <= 1)).all()
    np.testing.assert_allclose(renamed, plain[rows], atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_classifier_that_is_always_sure_and_right(classes):
    labels = np.arange(12) % classes
    assert (error_probabilities(np.eye(classes)[labels], labels) < 0.5).all()
    one_wrong = np.where(np.arange(12) == 5, (labels + 1) % classes, labels)
    assert np.argmax(error_probabilities(np.eye(classes)[labels], one_wrong)) == 5
