"""Tests of a paired difference: two classifiers on the same images.

`paired_difference` compares networks over several seeds and groups of images; `accuracy_change` bounds what a change of
one classifier (INT8 quantisation) costs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fieldmark.core.io import to_jsonable
from fieldmark.evaluation.intervals import CI_QUANTILES, Z_95, GroupBootstrap
from fieldmark.evaluation.results import Interval

ALPHA = 0.05
"""Family-wise error rate: a difference with an adjusted p-value below it is significant."""
N_RESAMPLES = 4000

Outcomes = Mapping[str, tuple[bool, str]]
"""Path of a test image -> whether it is predicted correctly, and its group."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference in accuracy of two networks on the same test images, tested against zero."""

    difference: float
    """Mean accuracy of the second network less that of the first, -1 to 1."""
    ci95: Interval
    p: float
    """Two-sided p-value, not adjusted."""
    test: str
    """Name of the test."""
    won: int
    """Images, over all seeds, that only the second network predicts correctly."""
    lost: int
    """Images that only the first one does."""
    p_holm: float | None = None
    """The p-value, adjusted for several comparisons (`correct_holm`)."""
    real: bool | None = None
    """Whether the difference is significant, by `p_holm`."""

    def to_dict(self) -> dict[str, Any]:
        return to_jsonable(self)


@dataclass(frozen=True)
class AccuracyChange:
    """Change in accuracy of a classifier on n images."""

    difference: float
    """After less before, -1 to 1."""
    ci95: Interval
    won: int
    """Images that are predicted correctly only after the change."""
    lost: int
    """Images that are predicted correctly only before."""
    n: int

    def to_dict(self) -> dict[str, Any]:
        return to_jsonable(self)


def paired_difference(pairs: Sequence[tuple[Outcomes, Outcomes]]) -> PairedDifference:
    """Difference in accuracy, second less first, over pairs of runs with the same test images, one pair for each seed.

    With one seed and independent images the p-value is that of McNemar's exact test (McNemar 1947, "Note on the
    sampling error of the difference between correlated proportions or percentages"). Otherwise it is that of a
    bootstrap over groups of images and over seeds: an image that is tested under three seeds is one observation, not
    three. The interval is the percentile interval of this bootstrap.
    """
    names = sorted({group for first, _ in pairs for _, group in first.values()})
    index = {name: k for k, name in enumerate(names)}
    gain, counts = (np.zeros((len(names), len(pairs))) for _ in range(2))
    won = lost = 0
    for s, (first, second) in enumerate(pairs):
        for path, (is_correct, group) in first.items():
            step = int(second[path][0]) - int(is_correct)
            gain[index[group], s] += step
            counts[index[group], s] += 1
            won, lost = won + (step > 0), lost + (step < 0)
    difference = float((gain.sum(0) / counts.sum(0)).mean())
    resampled = _bootstrap_differences(gain, counts)
    if len(pairs) == 1 and (counts == 1).all():
        test, p = "McNemar, exact", mcnemar_exact(won, lost)
    else:
        test, p = "bootstrap over photos and seeds", _two_sided_p(resampled)
    low, high = np.quantile(resampled, CI_QUANTILES).tolist()
    return PairedDifference(difference, (low, high), p, test, won, lost)


def mcnemar_exact(won: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test: a binomial test of the discordant images; 1 without any."""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def correct_holm(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """The differences with `p_holm` and `real`, in the same order.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    adjusted, largest = list(differences), 0.0
    order = sorted(range(len(adjusted)), key=lambda k: adjusted[k].p)
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(adjusted) - rank) * adjusted[k].p))
        adjusted[k] = replace(adjusted[k], p_holm=largest, real=largest < ALPHA)
    return adjusted


def accuracy_change(correct_before: np.ndarray, correct_after: np.ndarray) -> AccuracyChange:
    """Change in accuracy on the same images, with the 95 % interval of Agresti & Min.

    Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's interval after
    half an image is added to each of the four cells. So its width is positive even if all images agree; with fewer than
    96 images its lower end is below -2 points in any case.

    Args:
        correct_before: bool (n,), whether each image is predicted correctly.
        correct_after: bool (n,), of the same images.
    """
    n = len(correct_before)
    won, lost = int((correct_after & ~correct_before).sum()), int((correct_before & ~correct_after).sum())
    centre = (won - lost) / (n + 2)
    half_width = Z_95 * math.sqrt(won + lost + 1 - (n + 2) * centre**2) / (n + 2)
    ci95 = (max(-1.0, centre - half_width), min(1.0, centre + half_width))
    return AccuracyChange((won - lost) / max(1, n), ci95, won, lost, n)


def _bootstrap_differences(gain: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Differences (resamples,) over resampled groups and seeds, from gain and images (groups, seeds).

    The deviation of the seeds from their mean is scaled by sqrt(s / (s - 1)): a resample of few seeds varies too little
    by this factor (Davison & Hinkley 1997, section 2.2.2, the variance with n in place of n - 1).
    """
    rng, seeds = np.random.default_rng(1), gain.shape[1]
    values = []
    for weights in GroupBootstrap(np.arange(len(gain)), N_RESAMPLES).iter_weights():
        per_seed = (weights @ gain) / np.maximum(weights @ counts, 1)  # (block, seeds)
        drawn = rng.integers(seeds, size=per_seed.shape)
        mean = per_seed.mean(1)
        deviation = np.take_along_axis(per_seed, drawn, 1).mean(1) - mean
        values.append(mean + deviation * (seeds / max(1, seeds - 1)) ** 0.5)
    return np.concatenate(values)


def _two_sided_p(resampled: np.ndarray) -> float:
    """Twice the smaller tail beyond zero, with (r + 1) / (resamples + 1) so that it is never 0 (Davison & Hinkley 1997,
    equation 4.11); resamples of exactly zero count for both tails."""
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1)))
