"""Labels that are probably wrong, among those of a session: by classifiers that have not learned from them."""

import numpy as np

from fieldmark.audit.label_noise import error_probabilities
from fieldmark.teaching.learner import LinearModel, fit

N_FOLDS = 5
MIN_LABELS = 20
"""Labels below which none is suspected."""


def out_of_fold_probabilities(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_classes: int, start: LinearModel | None = None
) -> np.ndarray:
    """Probabilities (n, classes) of each image by a classifier without it and its near-duplicates.

    Args:
        features: (n, k), projected.
        labels: class numbers (n,).
        groups: number of the group of near-duplicates of each image (n,).
        start: the classifier of all images, of the same classes: its solutions are near.
    """
    _, group = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(N_FOLDS * (group.max() // N_FOLDS + 1))[group] % N_FOLDS
    probabilities = np.full((len(labels), n_classes), 1 / n_classes, np.float32)
    for k in range(N_FOLDS):
        train, test = fold != k, fold == k
        if test.any() and len(np.unique(labels[train])) > 1:
            model = fit(features[train], labels[train], n_classes, start)
            probabilities[test] = model.probabilities(features[test])
    return probabilities


def label_error_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability that each label is wrong (n,); 0 for all with fewer than `MIN_LABELS`.

    Args:
        probabilities: (n, classes), by classifiers without the image.
        labels: class numbers (n,).
    """
    if len(labels) < MIN_LABELS or probabilities.shape[1] < 2:
        return np.zeros(len(labels))
    return error_probabilities(probabilities, labels)
