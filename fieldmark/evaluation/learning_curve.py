"""features + labels -> the learning curve: would more photos help, and of which class?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fieldmark.audit.label_errors import FOLDS, out_of_fold
from fieldmark.evaluation.intervals import Resampled, column

SHARES = (0.125, 0.25, 0.5, 1.0)


def learning_curve(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[int],
    names: Sequence[str],
    full: np.ndarray | None = None,
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
    own = np.asarray(groups)
    pairs = np.unique(np.stack([labels, own]), axis=1)
    told = np.bincount(pairs[0], minlength=len(names)) > 1  # of a class of one group nobody else could say what it is
    kept = told[labels]
    features, own, labels, full = features[kept], own[kept], labels[kept], None if full is None else full[kept]
    counts = np.bincount(labels, minlength=len(names))
    if len(np.unique(own)) < 4 * FOLDS or (counts > 0).sum() < 2:
        return None
    right = {} if full is None else {1.0: full}
    for share in SHARES:
        if share * len(labels) < 2 * len(names):  # with fewer than two photos a class it would be a game of luck
            continue
        if share not in right:
            right[share] = out_of_fold(features, labels, own.tolist(), len(names), share).argmax(1) == labels
    if 0.5 not in right:
        return None
    drawn = Resampled(own)
    points = [
        {
            "photos": round(share * (1 - 1 / FOLDS) * len(labels)),
            "accuracy": float(found.mean()),
            "ci95": drawn.shares(column(found), column(np.ones(len(found))))[0].tolist(),
        }
        for share, found in sorted(right.items())
    ]
    half, full = right[0.5], right[1.0]
    before, now = 1 - half.mean(), 1 - full.mean()
    factor = float(np.clip(now / before, 0, 1)) if before else 1.0
    classes = []
    for k in np.flatnonzero(counts).tolist():
        mine = labels == k
        gained, lost = (full & ~half & mine).sum(), (half & ~full & mine).sum()
        classes.append(
            {
                "name": names[k],
                "n": int(counts[k]),
                "half": float(half[mine].mean()),
                "recall": float(full[mine].mean()),
                "se": float(np.sqrt(gained + lost) / mine.sum()),
            }
        )
    classes.sort(key=lambda row: row["half"] - row["recall"])
    gained, lost = (full & ~half).sum(), (half & ~full).sum()
    rises = bool(gained - lost > 2 * np.sqrt(gained + lost))
    return {"points": points, "doubled": float(1 - now * factor), "rises": rises, "classes": classes}
