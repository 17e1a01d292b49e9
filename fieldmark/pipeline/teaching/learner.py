"""Features and the labels so far -> a linear classifier, solved exactly in milliseconds after each answer.

Regularized least squares (Rifkin, Yeo & Poggio 2003, "Regularized Least-Squares Classification"). With a few labels of
each class it is as accurate as logistic regression on these features, and with many or rare classes more so
(docs/lab/teach.md). Its inverse matrix also gives which images would teach most (`queue.py`), and what a classifier
without a given image would predict (`leave_out_scores`), without another solution.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

PENALTY = 0.3
"""Weight of the squared weights, for features of length 1."""
CLASS_EXPONENT = 0.5
"""Images count by the number of labels of their class to the power of minus this: rare classes weigh more."""
UNKNOWN_SCORE = -2.0
"""Of classes without labels: below what others get."""
DEFAULT_SCALE, SCALE_BOUNDS = 5.0, (1.0, 50.0)
MIN_FOR_SCALE = 10


@dataclass(frozen=True)
class LinearModel:
    """Scores are [features, 1] @ weight; the softmax of `scale` times the scores is the probability.

    Attributes:
        weight: (k + 1, classes).
        is_known: whether a class has labels, (classes,).
        inverse: inverse of the regularized second moments of the labelled images, (k + 1, k + 1).
        scale: inverse temperature, fitted to predictions of images that were left out.
    """

    weight: np.ndarray
    is_known: np.ndarray
    inverse: np.ndarray
    scale: float = DEFAULT_SCALE

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Features (n, k) -> (n, classes)."""
        scores = features @ self.weight[:-1] + self.weight[-1]
        scores[:, ~self.is_known] = UNKNOWN_SCORE
        return scores

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Features (n, k) -> (n, classes)."""
        return self.scale * self.scores(features)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features (n, k) -> (n, classes)."""
        return softmax(self.logits(features), axis=1)

    def with_classes(self, n_classes: int) -> "LinearModel":
        """The same with further classes, which have no labels yet."""
        new = n_classes - len(self.is_known)
        weight, is_known = np.pad(self.weight, ((0, 0), (0, new))), np.pad(self.is_known, (0, new))
        return LinearModel(weight, is_known, self.inverse, self.scale)


def with_constant(features: np.ndarray) -> np.ndarray:
    """(n, k) -> float64 (n, k + 1), the last column 1."""
    return np.concatenate([features, np.ones((len(features), 1))], 1, dtype=np.float64)


def inverse_of(features: np.ndarray) -> np.ndarray:
    """`LinearModel.inverse` of images (n, k) of one class, which make no classifier yet; n may be 0."""
    x = with_constant(features)
    return np.linalg.inv(x.T @ x + PENALTY * np.eye(x.shape[1]))


def fit(features: np.ndarray, labels: np.ndarray, n_classes: int, groups: np.ndarray | None = None) -> LinearModel:
    """Solve the classifier.

    Args:
        features: (n, k), of length 1.
        labels: class numbers (n,).
        n_classes: some may have no labels.
        groups: number of the group of near-duplicates of each image (n,), for the scale; by default none.
    """
    counts = np.bincount(labels, minlength=n_classes)
    weights, targets = _weights(labels, counts), _targets(labels, counts)
    x = with_constant(features)
    moments = (x * weights[:, None]).T @ x + PENALTY * np.eye(x.shape[1])
    inverse = np.linalg.inv(moments)
    weight = inverse @ ((x * weights[:, None]).T @ targets)
    model = LinearModel(weight.astype(np.float32), counts > 0, inverse)
    if len(labels) < MIN_FOR_SCALE:
        return model
    left_out = leave_out_scores(model, features, labels, np.arange(len(labels)) if groups is None else groups)
    return LinearModel(model.weight, model.is_known, inverse, _fit_scale(left_out, labels))


def leave_out_scores(model: LinearModel, features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Scores (n, classes) of each image by the classifier without it and its near-duplicates.

    In closed form (Rifkin et al., section 5): with H the matrix that makes predictions of targets, the errors of the
    images of a group without it are (I - H)^-1 times their errors with it.

    Args:
        model: which `fit` has made of these images.
        features, labels, groups: as of `fit`.
    """
    counts = np.bincount(labels, minlength=len(model.is_known))
    weights, targets = _weights(labels, counts), _targets(labels, counts)
    x = with_constant(features)
    projected = x @ model.inverse
    # Not by `model.weight`, whose 32 bits would be divided by what is near 0 for many near-duplicates.
    errors = targets - projected @ ((x * weights[:, None]).T @ targets)
    leverage = weights * (projected * x).sum(1)
    left_out = errors / (1 - leverage)[:, None]  # below 1, since the weights are penalized
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, ends = np.argsort(number, kind="stable"), np.cumsum(sizes)
    for group in np.flatnonzero(sizes > 1):
        rows = order[ends[group] - sizes[group] : ends[group]]
        hat = (projected[rows] @ x[rows].T) * weights[rows]
        left_out[rows] = np.linalg.solve(np.eye(len(rows)) - hat, errors[rows])
    scores = targets - left_out
    scores[:, ~model.is_known] = UNKNOWN_SCORE
    return scores


def _weights(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    mean = counts[counts > 0].mean()
    return (mean / np.maximum(counts, 1))[labels] ** CLASS_EXPONENT


def _targets(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    targets = np.full((len(labels), len(counts)), -1 / max(2, int((counts > 0).sum())))
    targets[np.arange(len(labels)), labels] += 1
    return targets


def _fit_scale(scores: np.ndarray, labels: np.ndarray) -> float:
    """The scale with the least cross-entropy."""
    rows = np.arange(len(labels))
    low, high = np.log(SCALE_BOUNDS)
    found: Any = minimize_scalar(
        lambda log_scale: -log_softmax(np.exp(log_scale) * scores, axis=1)[rows, labels].mean(),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 0.02},
    )
    return float(np.exp(found.x))
