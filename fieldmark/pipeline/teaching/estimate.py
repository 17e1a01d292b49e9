"""How good the classifier is, from a random test set that people label among the other images.

The test candidates are drawn at random before the first answer and kept out of training, whatever the queue would
choose. They are labelled in their random order, so those labelled at any time are a simple random sample of all images,
and the share of correct predictions is an unbiased estimate of the accuracy, with Wilson's interval. Images that people
excluded are no part of the population; skipped ones are asked again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from fieldmark.evaluation.intervals import wilson_interval

if TYPE_CHECKING:
    from fieldmark.pipeline.teaching.questions import CurvePoint

TEST_SHARE = 5
"""Every so many images one is a test candidate."""
MAX_TEST = 500
"""Test candidates at most."""
MIN_GIVEN_TESTS = 30
"""Images of a dataset's test split from which it is taken as the test set, if all images have labels."""
MIN_FOR_GAIN = 50
"""Labelled test images from which the gain of more labels is estimated."""
MIN_FOR_SCALE = 30


def draw_test_rows(order: np.ndarray, is_labelled: np.ndarray, given_tests: Sequence[int]) -> np.ndarray:
    """Rows of the test candidates, in the random order in which they are labelled.

    They are drawn among the images without labels, which are what the classifier is for; if all have labels, among
    those, or they are the test split of the dataset.

    Args:
        order: a random order of all images (n,); the images are read in it.
        is_labelled: which of them have a label from the beginning (n,).
        given_tests: rows of the dataset's test split.
    """
    unlabelled = order[~is_labelled[order]]
    if len(unlabelled):
        return unlabelled[::TEST_SHARE][:MAX_TEST]
    if len(given_tests) >= MIN_GIVEN_TESTS:
        return np.array(given_tests, np.int64)
    return order[::TEST_SHARE][:MAX_TEST]


@dataclass(frozen=True)
class Estimate:
    """A share of images with its 95 % interval.

    Attributes:
        share: None without images.
        low: of the interval.
        high: of the interval.
        n: images that it comes from.
    """

    share: float | None
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, hits: np.ndarray) -> "Estimate":
        """From hits and misses (n,)."""
        n = len(hits)
        share = float(np.mean(hits)) if n else None
        low, high = wilson_interval(np.array([share or 0.0]), np.array([n]))[0]
        return cls(share, float(low), float(high), n)


def curve_sizes(n: int) -> list[int]:
    """Numbers of labels at which the learning curve of `n` labels has points, `n` included if it is one of them.

    They grow by a fifth each, so that a session adds a point now and then.
    """
    sizes, size = list[int](), 20.0
    while int(size) <= n:
        if int(size) >= n / 8:
            sizes.append(int(size))
        size *= 1.2
    return sizes


def expected_gain(history: Sequence["CurvePoint"], n: int, more: int, n_tests: int) -> float | None:
    """How much the accuracy would rise with `more` labels: by a power law through the learning curve.

    Args:
        history: the learning curve.
        n: labels now.
        n_tests: labelled test images.

    Returns:
        the rise, at least 0; None with fewer than three points or `MIN_FOR_GAIN` test images.
    """
    points = [(point.labelled, 1 - point.accuracy) for point in history if point.accuracy < 1]
    if len(points) < 3 or n_tests < MIN_FOR_GAIN:
        return None
    sizes, errors = np.array(points).T
    slope, intercept = np.polyfit(np.log(sizes), np.log(errors), 1)
    now, later = (np.exp(intercept) * size**slope for size in (n, n + more))
    return max(0.0, float(now - later))


def fit_scale(logits: np.ndarray, labels: np.ndarray) -> float:
    """The factor on logits (n, classes) that minimises the cross-entropy of labels (n,): temperature scaling."""
    if len(labels) < MIN_FOR_SCALE:
        return 1.0
    rows = np.arange(len(labels))
    found: Any = minimize_scalar(
        lambda log_scale: -log_softmax(np.exp(log_scale) * logits, axis=1)[rows, labels].mean(),
        bounds=(-1.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))


def confidence(logits: np.ndarray, scale: float) -> np.ndarray:
    """Probability of the predicted class: (n, classes) -> (n,)."""
    return softmax(scale * logits, axis=1).max(1) if len(logits) else np.zeros(0)
