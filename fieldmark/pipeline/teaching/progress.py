"""How a session stands: accuracy, coverage, what each class has, the learning curve."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fieldmark.pipeline.teaching import estimate
from fieldmark.pipeline.teaching.estimate import Estimate
from fieldmark.pipeline.teaching.labels import SessionLabels
from fieldmark.pipeline.teaching.learned import MAX_LEARNED, Learned
from fieldmark.pipeline.teaching.learner import LinearModel, fit
from fieldmark.pipeline.teaching.questions import ClassProgress, CurvePoint, TeachingMetrics

CONFIDENT = 0.9
"""Probability from which a prediction counts as covered."""
FEW_LABELS = 10
NEXT_LABELS = 100
MAX_COVERED = 5000
"""Images without a label from which the coverage is computed."""


class LearningCurve:
    """Classifiers of fewer labels, kept to be tried on test images that are read or labelled later.

    Args:
        features: of all images, (n, k).
        test_rows: of the test candidates.
    """

    def __init__(self, features: np.ndarray, test_rows: np.ndarray) -> None:
        self.features = features
        self.tests = set(map(int, test_rows))
        self.models = dict[int, LinearModel]()  # by the number of labels

    def update(self, rows: Sequence[int], labels: np.ndarray, n_classes: int) -> None:
        """Add the points that are missing up to these labels, which are in the order of labelling."""
        for size in estimate.curve_sizes(min(len(rows), MAX_LEARNED)):
            if size not in self.models and len(np.unique(labels[:size])) > 1:
                self.models[size] = fit(np.asarray(self.features[rows[:size]]), labels[:size], n_classes)

    def points(self, rows: Sequence[int], truth: np.ndarray) -> tuple[CurvePoint, ...]:
        """Accuracy on these test images, which have these classes, at each number of labels."""
        if not len(rows):
            return ()
        features = np.asarray(self.features[rows])
        return tuple(
            CurvePoint(size, float((model.scores(features).argmax(1) == truth).mean()))
            for size, model in sorted(dict(self.models).items())
        )


def measure(
    features: np.ndarray,
    is_read: np.ndarray,
    labels: SessionLabels,
    learned: Learned,
    classes: Sequence[str],
    open_rows: np.ndarray,
    curve: LearningCurve,
) -> TeachingMetrics:
    """The metrics of a session.

    Args:
        features: of all images, (n, k); those of images that are not read are not used.
        is_read: (n,).
        open_rows: images to learn from without an answer.
    """
    number, model = {name: k for k, name in enumerate(classes)}, learned.model
    rows = [row for row in labels.test if is_read[row] and row in curve.tests]
    truth = np.array([number[labels.test[row]] for row in rows], np.int64)
    hits, is_sure, coverage = np.zeros(0, bool), np.zeros(0, bool), None
    if model is not None:
        model = model.with_classes(len(classes))
        logits = model.logits(np.asarray(features[rows]))
        hits = logits.argmax(1) == truth
        scale = estimate.fit_scale(logits, truth)
        is_sure = estimate.confidence(logits, scale) >= CONFIDENT
        coverage = _coverage(model, scale, features[open_rows[:: -(-len(open_rows) // MAX_COVERED) or 1]])
    accuracy, history = Estimate.of(hits), curve.points(rows, truth)
    return TeachingMetrics(
        labelled=len(labels.train) + len(labels.test),
        unlabelled=len(features) - sum(map(len, (labels.train, labels.test, labels.excluded, labels.skipped))),
        excluded=len(labels.excluded),
        skipped=len(labels.skipped),
        accuracy=accuracy,
        coverage=coverage,
        selective_accuracy=Estimate.of(hits[is_sure]),
        expected_gain=estimate.expected_gain(history, learned.n_labels, NEXT_LABELS, len(rows)),
        next_labels=NEXT_LABELS,
        classes=_class_progress(number, labels, hits, truth, accuracy),
        history=history,
        suspicious=len(doubtful_rows(learned.doubts, labels)),
    )


def _coverage(model: LinearModel, scale: float, features: np.ndarray) -> float | None:
    if not len(features):
        return None
    return float((estimate.confidence(model.logits(np.asarray(features)), scale) >= CONFIDENT).mean())


def _class_progress(
    number: Mapping[str, int], labels: SessionLabels, hits: np.ndarray, truth: np.ndarray, accuracy: Estimate
) -> tuple[ClassProgress, ...]:
    counts = Counter([*labels.train.values(), *labels.test.values()])
    progress = list[ClassProgress]()
    for name, k in number.items():
        recall = Estimate.of(hits[truth == k] if len(hits) else hits)
        is_low = recall.n >= 5 and accuracy.share is not None and recall.high < accuracy.share
        progress.append(ClassProgress(name, counts[name], recall, counts[name] < FEW_LABELS or is_low))
    return tuple(progress)


def doubtful_rows(doubts: Mapping[int, float], labels: SessionLabels) -> list[int]:
    """Rows whose label the classifier does not predict, the most doubtful first; each is asked about again once."""
    found = [
        (margin, row)
        for row, margin in doubts.items()
        if margin > 0 and labels.label_of(row) and not labels.checks[row]
    ]
    return [row for _, row in sorted(found, reverse=True)]
