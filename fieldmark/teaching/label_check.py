"""Labels of a session that the classifier doubts."""

import numpy as np

from fieldmark.teaching.learner import LinearModel, leave_out_scores

MIN_LABELS = 20
"""Labels below which none is doubted."""


def label_margins(
    model: LinearModel,
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> np.ndarray:
    """How much higher the best other class scores than the label, for n + m images; above 0 a label is doubted.

    No image is judged by a classifier that has learned from it. In this order wrong labels come first; how many of them
    are wrong is not known, since the queue prefers images that are hard to tell (docs/lab/teach.md).

    Args:
        model: which `fit` has made of `features`, `labels` and `groups`.
        features, labels, groups: of the images that it has learned from, (n, ...).
        test_features, test_labels: of those that it has not learned from, (m, ...).
    """
    both = np.concatenate([labels, test_labels])
    if len(both) < MIN_LABELS or model.is_known.sum() < 2:
        return np.full(len(both), -1.0)
    scores = np.concatenate([leave_out_scores(model, features, labels, groups), model.scores(test_features)])
    rows = np.arange(len(both))
    own = scores[rows, both]
    scores[rows, both] = -np.inf
    # A class that it has never seen cannot be predicted: of such labels it knows nothing.
    return np.where(model.is_known[both], scores.max(1) - own, -1.0)
