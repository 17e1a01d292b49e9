"""Predictions of labelled images -> `Metrics` with 95 % confidence intervals.

Every metric that Fieldmark reports comes from `compute_metrics`: of a training run, of `evaluate`, and of pooled folds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack
from scipy.special import softmax
from sklearn import metrics as sk_metrics

from fieldmark.core import io
from fieldmark.evaluation.calibration import (
    N_BINS,
    bin_indices,
    coverage_curve,
    expected_calibration_error,
    reliability_curve,
)
from fieldmark.evaluation.intervals import GroupBootstrap, as_column, one_hot
from fieldmark.evaluation.results import (
    BinaryMetrics,
    ClassMetrics,
    ConfusedPair,
    Interval,
    Metrics,
    OperatingPoint,
    Reliability,
    RocCurve,
)

MAX_CONFUSED_PAIRS = 10
"""Most confused pairs of classes that are reported."""
MAX_ROC_POINTS = 100
MIN_PROBABILITY = 1e-12
"""Lower bound of the probability in the cross-entropy, so that it stays finite."""

Ratios = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name -> numerator and denominator, bool (n,) each."""
Intervals = dict[str, Interval | None]


@dataclass(frozen=True)
class Predictions:
    """Outputs of a classifier for n labelled images. The fields are the arrays of a run's answers.npz."""

    logits: np.ndarray
    """float32 (n, classes)"""
    probabilities: np.ndarray
    """float32 (n, classes): softmax of the temperature-scaled logits"""
    scores: np.ndarray
    """float32 (n,): OOD score (`known_score` of the model)"""
    labels: np.ndarray
    """int64 (n,): indices of the true classes"""
    groups: np.ndarray
    """int64 (n,): images of one group are not independent of each other"""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> "Predictions":
        """Those of some of the images."""
        return Predictions(**{name: array[rows] for name, array in vars(self).items()})

    def save(self, file: Path) -> None:
        with io.atomic_path(file) as partial, partial.open("wb") as handle:
            np.savez_compressed(handle, **vars(self))

    @classmethod
    def load(cls, file: Path) -> "Predictions":
        with np.load(file, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})

    @classmethod
    def concatenate(cls, parts: Iterable["Predictions"]) -> "Predictions":
        """Predictions of several sets of images; no group is in two sets."""
        predictions, groups, first = list(parts), [], 0
        for part in predictions:
            groups.append(part.groups + first)
            first += int(part.groups.max(initial=-1)) + 1
        joined = {
            name: np.concatenate([getattr(part, name) for part in predictions])
            for name in ("logits", "probabilities", "scores", "labels")
        }
        return cls(**joined, groups=np.concatenate(groups))


def compute_metrics(
    predictions: Predictions,
    classes: list[str],
    threshold: float,
    positive: str | None = None,
    decision_threshold: float | np.ndarray = 0.5,
) -> Metrics:
    """All metrics of one set of predictions, with confidence intervals that respect the groups (`GroupBootstrap`).

    Args:
        predictions: at least one image.
        classes: class names, in the order of the logits.
        threshold: OOD score from which an image is accepted as one of the classes.
        positive: the positive one of two classes; by default the one with fewer images here.
        decision_threshold: probability of `positive` from which `at_threshold` predicts it: one, or (n,).

    Raises:
        ValueError: there is no image.
    """
    n, k = len(predictions), len(classes)
    if n == 0:
        raise ValueError("no images to compute metrics of")
    labels, probabilities = predictions.labels, predictions.probabilities
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    correct, accepted, everything = predicted == labels, predictions.scores >= threshold, np.ones(n)
    bootstrap = GroupBootstrap(predictions.groups)
    ratios = {
        "accuracy": (correct, everything),
        "top5": (_in_top_k(probabilities, labels), everything),
        "coverage": (accepted, everything),
        "accuracy_known": (correct & accepted, accepted),
    }
    shares, intervals = _shares(ratios, bootstrap)
    means, mean_intervals, per_class = _class_metrics(bootstrap, labels, predicted, classes)
    ece = expected_calibration_error(confidence, correct) if len(np.unique(labels)) == k else None
    ece_interval = None if ece is None else _ece_interval(bootstrap, confidence, correct, ece)
    intervals |= mean_intervals | {"ece": ece_interval}
    binary = None
    if k == 2 and len(np.unique(labels)) == 2:
        index = classes.index(positive) if positive else int(np.argmin(np.bincount(labels, minlength=2)))
        is_positive, score, called = labels == index, probabilities[:, index], predicted == index
        binary, binary_intervals = _binary_metrics(
            classes[index], bootstrap, is_positive, score, called, decision_threshold
        )
        intervals |= binary_intervals
    confusion = sk_metrics.confusion_matrix(labels, predicted, labels=list(range(k)))
    raw_confidence = softmax(predictions.logits, axis=1).max(1)
    true_probabilities = np.maximum(probabilities[np.arange(n), labels], MIN_PROBABILITY)
    return Metrics(
        **shares,
        **means,
        n=n,
        n_groups=bootstrap.n_groups,
        intervals=intervals,
        per_class=per_class,
        confusion=tuple(map(tuple, confusion.tolist())),
        confused=_most_confused_pairs(confusion, classes, labels, predicted, bootstrap),
        ece=ece,
        loss=float(-np.log(true_probabilities).mean()),
        threshold=threshold,
        reliability=Reliability(reliability_curve(raw_confidence, correct), reliability_curve(confidence, correct)),
        ece_before=expected_calibration_error(raw_confidence, correct),
        coverage_curve=coverage_curve(predictions.scores, correct),
        binary=binary,
    )


def _in_top_k(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> np.ndarray:
    """Whether the true class is among the k most probable ones, bool (n,); of equal ones the first class counts."""
    n, classes = probabilities.shape
    true_probability = probabilities[np.arange(n), labels][:, None]
    is_tied_before = (probabilities == true_probability) & (np.arange(classes) < labels[:, None])
    return ((probabilities > true_probability) | is_tied_before).sum(1) < k


def _shares(ratios: Ratios, bootstrap: GroupBootstrap) -> tuple[dict, Intervals]:
    """The share of each ratio and its interval, by name; None with a denominator of zero."""
    parts, wholes = (csr_array(hstack([as_column(ratio[i]) for ratio in ratios.values()])) for i in (0, 1))
    bounds = dict(zip(ratios, bootstrap.ratio_intervals(parts, wholes).tolist(), strict=True))
    is_defined = {name: bool(whole.any()) for name, (_, whole) in ratios.items()}
    shares = {name: float(p.sum() / w.sum()) if is_defined[name] else None for name, (p, w) in ratios.items()}
    return shares, {name: _as_interval(bounds[name]) if is_defined[name] else None for name in ratios}


def _as_interval(bounds: list[float]) -> Interval:
    return bounds[0], bounds[1]


def _class_metrics(
    bootstrap: GroupBootstrap, labels: np.ndarray, predicted: np.ndarray, classes: list[str]
) -> tuple[dict[str, Any], Intervals, dict[str, ClassMetrics]]:
    """Means over the classes, their intervals, and the metrics of each class; no means if a class has no images."""
    k, correct = len(classes), predicted == labels
    true, called, both = one_hot(labels, k), one_hot(predicted, k), one_hot(labels, k, correct)
    # scikit-learn documents the number; its annotation knows the words only.
    scores = sk_metrics.precision_recall_fscore_support(labels, predicted, labels=list(range(k)), zero_division=0)  # type: ignore[arg-type]
    precision, recall, f1, support = map(np.asarray, scores)
    means: dict[str, Any] = {"balanced_accuracy": None, "macro_f1": None}
    intervals: Intervals = dict.fromkeys(means)
    if support.all():
        means = {"balanced_accuracy": float(recall.mean()), "macro_f1": float(f1.mean())}
        resampled = _resampled_means(*map(bootstrap.resampled_totals, (true, called, both)))
        intervals = {name: bootstrap.interval(resampled[name], mean) for name, mean in means.items()}
    recall_intervals = bootstrap.ratio_intervals(both, true).tolist()
    precision_intervals = bootstrap.ratio_intervals(both, called).tolist()
    n_predicted = np.bincount(predicted, minlength=k)
    per_class = {
        name: ClassMetrics(
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            n=int(support[i]),
            recall_ci95=_as_interval(recall_intervals[i]) if support[i] else None,
            precision_ci95=_as_interval(precision_intervals[i]) if n_predicted[i] else None,
        )
        for i, name in enumerate(classes)
    }
    return means, intervals, per_class


def _resampled_means(true: np.ndarray, called: np.ndarray, both: np.ndarray) -> dict[str, np.ndarray]:
    """Mean recall and mean F1 of each resample from its counts by class, (resamples, classes) each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "balanced_accuracy": np.nanmean(np.where(true > 0, both / true, np.nan), 1),
            "macro_f1": np.nanmean(np.where(true > 0, 2 * both / (true + called), np.nan), 1),
        }


def _most_confused_pairs(
    confusion: np.ndarray, classes: list[str], labels: np.ndarray, predicted: np.ndarray, bootstrap: GroupBootstrap
) -> tuple[ConfusedPair, ...]:
    """The most frequent confusions, most images first, then by their share of the true class."""
    totals = confusion.sum(1)
    pairs = [(t, p, int(n)) for (t, p), n in np.ndenumerate(confusion) if n and t != p]
    pairs = sorted(pairs, key=lambda pair: (-pair[2], -pair[2] / totals[pair[0]]))[:MAX_CONFUSED_PAIRS]
    if not pairs:
        return ()
    ratios = {f"{t} {p}": ((labels == t) & (predicted == p), labels == t) for t, p, _ in pairs}
    parts, wholes = (csr_array(hstack([as_column(ratio[i]) for ratio in ratios.values()])) for i in (0, 1))
    bounds = bootstrap.ratio_intervals(parts, wholes).tolist()
    return tuple(
        ConfusedPair(classes[t], classes[p], n, n / int(totals[t]), _as_interval(interval))
        for (t, p, n), interval in zip(pairs, bounds, strict=True)
    )


# ---- two classes


def _binary_metrics(
    positive: str,
    bootstrap: GroupBootstrap,
    is_positive: np.ndarray,
    score: np.ndarray,
    called: np.ndarray,
    decision_threshold: float | np.ndarray,
) -> tuple[BinaryMetrics, Intervals]:
    """Binary metrics and the intervals of those of the most probable class.

    is_positive (n,): truth, score (n,): probability of the positive class, called (n,): it is the most probable one.
    """
    shares, intervals = _shares(_binary_ratios(is_positive, called), bootstrap)
    called_at = score >= decision_threshold
    accuracy = {"accuracy": (called_at == is_positive, np.ones(len(score)))}
    shares_at, intervals_at = _shares(accuracy | _binary_ratios(is_positive, called_at), bootstrap)
    fpr, tpr, _ = sk_metrics.roc_curve(is_positive, score)
    kept = np.unique(np.linspace(0, len(fpr) - 1, MAX_ROC_POINTS).round().astype(int))
    auc = float(sk_metrics.roc_auc_score(is_positive, score))
    intervals["roc_auc"] = bootstrap.interval(_resampled_roc_auc(bootstrap, is_positive, score), auc)
    return BinaryMetrics(
        positive=positive,
        roc_auc=auc,
        roc=RocCurve(tuple(fpr[kept].tolist()), tuple(tpr[kept].tolist())),
        at_threshold=OperatingPoint(float(np.mean(decision_threshold)), intervals_at, **shares_at),
        **shares,
    ), intervals


def _binary_ratios(is_positive: np.ndarray, called: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "sensitivity": (is_positive & called, is_positive),
        "specificity": (~is_positive & ~called, ~is_positive),
        "ppv": (is_positive & called, called),
        "npv": (~is_positive & ~called, ~called),
    }


def _resampled_roc_auc(bootstrap: GroupBootstrap, is_positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """ROC-AUC of each resample, (resamples,).

    The share of pairs of a positive and a negative image in which the positive one has the higher score, ties counting
    half (the Mann-Whitney statistic; Hanley & McNeil 1982, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve").
    """
    _, rank = np.unique(score, return_inverse=True)
    levels = rank.max() + 1
    sums = [csr_array(bootstrap.group_indicator @ one_hot(rank, levels, of)).T for of in (is_positive, ~is_positive)]
    values = []
    for weights in bootstrap.iter_weights():
        positives, negatives = (counts @ weights.T for counts in sums)  # (levels, block)
        below = np.cumsum(negatives, 0) - negatives / 2
        with np.errstate(invalid="ignore"):
            values.append((positives * below).sum(0) / (positives.sum(0) * negatives.sum(0)))
    return np.concatenate(values)


def _ece_interval(bootstrap: GroupBootstrap, confidence: np.ndarray, correct: np.ndarray, ece: float) -> Interval:
    """The basic bootstrap interval (Davison & Hinkley 1997, equation 5.6), which corrects the bias of the resamples.

    The error of a bin is an absolute value, so it grows with fewer images, and with images that are drawn twice.
    """
    sums = bootstrap.resampled_totals(one_hot(bin_indices(confidence), N_BINS, confidence - correct))
    sizes = bootstrap.resampled_totals(as_column(np.ones(len(correct))))[:, 0]
    low, high = np.quantile(np.abs(sums).sum(1) / sizes, (0.025, 0.975))
    # Where the correction is so large that the estimate itself would lie outside, the interval reaches up to it.
    return max(0.0, float(min(ece, 2 * ece - high))), max(0.0, float(max(ece, 2 * ece - low)))
