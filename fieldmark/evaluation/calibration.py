"""Answers to the validation photos -> temperature and thresholds; to any photos -> how far they are to be believed."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import roc_curve

N_BINS = 15
N_COVERAGE_POINTS = 20
"""Points of the coverage curve."""
MIN_IMAGES = 20
"""With fewer validation photos than this nothing is calibrated."""
TARGET_COVERAGE = 0.92
"""Share of the validation photos that the threshold lets through as known."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(logits / T) fits the labels best.

    logits (n, classes), labels (n,) -> T between 0.05 and 20; 1 where there are too few photos to tell.
    Guo et al. 2017, "On calibration of modern neural networks".
    """
    if len(labels) < MIN_IMAGES:
        return 1.0

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / math.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean())

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def fit_ood_threshold(scores: np.ndarray) -> float:
    """The score below which a photo is "none of these": 92 % of the validation photos (n,) lie above it."""
    return float(np.quantile(scores, 1 - TARGET_COVERAGE)) if len(scores) >= MIN_IMAGES else 0.0


def fit_decision_threshold(probabilities: np.ndarray, is_positive: np.ndarray) -> float:
    """The probability from which a photo is called positive, where missing one is as bad as a false alarm.

    probabilities (n,) of being positive, positive (n,) truth values -> where sensitivity + specificity is highest
    (Youden 1950, "Index for rating diagnostic tests"), midway to the next photo; 0.5 where there are too few photos.
    """
    if len(is_positive) < MIN_IMAGES or is_positive.all() or not is_positive.any():
        return 0.5
    fpr, tpr, thresholds = roc_curve(is_positive, probabilities, drop_intermediate=False)
    best = 1 + int(np.argmax((tpr - fpr)[1:]))  # the first calls nothing positive, and is never better than the last
    following = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    middle = (thresholds[best] + following) / 2
    return float(middle if middle > following else thresholds[best])  # neighbours among floats have no middle


# ---- how far it is to be believed


def bin_indices(confidence: np.ndarray) -> np.ndarray:
    """The number of each confidence's bin, of 15 of equal width."""
    return np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over 15 equal bins (Naeini et al. 2015)."""
    sums = np.bincount(bin_indices(confidence), confidence - correct, N_BINS)
    return float(np.abs(sums).sum() / len(correct))


def reliability_curve(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """What is said and what is right in each of 15 equal bins of confidence that has photos."""
    place = bin_indices(confidence)
    members = [place == k for k in range(N_BINS)]
    return [
        {"confidence": float(confidence[b].mean()), "accuracy": float(correct[b].mean()), "n": int(b.sum())}
        for b in members
        if b.any()
    ]


def coverage_curve(scores: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Accuracy of the photos that are answered, if the threshold answers so many: of 5 % to 100 %."""
    order = np.argsort(-scores, kind="stable")
    curve = []
    for share in np.arange(1, N_COVERAGE_POINTS + 1) / N_COVERAGE_POINTS:
        accepted = order[: max(1, round(share * len(order)))]
        curve.append(
            {
                "coverage": len(accepted) / len(order),
                "accuracy": float(correct[accepted].mean()),
                "threshold": float(scores[accepted[-1]]),
            }
        )
    return curve
