"""What a session has learned from its labels: a classifier, doubted labels, and the next images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fieldmark.pipeline.teaching.label_check import held_out_scores, is_class_known, label_margins
from fieldmark.pipeline.teaching.learner import LinearModel, fit, inverse_of
from fieldmark.pipeline.teaching.queue import are_novel, next_images, uncertainty

MAX_LEARNED, MAX_LATEST = 10_000, 3_000
"""Labels that are learned from at a time: of more, the latest and a random sample of the others."""
QUEUE_LENGTH = 8
"""Images that are chosen at a time."""


@dataclass(frozen=True)
class Learned:
    """Replaced as a whole, so that readers never see a part.

    Attributes:
        model: None as long as fewer than two classes have labels.
        n_labels: images that it has learned from.
        queue: rows of the images to label next.
        novel: those of the queue that look like nothing that is labelled.
        doubts: row -> how much higher the best other class scores than its label, see `label_margins`.
        held_out: row of a labelled image -> scores (classes,) of a classifier that has not learned from it.
    """

    model: LinearModel | None = None
    n_labels: int = 0
    queue: tuple[int, ...] = ()
    novel: frozenset[int] = frozenset()
    doubts: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledRows:
    """Rows of the store with the numbers of their classes."""

    rows: Sequence[int]
    labels: np.ndarray


def learn(
    features: np.ndarray,
    groups: np.ndarray,
    train: LabelledRows,
    test: LabelledRows,
    open_rows: np.ndarray,
    n_classes: int,
) -> Learned:
    """Solve the classifier, look for wrong labels, and choose the next images.

    Args:
        features: of all images, (n, k).
        groups: of near-duplicates, (n,).
        train: images to learn from.
        test: labelled test images; their labels may be doubted too.
        open_rows: images without an answer.
    """
    train, left_out = _limited(train)
    others = LabelledRows([*left_out.rows, *test.rows], np.concatenate([left_out.labels, test.labels]))
    own = np.asarray(features[train.rows])
    model, doubts, held_out = None, dict[int, float](), dict[int, np.ndarray]()
    if len(np.unique(train.labels)) > 1:
        model = fit(own, train.labels, n_classes, groups[train.rows])
        own_groups = groups[train.rows]
        scores = held_out_scores(model, own, train.labels, own_groups, np.asarray(features[others.rows]))
        is_known = is_class_known(model, train.labels, own_groups, others.labels)
        margins = label_margins(scores, np.concatenate([train.labels, others.labels]), is_known)
        both = [*train.rows, *others.rows]
        doubts, held_out = dict(zip(both, margins.tolist(), strict=True)), dict(zip(both, scores, strict=True))
    candidates = np.asarray(features[open_rows])
    counts = np.bincount(train.labels, minlength=n_classes)
    scores = uncertainty(model, candidates, counts) if model else None
    inverse = model.inverse if model else inverse_of(own)
    chosen = next_images(candidates, inverse, scores, QUEUE_LENGTH, groups[open_rows])
    queue = open_rows[np.array(chosen, np.int64)]
    novel = queue[are_novel(candidates[chosen], own)]
    return Learned(
        model, len(train.rows), tuple(queue.tolist()), frozenset(novel.tolist()), doubts=doubts, held_out=held_out
    )


def _limited(train: LabelledRows) -> tuple[LabelledRows, LabelledRows]:
    """Those to learn from, and the others."""
    n = len(train.rows)
    if n <= MAX_LEARNED:
        return train, LabelledRows([], np.zeros(0, np.int64))
    is_chosen = np.zeros(n, bool)
    is_chosen[-MAX_LATEST:] = True
    is_chosen[np.random.default_rng(0).permutation(n - MAX_LATEST)[: MAX_LEARNED - MAX_LATEST]] = True
    rows = np.asarray(train.rows)
    chosen, others = (LabelledRows(rows[part].tolist(), train.labels[part]) for part in (is_chosen, ~is_chosen))
    return chosen, others
