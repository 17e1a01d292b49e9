"""What a session asks, and what it knows about its progress."""

from dataclasses import dataclass
from typing import Literal

from fieldmark.pipeline.teaching.estimate import Estimate
from fieldmark.pipeline.teaching.journal import Purpose

Reason = Literal["random", "uncertain", "new", "suspicious", "duplicates"]


@dataclass(frozen=True)
class Question:
    """An image to ask about.

    Attributes:
        path: name of the image.
        reason: `random` (a test image), `uncertain`, `new` (unlike all that is labelled), `suspicious` (the
            classifier doubts its label) or `duplicates` (its near-duplicates have another label).
        purpose: what the answer is used for.
        proposal: the predicted class; None as long as there is no classifier.
        confidence: its probability.
        top: the most probable classes with their probabilities.
        label: the present label, of images that have one.
        others: names of the near-duplicates with another label.
    """

    path: str
    reason: Reason
    purpose: Purpose = "train"
    proposal: str | None = None
    confidence: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    label: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassProgress:
    """A class in a session.

    Attributes:
        labelled: images with this label.
        recall: part of its test images that are predicted as this class.
        is_short: whether more images of it would help: few labels, or a recall that is clearly low.
    """

    name: str
    labelled: int
    recall: Estimate
    is_short: bool


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy on the labelled test images of the classifier that learned from so many images."""

    labelled: int
    accuracy: float


@dataclass(frozen=True)
class TeachingMetrics:
    """Where a session stands.

    Attributes:
        labelled: images with a label, test images included.
        unlabelled: images without an answer.
        excluded: images that were left out.
        skipped: images that were skipped and are asked again at the end.
        accuracy: of the present classifier on the labelled test images, a random sample of the images in question.
        coverage: part of the images without a label that are predicted with a confidence of at least 0.9.
        selective_accuracy: accuracy on the test images with such a confidence.
        expected_gain: how much the accuracy would rise with `next_labels` labels more; None if it is not known yet.
        classes: in the order of the classes.
        history: the learning curve, with the test images of now.
        suspicious: labels that the classifier does not predict and nobody has confirmed.
    """

    labelled: int
    unlabelled: int
    excluded: int
    skipped: int
    accuracy: Estimate
    coverage: float | None
    selective_accuracy: Estimate
    expected_gain: float | None
    next_labels: int
    classes: tuple[ClassProgress, ...]
    history: tuple[CurvePoint, ...]
    suspicious: int
