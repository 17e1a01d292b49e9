"""features + labels -> the learning curve: would more photos help, and of which class?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fieldmark.audit.label_errors import N_FOLDS, cross_val_probabilities
from fieldmark.evaluation.intervals import GroupBootstrap, as_column

TRAIN_FRACTIONS = (0.125, 0.25, 0.5, 1.0)


def learning_curve(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[int],
    class_names: Sequence[str],
    full_correct: np.ndarray | None = None,
) -> dict[str, Any] | None:
    """How often a linear classifier on these features is right that has learnt from ever more of the photos.

    Each photo is judged by one that has seen neither it nor its group, so all of them count. The features are those of
    the frozen network: fine-tuning is better throughout, but what more photos bring shows here too.

    Args:
        features: (n, c).
        labels: (n,) class numbers.
        groups: of each photo, which stays on one side.
        names: of the classes.
        full: (n,) which photos are told right by a classifier that has learnt from all, where that is known already.

    Returns:
        `points`: photos learnt from, accuracy, ci95; `rises`: whether the last doubling brought more than two standard
        errors; `doubled`: the accuracy with twice as many photos, if the errors
        go on to fall by the factor of the last doubling (a power law, Hestness et al. 2017); `classes`: of each class
        photos, recall from half of them and from all, and the standard error of the difference, the largest
        difference first. None where there are too few photos to tell.
    """
    group_ids = np.asarray(groups)
    pairs = np.unique(np.stack([labels, group_ids]), axis=1)
    is_testable = (
        np.bincount(pairs[0], minlength=len(class_names)) > 1
    )  # of a class of one group nobody else could say what it is
    kept = is_testable[labels]
    features, group_ids, labels, full_correct = (
        features[kept],
        group_ids[kept],
        labels[kept],
        None if full_correct is None else full_correct[kept],
    )
    counts = np.bincount(labels, minlength=len(class_names))
    if len(np.unique(group_ids)) < 4 * N_FOLDS or (counts > 0).sum() < 2:
        return None
    correct = {} if full_correct is None else {1.0: full_correct}
    for fraction in TRAIN_FRACTIONS:
        if fraction * len(labels) < 2 * len(
            class_names
        ):  # with fewer than two photos a class it would be a game of luck
            continue
        if fraction not in correct:
            correct[fraction] = (
                cross_val_probabilities(features, labels, group_ids.tolist(), len(class_names), fraction).argmax(1)
                == labels
            )
    if 0.5 not in correct:
        return None
    bootstrap = GroupBootstrap(group_ids)
    points = [
        {
            "photos": round(share * (1 - 1 / N_FOLDS) * len(labels)),
            "accuracy": float(hits.mean()),
            "ci95": bootstrap.ratio_intervals(as_column(hits), as_column(np.ones(len(hits))))[0].tolist(),
        }
        for share, hits in sorted(correct.items())
    ]
    half, full_correct = correct[0.5], correct[1.0]
    before, now = 1 - half.mean(), 1 - full_correct.mean()
    factor = float(np.clip(now / before, 0, 1)) if before else 1.0
    classes = []
    for k in np.flatnonzero(counts).tolist():
        in_class = labels == k
        gained, lost = (full_correct & ~half & in_class).sum(), (half & ~full_correct & in_class).sum()
        classes.append(
            {
                "name": class_names[k],
                "n": int(counts[k]),
                "half": float(half[in_class].mean()),
                "recall": float(full_correct[in_class].mean()),
                "se": float(np.sqrt(gained + lost) / in_class.sum()),
            }
        )
    classes.sort(key=lambda row: row["half"] - row["recall"])
    gained, lost = (full_correct & ~half).sum(), (half & ~full_correct).sum()
    rises = bool(gained - lost > 2 * np.sqrt(gained + lost))
    return {"points": points, "doubled": float(1 - now * factor), "rises": rises, "classes": classes}
