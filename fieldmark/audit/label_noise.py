"""Out-of-fold probabilities and labels -> the probability that each label is wrong.

It is estimated twice, each time together with the noise rate. The first estimate trusts the classifier's calibrated
probabilities; alone, it would list a class that looks like another one. The second compares a label with the others of
its class; alone, it would list the least typical images of every class. A label is listed if both agree.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit
from scipy.stats import norm

USUAL_NOISE_RATE = 0.033
"""Part of wrong labels from which the estimates start: the mean of ten public test sets (Northcutt et al. 2021,
"Pervasive label errors in test sets destabilize machine learning benchmarks")."""
MAX_NOISE_RATE = 0.5
LOG_SCALES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Logarithms of the factor on log probabilities from which the best one starts."""
PRIOR_WEIGHT = 5
"""Weight of all classes in the statistics of one, in images: a rare class borrows those of the others."""
MAX_ITERATIONS = 200
_LEAST_PROBABILITY = 1e-12
_LEAST_STD = 1e-2


def error_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability that each label is wrong (n,): the geometric mean of both estimates.

    A wrong label is assumed to be any of the other classes, alike.

    Args:
        probabilities: of the classes, by a classifier that has not seen the image, (n, classes), classes >= 2.
        labels: class indices (n,).
    """
    log_p = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    return np.sqrt(_calibrated_error_probabilities(log_p, labels) * _local_false_discovery_rates(log_p, labels))


def _calibrated_error_probabilities(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The posterior of a wrong label (n,), given a classifier that is calibrated but for its temperature.

    Temperature and noise rate maximise the likelihood of the labels together: with the temperature alone (Guo et al.
    2017), each wrong label would make the classifier look less certain than it is.
    """

    def likelihoods(log_scale: float, rate_logit: float) -> tuple[np.ndarray, np.ndarray]:
        rate = MAX_NOISE_RATE * expit(rate_logit)
        p = np.exp(log_softmax(np.exp(log_scale) * log_p, axis=1)[np.arange(len(labels)), labels])
        return (1 - rate) * p, rate * (1 - p) / (log_p.shape[1] - 1)  # right, wrong

    def loss(log_scale: float, rate_logit: float) -> float:
        right, wrong = likelihoods(log_scale, rate_logit)
        return -float(np.log(right + wrong + _LEAST_PROBABILITY).mean())

    usual = float(logit(USUAL_NOISE_RATE / MAX_NOISE_RATE))
    # the best scale for the usual rate: from a wrong one the search ends without wrong labels
    start = min(LOG_SCALES, key=lambda log_scale: loss(log_scale, usual))
    fitted = minimize(lambda x: loss(*x), [start, usual], method="Nelder-Mead", options={"fatol": 1e-7}).x
    right, wrong = likelihoods(*fitted)
    return wrong / (right + wrong + _LEAST_PROBABILITY)


def _local_false_discovery_rates(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The posterior of a wrong label (n,), in the two-groups model of Efron (2008) of the labels' margins.

    Margins of wrong labels are known: those of all labels that an image was not given. Margins of right labels are
    normal with a mean and a standard deviation for each class, so that a class that is often taken for another has a
    wide distribution rather than many wrong labels. Fitted by expectation-maximisation.
    """
    margins = _margins(log_p)
    is_given = np.arange(log_p.shape[1]) == labels[:, None]
    given, others = margins[is_given], margins[~is_given]
    mean, std = np.full(log_p.shape[1], given.mean()), np.full(log_p.shape[1], given.std() + _LEAST_STD)
    wrong_mean, wrong_std = others.mean(), others.std() + _LEAST_STD
    rate = USUAL_NOISE_RATE
    for _ in range(MAX_ITERATIONS):
        typical = _monotone(given, mean[labels], std[labels], wrong_mean, wrong_std)
        evidence = norm.logpdf(typical, wrong_mean, wrong_std) - norm.logpdf(typical, mean[labels], std[labels])
        p_wrong, previous = expit(evidence + logit(rate)), rate
        rate = float(np.clip(p_wrong.mean(), 1e-6, MAX_NOISE_RATE))
        mean, std = _class_moments(given, labels, 1 - p_wrong, len(mean))
        if abs(rate - previous) < 1e-6:
            break
    return p_wrong


def _margins(log_p: np.ndarray) -> np.ndarray:
    """The log probability of each class minus the highest of the others, (n, classes)."""
    second, highest = np.partition(log_p, -2, axis=1)[:, -2:].T
    return log_p - np.where(log_p == highest[:, None], second[:, None], highest[:, None])


def _monotone(
    margins: np.ndarray, mean: np.ndarray, std: np.ndarray, wrong_mean: float, wrong_std: float
) -> np.ndarray:
    """Margins (n,), moved to where a lower one is more evidence of a wrong label.

    The log ratio of two normal densities is a parabola: beyond its vertex it would turn.
    """
    curvature = 1 / wrong_std**2 - 1 / std**2
    vertex = (wrong_mean / wrong_std**2 - mean / std**2) / np.where(curvature == 0, np.inf, curvature)
    return np.where(
        curvature > 0, np.maximum(margins, vertex), np.where(curvature < 0, np.minimum(margins, vertex), margins)
    )


def _class_moments(
    values: np.ndarray, labels: np.ndarray, weights: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each class (classes,), drawn to those of all by `PRIOR_WEIGHT`."""

    def class_means(some: np.ndarray) -> np.ndarray:
        overall = np.average(some, weights=weights)
        return (np.bincount(labels, weights * some, n_classes) + PRIOR_WEIGHT * overall) / total

    total = np.bincount(labels, weights, n_classes) + PRIOR_WEIGHT
    mean = class_means(values)
    return mean, np.sqrt(class_means((values - mean[labels]) ** 2)) + _LEAST_STD
