"""Findings of runs, made of a confusion matrix, a history and an audit: for the tests of what a report concludes."""

from dataclasses import replace
from typing import Any

import numpy as np

from fieldmark.audit.report import AuditReport, LabelQuality, MetadataScore, Shortcut
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.evaluation.results import ClassGain, LearningCurve, LearningCurvePoint, Metrics
from fieldmark.report.recommendations.findings import Findings
from fieldmark.report.run_metrics import RunMetrics
from fieldmark.training.history import EpochRecord

NO_ISSUES = AuditReport({}, 0, (), (), (), (), (), (), (), (), ())
FLAT = [[190, 5, 5], [5, 190, 5], [5, 5, 190]]
"""A confusion matrix with errors spread evenly."""


def metrics_of(
    matrix: list[list[int]], confidence: float | None = None, rejected: int = 0, wrong_rejected: int = 0, **options: Any
) -> Metrics:
    """Metrics of predictions with that confusion matrix; so many correct and wrong images are rejected as unknown."""
    cells = np.array(matrix)
    k, pairs = len(cells), np.repeat(np.argwhere(cells >= 0), cells.ravel(), axis=0)
    labels, predicted = pairs.T
    correct = labels == predicted
    sure = correct.mean() if confidence is None else confidence
    probabilities = np.full((len(labels), k), (1 - sure) / (k - 1))
    probabilities[np.arange(len(labels)), predicted] = sure
    logits = np.log(np.maximum(probabilities, 1e-9))
    scores = np.ones(len(labels))
    scores[np.flatnonzero(correct)[:rejected]] = scores[np.flatnonzero(~correct)[:wrong_rejected]] = 0
    groups = options.pop("groups", np.arange(len(labels)))
    predictions = Predictions(logits, probabilities, scores, labels, groups)
    return compute_metrics(predictions, [f"class {i}" for i in range(k)], 0.5, **options)


def curve(gain: float, *, rises: bool, n: int = 2000, changed: float = 0.02) -> LearningCurve:
    """A learning curve whose last doubling brought so much; that share of the predictions changed by it."""
    points = tuple(
        LearningCurvePoint(photos, at, (at - 0.02, at + 0.02)) for photos, at in ((500, 0.9 - gain), (1000, 0.9))
    )
    classes = (ClassGain("class 0", n, 0.9 - gain, 0.9, (changed / n) ** 0.5),)
    return LearningCurve(points, 0.9 + gain, rises, classes)


def epochs(*accuracies: float, train: float | None = None, probe: float | None = None) -> list[EpochRecord]:
    """The history of a probe and of fine-tuning with these validation accuracies; the loss falls with them."""
    phases = [(1, probe)] if probe else []
    phases += [(2, accuracy) for accuracy in accuracies]
    return [
        EpochRecord(number, phase, 0.1, 0.1, at if train is None else train, 1 - at, at, 1.0)
        for number, (phase, at) in enumerate(phases, 1)
    ]


def found(test: Metrics | None = None, images: int = 0, **changes: Any) -> Findings:
    """Findings of a run with that test, and with so many training images of each class."""
    metrics = {
        name: changes.pop(name)
        for name in ("learning_curve", "validation", "best_epoch", "folds", "seconds")
        if name in changes
    }
    classes = list(test.per_class) if test else []
    command = "fieldmark train PHOTOS --out RUN --epochs 5 --resume"
    counts = changes.pop("counts", dict.fromkeys(classes, images))
    labels = {f"{name}/{k}.jpg": name for name, n in counts.items() for k in range(n)}
    return Findings(
        metrics=RunMetrics(test=test, classes=classes, command=command, **metrics),
        labels=labels,
        splits=dict.fromkeys(labels, "train"),
        **changes,
    )


def audited(**issues: Any) -> Findings:
    return found(metrics_of(FLAT), audit=replace(NO_ISSUES, **issues))


def leaked(other: str) -> Findings:
    """A test image with a copy in another split, or in the same one."""
    copies = audited(leaks=(("a.jpg", "b.jpg"),))
    return replace(copies, splits={"a.jpg": "test", "b.jpg": other}, labels={"a.jpg": "a", "b.jpg": "a"})


def metadata(accuracy: float) -> MetadataScore:
    evidence = Shortcut("class 0", "format", "JPEG", 0.83, 0.0)
    return MetadataScore(accuracy, 0.01, 1 / 3, ("format",), "class 0", accuracy, 0.01, evidence)


def decided(n_between: int) -> Findings:
    """Two classes, where the fitted threshold finds that many positives that 0.5 misses."""
    scores = np.concatenate([np.full(100, 0.9), np.full(n_between, 0.4), np.full(300, 0.1)])
    labels = np.concatenate([np.ones(100 + n_between), np.zeros(300)]).astype(int)
    probabilities = np.stack([1 - scores, scores], 1)
    everything = Predictions(np.log(probabilities), probabilities, np.ones(len(labels)), labels, np.arange(len(labels)))
    return found(compute_metrics(everything, ["class 0", "class 1"], 0.5, "class 1", 0.3))


def uneven(per_class: int) -> Findings:
    """Two classes: half of the images are right at a confidence of 0.6, the others half of the time at 0.9."""
    labels = np.repeat([0, 1], per_class)
    is_first = np.arange(2 * per_class) % 2 == 0
    is_right = is_first | (np.arange(2 * per_class) % 4 == 1)
    sure, predicted = np.where(is_first, 0.6, 0.9), np.where(is_right, labels, 1 - labels)
    probabilities = np.where(np.arange(2) == predicted[:, None], sure[:, None], 1 - sure[:, None])
    size = len(labels)
    answers = Predictions(np.log(probabilities), probabilities, np.ones(size), labels, np.arange(size))
    return found(compute_metrics(answers, ["class 0", "class 1"], 0.5))


CONFUSED = [[150, 45, 5], [40, 155, 5], [5, 5, 190]]
RARE_WEAK = [[190, 5, 5], [5, 190, 5], [10, 8, 12]]
ERRORS = (LabelQuality("class 0/7.jpg", "class 0", "class 1", 0.1),)
SMALL, WIDE = [[19, 1, 0], [1, 19, 0], [1, 0, 19]], [[9, 1, 0], [1, 9, 0], [1, 1, 8]]
