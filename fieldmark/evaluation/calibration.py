"""Calibration on the validation set: temperature and thresholds; and calibration metrics of any predictions."""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, ndtr

from fieldmark.evaluation.results import CoveragePoint, ReliabilityBin

N_BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. 2017."""
N_COVERAGE_POINTS = 20
"""Points of the coverage curve."""
MIN_IMAGES = 20
"""Fewer validation images than this are too few to fit a temperature or a threshold."""
MIN_PROBABILITY = 1e-6
"""Probabilities closer to 0 and 1 than this count as it."""
N_THRESHOLDS, MIN_BANDWIDTH = 500, 0.1
"""Decision thresholds that are compared, and the smallest bandwidth of the kernels, in log odds."""
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
    distributions of the log odds are smoothed by Gaussian kernels, since the maximum over the images themselves hangs
    on single ones (Fluss, Faraggi and Reiser 2005, "Estimation of the Youden Index and its associated cutoff point").

    Args:
        probabilities: (n,) of the positive class, of the validation set.
        is_positive: (n,) truth.

    Returns:
        A probability; 0.5 with fewer than 20 images, or images of one class alone.
    """
    if len(is_positive) < MIN_IMAGES or is_positive.all() or not is_positive.any():
        return 0.5
    log_odds = logit(np.clip(probabilities.astype(float), MIN_PROBABILITY, 1 - MIN_PROBABILITY))
    grid = np.linspace(log_odds.min(), log_odds.max(), N_THRESHOLDS)
    youden = _smoothed_cdf(log_odds[~is_positive], grid) - _smoothed_cdf(log_odds[is_positive], grid)
    return float(expit(grid[youden >= youden.max() - 1e-9].mean()))  # the middle, where the classes are far apart


def _smoothed_cdf(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Kernel estimate of the distribution function of some values (n,) at some points (m,).

    The bandwidth is Silverman's rule of thumb (1986, "Density Estimation for Statistics and Data Analysis", equation
    3.31), and no less than a tenth.
    """
    quartiles = np.percentile(values, (25, 75))
    spreads = [spread for spread in (values.std(), (quartiles[1] - quartiles[0]) / 1.34) if spread > 0]
    bandwidth = max(0.9 * min(spreads, default=0.0) * len(values) ** -0.2, MIN_BANDWIDTH)
    return ndtr((at[:, None] - values) / bandwidth).mean(1)


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
