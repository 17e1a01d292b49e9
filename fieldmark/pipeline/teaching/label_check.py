"""Labels of a session that the classifier doubts."""

import numpy as np

from fieldmark.pipeline.teaching.learner import LinearModel, leave_out_scores

MIN_LABELS = 20
"""Labels below which none is doubted."""


def held_out_scores(
    model: LinearModel, features: np.ndarray, labels: np.ndarray, groups: np.ndarray, test_features: np.ndarray
) -> np.ndarray:
    """Scores (n + m, classes) of n images that the classifier has learned from, and of m others.

    No image is scored by a classifier that has learned from it.

    Args:
        model: which `fit` has made of `features`, `labels` and `groups`.
        features, labels, groups: of the images that it has learned from, (n, ...).
        test_features: of the others, (m, k).
    """
    return np.concatenate([leave_out_scores(model, features, labels, groups), model.scores(test_features)])


def is_class_known(model: LinearModel, labels: np.ndarray, groups: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """Whether the classifier that scored an image has learned another image of its class, (n + m,).

    Args:
        model, labels, groups: see `held_out_scores`.
        test_labels: of the other images, (m,).
    """
    _, pairs, sizes = np.unique(np.stack([labels, groups]), axis=1, return_inverse=True, return_counts=True)
    is_elsewhere = np.bincount(labels)[labels] > sizes[pairs.ravel()]  # outside the group that was left out
    return np.concatenate([is_elsewhere, model.is_known[test_labels]])


def label_margins(scores: np.ndarray, labels: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """How much higher the best other class scores than the label, (n,); above 0 a label is doubted.

    In this order wrong labels come first. How many of them are wrong is not known, since the queue prefers images that
    are hard to tell (docs/lab/teach.md). None is doubted with fewer than `MIN_LABELS`.

    Args:
        scores: see `held_out_scores`, (n, classes).
        labels: class numbers (n,).
        is_known: see `is_class_known`, (n,).
    """
    if len(labels) < MIN_LABELS:
        return np.full(len(labels), -1.0)
    rows, others = np.arange(len(labels)), scores.copy()
    others[rows, labels] = -np.inf
    # A class that it has never seen cannot be predicted: of such labels it knows nothing.
    return np.where(is_known, others.max(1) - scores[rows, labels], -1.0)
