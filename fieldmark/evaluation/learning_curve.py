"""Accuracy by the size of the training set, on frozen features: would more images help, and of which class?"""

from collections.abc import Sequence

import numpy as np

from fieldmark.audit.label_errors import N_FOLDS, cross_val_probabilities
from fieldmark.evaluation.intervals import GroupBootstrap
from fieldmark.evaluation.results import ClassGain, LearningCurve, LearningCurvePoint

TRAIN_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Of the images outside the fold that is predicted."""
MIN_GROUPS = 4 * N_FOLDS
MIN_IMAGES_PER_CLASS = 2
"""On average; a training set with fewer gives too noisy an estimate."""


def learning_curve(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[int],
    class_names: Sequence[str],
    full_correct: np.ndarray | None = None,
) -> LearningCurve | None:
    """Cross-validated accuracy of a linear classifier on 1/8, 1/4, 1/2 and all of the training images.

    Each image is predicted by a classifier that was trained on neither it nor its group, so that all images count.
    Fine-tuning is more accurate throughout than a linear classifier on frozen features, but gains alike.

    `doubled` extrapolates to twice as many images: the error falls by the factor by which it fell at the last doubling
    (a power law; Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically").

    Args:
        features: (n, c).
        labels: (n,) class indices.
        groups: (n,) images of one group stay in one fold.
        class_names: in the order of the indices.
        full_correct: bool (n,) whether cross-validation on all images predicts each right, if that is known already.

    Returns:
        None with too few images.
    """
    is_usable = _has_several_groups(labels, np.asarray(groups), len(class_names))[labels]
    features, labels, group_ids = features[is_usable], labels[is_usable], np.asarray(groups)[is_usable]
    if len(np.unique(group_ids)) < MIN_GROUPS or len(np.unique(labels)) < 2:
        return None
    correct = {} if full_correct is None else {1.0: full_correct[is_usable]}
    for fraction in TRAIN_FRACTIONS:
        if fraction not in correct and fraction * len(labels) >= MIN_IMAGES_PER_CLASS * len(class_names):
            p = cross_val_probabilities(features, labels, group_ids.tolist(), len(class_names), fraction)
            correct[fraction] = p.argmax(1) == labels
    if 0.5 not in correct:
        return None
    half, full = correct[0.5], correct[1.0]
    gained, lost = (full & ~half).sum(), (half & ~full).sum()
    return LearningCurve(
        points=_points(correct, GroupBootstrap(group_ids)),
        doubled=_extrapolate(half, full),
        rises=bool(gained - lost > 2 * np.sqrt(gained + lost)),
        classes=_class_gains(half, full, labels, class_names),
    )


def _has_several_groups(labels: np.ndarray, groups: np.ndarray, n_classes: int) -> np.ndarray:
    """Whether each class has two groups or more, bool (classes,); without, it cannot be trained on and predicted."""
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    return np.bincount(pairs[0], minlength=n_classes) > 1


def _points(correct: dict[float, np.ndarray], bootstrap: GroupBootstrap) -> tuple[LearningCurvePoint, ...]:
    return tuple(
        LearningCurvePoint(
            photos=round(fraction * (1 - 1 / N_FOLDS) * len(hits)),
            accuracy=float(hits.mean()),
            ci95=bootstrap.share_interval(hits),
        )
        for fraction, hits in sorted(correct.items())
    )


def _extrapolate(half: np.ndarray, full: np.ndarray) -> float:
    """Accuracy with twice as many images, if the error falls by the same factor again."""
    error_half, error_full = 1 - half.mean(), 1 - full.mean()
    factor = float(np.clip(error_full / error_half, 0, 1)) if error_half else 1.0
    return float(1 - error_full * factor)


def _class_gains(
    half: np.ndarray, full: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> tuple[ClassGain, ...]:
    """Recall of each class that has images, trained on half and on all of them; the largest gain first."""
    gains = []
    for k in np.flatnonzero(np.bincount(labels)).tolist():
        of_class = labels == k
        n, n_changed = int(of_class.sum()), ((full ^ half) & of_class).sum()
        recall_half, recall = float(half[of_class].mean()), float(full[of_class].mean())
        gains.append(ClassGain(class_names[k], n, recall_half, recall, float(np.sqrt(n_changed) / n)))
    return tuple(sorted(gains, key=lambda gain: gain.half - gain.recall))
