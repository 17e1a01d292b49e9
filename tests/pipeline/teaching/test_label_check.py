"""Wrong labels come first among those that the classifier doubts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from taught import clusters

from fieldmark.pipeline.teaching.label_check import MIN_LABELS, held_out_scores, is_class_known, label_margins
from fieldmark.pipeline.teaching.learner import fit


def margins(
    features: np.ndarray, labels: np.ndarray, n_train: int, classes: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Of the first images, which are learned from, and of the others as test images."""
    groups = np.arange(n_train) if groups is None else groups
    (own, others), (own_labels, other_labels) = (np.split(values, [n_train]) for values in (features, labels))
    model = fit(own, own_labels, classes, groups)
    scores = held_out_scores(model, own, own_labels, groups, others)
    is_known = is_class_known(model, own_labels, groups, other_labels)
    return label_margins(scores, labels.astype(np.int64), is_known)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_wrong_labels_come_first(seed: int, n_wrong: int):
    features, truth = clusters(120, 4, seed=seed)
    rng = np.random.default_rng(seed)
    wrong = rng.choice(120, n_wrong, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 4, n_wrong)) % 4
    found = margins(features, labels, 80, 4)  # some are test images
    assert set(np.argsort(-found)[:n_wrong]) == set(wrong)
    assert (found[wrong] > 0).all() and (np.delete(found, wrong) < 0).all()


def test_a_wrong_label_is_not_defended_by_its_near_duplicates():
    features, labels = clusters(60, 3)
    features[:4], labels[:4] = features[0], (labels[0] + 1) % 3
    each = np.arange(60), np.maximum(np.arange(60), 3)
    alone, together = (margins(features, labels, 60, 3, groups) for groups in each)
    assert (together[:4] > alone[:4]).all()
    assert set(np.argsort(-together)[:4]) == {0, 1, 2, 3}


def test_few_labels_are_not_doubted():
    features, truth = clusters(MIN_LABELS, 2)
    truth[3] = 1 - truth[3]
    assert (margins(features, truth, 10, 2) > 0).any()
    assert (margins(features[:-1], truth[:-1], 10, 2) < 0).all()


@pytest.mark.parametrize("n_train", [30, 60])
def test_a_test_label_of_a_class_that_was_never_seen_is_not_doubted(n_train: int):
    features, labels = clusters(90, 3)
    labels[n_train:][labels[n_train:] == 2] = 3
    found = margins(features, labels, n_train, 4)
    assert (found[n_train:][labels[n_train:] == 3] < 0).all()


@pytest.mark.parametrize("copies", [1, 3])
def test_the_only_image_of_a_class_is_not_doubted(copies: int):
    features, labels = clusters(60, 3)
    features[:copies], labels[:copies] = features[0], 3  # with its near-duplicates
    found = margins(features, labels, 60, 4, np.maximum(np.arange(60), copies - 1))
    assert (found[:copies] < 0).all()
    labels[10] = 3  # a second one, by which the classifier knows the class
    assert (margins(features, labels, 60, 4, np.maximum(np.arange(60), copies - 1))[[0, 10]] > 0).any()
