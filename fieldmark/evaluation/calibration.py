"""Calibration on the validation set: temperature and thresholds; and calibration metrics of any predictions."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import roc_curve

from fieldmark.evaluation.results import CoveragePoint, ReliabilityBin

N_BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. 2017."""
N_COVERAGE_POINTS = 20
"""Points of the coverage curve."""
MIN_IMAGES = 20
"""Fewer validation images than this are too few to fit a temperature or a threshold."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20
TARGET_COVERAGE = 0.91
"""Share of the validation images that the OOD threshold accepts."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the cross-entropy of softmax(logits / T).

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.

    Args:
        logits: (n, classes), of the validation set.
        labels: (n,) class indices.

    Returns:
        T between 0.05 and 20; 1 with fewer than 20 images.
    """
    if len(labels) < MIN_IMAGES:
        return 1.0

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / math.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean())

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def fit_ood_threshold(scores: np.ndarray) -> float:
    """The OOD score (n,) that 91 % of the validation images reach; 0, which accepts all, with fewer than 20 images."""
    return float(np.quantile(scores, 1 - TARGET_COVERAGE)) if len(scores) >= MIN_IMAGES else 0.0


def fit_decision_threshold(probabilities: np.ndarray, is_positive: np.ndarray) -> float:
    """The decision threshold with the highest sensitivity + specificity.

    Youden 1950, "Index for rating diagnostic tests": a missed positive image and a false alarm count alike. The
    threshold lies midway to the next lower probability.

    Args:
        probabilities: (n,) of the positive class, of the validation set.
        is_positive: (n,) truth.

    Returns:
        A probability; 0.5 with fewer than 20 images, or images of one class alone.
    """
    if len(is_positive) < MIN_IMAGES or is_positive.all() or not is_positive.any():
        return 0.5
    fpr, tpr, thresholds = roc_curve(is_positive, probabilities, drop_intermediate=False)
    best = 1 + int(np.argmax((tpr - fpr)[1:]))  # the first predicts no positive, and is never better than the last
    following = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    middle = (thresholds[best] + following) / 2
    return float(middle if middle > following else thresholds[best])  # adjacent floats have no middle


# ---- calibration metrics


def bin_indices(confidence: np.ndarray) -> np.ndarray:
    """The bin (of 15 of equal width) of each confidence, int (n,)."""
    return np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: the mean abs(confidence - accuracy) of 15 bins of equal width, weighted by images.

    Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; bins as in Guo et al. 2017,
    equation 3.
    """
    sums = np.bincount(bin_indices(confidence), confidence - correct, N_BINS)
    return float(np.abs(sums).sum() / len(correct))


def reliability_curve(confidence: np.ndarray, correct: np.ndarray) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of each bin that has images: the reliability diagram.

    DeGroot & Fienberg 1983, "The Comparison and Evaluation of Forecasters"; Niculescu-Mizil & Caruana 2005,
    "Predicting Good Probabilities With Supervised Learning".
    """
    index = bin_indices(confidence)
    members = [index == k for k in range(N_BINS)]
    return tuple(
        ReliabilityBin(float(confidence[b].mean()), float(correct[b].mean()), int(b.sum())) for b in members if b.any()
    )


def coverage_curve(scores: np.ndarray, correct: np.ndarray) -> tuple[CoveragePoint, ...]:
    """Selective accuracy at 5, 10, ..., 100 % coverage: accuracy of the images with the highest OOD scores.

    Geifman & El-Yaniv 2017, "Selective Classification for Deep Neural Networks" (the risk-coverage curve).
    """
    order = np.argsort(-scores, kind="stable")
    curve = []
    for share in np.arange(1, N_COVERAGE_POINTS + 1) / N_COVERAGE_POINTS:
        accepted = order[: max(1, round(share * len(order)))]
        accuracy, threshold = float(correct[accepted].mean()), float(scores[accepted[-1]])
        curve.append(CoveragePoint(len(accepted) / len(order), accuracy, threshold))
    return tuple(curve)
