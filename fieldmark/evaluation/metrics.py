"""Answers to labelled photos -> figures with 95 % intervals, reliability, coverage.

All figures that Fieldmark tells come from `figures`: of a training, of `evaluate`, of folds together, in the report.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack
from scipy.special import softmax
from sklearn import metrics

from fieldmark.evaluation.calibration import (
    N_BINS,
    bin_indices,
    coverage_curve,
    expected_calibration_error,
    reliability_curve,
)
from fieldmark.evaluation.intervals import GroupBootstrap, as_column, one_hot

Metrics = dict[str, Any]

MAX_CONFUSED_PAIRS = 10
"""Pairs of classes that are named as the most confused."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of n labelled photos."""

    logits: np.ndarray  # float32 (n, classes)
    probabilities: np.ndarray  # float32 (n, classes): softmax of the tempered logits
    scores: np.ndarray  # float32 (n,): known_score
    labels: np.ndarray  # int64 (n,): numbers of the true classes
    groups: np.ndarray  # int64 (n,): photos of one group are no independent witnesses

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, file: Path) -> None:
        temporary = file.with_name(f"{file.stem}.half.npz")
        np.savez_compressed(temporary, **vars(self))
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> "Predictions":
        with np.load(file, allow_pickle=False) as kept:
            return cls(**{name: kept[name] for name in kept.files})

    @classmethod
    def concatenate(cls, parts: Iterable["Predictions"]) -> "Predictions":
        """Those of several sets of photos that share no group."""
        predictions, groups, first = list(parts), [], 0
        for part in predictions:
            groups.append(part.groups + first)
            first += int(part.groups.max(initial=-1)) + 1
        joined = {
            name: np.concatenate([getattr(one, name) for one in predictions])
            for name in ("logits", "probabilities", "scores", "labels")
        }
        return cls(**joined, groups=np.concatenate(groups))


def compute_metrics(
    predictions: Predictions,
    classes: list[str],
    threshold: float,
    positive: str | None = None,
    decision_threshold: float | np.ndarray = 0.5,
) -> Metrics | None:
    """Every figure of one set of photos; None where there are no photos.

    Args:
        answers: what was said of the photos.
        classes: their names.
        least: the score from which a photo is `known`.
        positive: of two classes the one that is looked for; without it, the rarer of these photos.
        decision: the probability of `positive` from which `at_threshold` calls a photo so; for each, or (n,).
    """
    n = len(predictions)
    if n == 0:
        return None
    labels, probabilities, k = predictions.labels, predictions.probabilities, len(classes)
    bootstrap = GroupBootstrap(predictions.groups)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    correct, accepted = predicted == labels, predictions.scores >= threshold
    true_probability = probabilities[np.arange(n), labels][:, None]
    ranked_higher = (probabilities > true_probability) | (
        (probabilities == true_probability) & (np.arange(k) < labels[:, None])
    )
    in_top5 = ranked_higher.sum(1) < 5
    result: Metrics = {"n": n, "groups": bootstrap.n_groups, "intervals": {}}

    ratios = {
        "accuracy": (correct, np.ones(n)),
        "top5": (in_top5, np.ones(n)),
        "coverage": (accepted, np.ones(n)),
        "accuracy_known": (correct & accepted, accepted),
    }
    _add_ratios(result, bootstrap, ratios)
    result["ci95"] = result["intervals"]["accuracy"]
    result |= _per_class_metrics(result, bootstrap, labels, predicted, classes)
    result["confusion"] = metrics.confusion_matrix(labels, predicted, labels=list(range(k))).tolist()
    result["confused"] = most_confused_pairs(result["confusion"], classes, labels, predicted, bootstrap)
    result["ece"] = expected_calibration_error(confidence, correct)
    result["intervals"]["ece"] = _ece_interval(bootstrap, confidence, correct, result["ece"])
    result["loss"] = float(-np.log(np.maximum(probabilities[np.arange(n), labels], 1e-12)).mean())
    result["threshold"] = threshold
    raw_confidence = softmax(predictions.logits, axis=1).max(1)
    result["reliability"] = {
        "before": reliability_curve(raw_confidence, correct),
        "after": reliability_curve(confidence, correct),
    }
    result["ece_before"] = expected_calibration_error(raw_confidence, correct)
    result["coverage_curve"] = coverage_curve(predictions.scores, correct)
    if k == 2 and len(np.unique(labels)) == 2:
        positive_index = classes.index(positive) if positive else int(np.argmin(np.bincount(labels, minlength=2)))
        result |= _binary_metrics(
            result,
            bootstrap,
            labels == positive_index,
            probabilities[:, positive_index],
            predicted == positive_index,
            decision_threshold,
        )
        result["positive"] = classes[positive_index]
    return result


def _add_ratios(result: Metrics, bootstrap: GroupBootstrap, ratios: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Each share of (part, whole), (n,) truth values each, and its interval; None of nothing."""
    parts, wholes = (csr_array(hstack([as_column(pair[i]) for pair in ratios.values()])) for i in (0, 1))
    bounds = bootstrap.ratio_intervals(parts, wholes)
    for name, (part, whole), interval in zip(ratios, ratios.values(), bounds, strict=True):
        some = bool(whole.any())
        result[name] = float(part.sum() / whole.sum()) if some else None
        result["intervals"][name] = interval.tolist() if some else None


def _per_class_metrics(
    result: Metrics, bootstrap: GroupBootstrap, labels: np.ndarray, predicted: np.ndarray, classes: list[str]
) -> Metrics:
    """Precision, recall and F1 of each class, and their means over the classes that have photos."""
    k, correct = len(classes), predicted == labels
    true_columns, predicted_columns, correct_columns = (
        one_hot(labels, k),
        one_hot(predicted, k),
        one_hot(labels, k, correct),
    )
    # scikit-learn documents the number; its annotation knows the words only.
    scores = metrics.precision_recall_fscore_support(labels, predicted, labels=list(range(k)), zero_division=0)  # type: ignore[arg-type]
    precision, recall, f1, support = map(np.asarray, scores)
    recall_intervals, precision_intervals = (
        bootstrap.ratio_intervals(correct_columns, true_columns).tolist(),
        bootstrap.ratio_intervals(correct_columns, predicted_columns).tolist(),
    )
    predicted_counts = np.bincount(predicted, minlength=k)
    has_support = support > 0
    true_totals, predicted_totals, correct_totals = (
        bootstrap.resampled_totals(columns)[:, has_support]
        for columns in (true_columns, predicted_columns, correct_columns)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = np.nanmean(np.where(true_totals > 0, correct_totals / true_totals, np.nan), 1)
        f1s = np.nanmean(np.where(true_totals > 0, 2 * correct_totals / (true_totals + predicted_totals), np.nan), 1)
    means = {"balanced_accuracy": float(recall[has_support].mean()), "macro_f1": float(f1[has_support].mean())}
    for name, values in (("balanced_accuracy", recalls), ("macro_f1", f1s)):
        result["intervals"][name] = bootstrap.interval(values, means[name])
    rows = zip(
        classes, precision, recall, f1, support, predicted_counts, recall_intervals, precision_intervals, strict=True
    )
    return means | {
        "per_class": {
            name: {
                "precision": float(p),
                "recall": float(r),
                "f1": float(f),
                "n": int(s),
                "recall_ci95": low_r if s else None,
                "precision_ci95": low_p if a else None,
            }
            for name, p, r, f, s, a, low_r, low_p in rows
        }
    }


def most_confused_pairs(
    matrix: list[list[int]], classes: list[str], labels: np.ndarray, predicted: np.ndarray, bootstrap: GroupBootstrap
) -> list[dict[str, Any]]:
    """The commonest mistakes, most photos first: true class, answer, photos, their share of the true class."""
    pairs = [(t, a, n) for t, row in enumerate(matrix) for a, n in enumerate(row) if n and t != a]
    pairs = sorted(pairs, key=lambda pair: (-pair[2], -pair[2] / sum(matrix[pair[0]])))[:MAX_CONFUSED_PAIRS]
    if not pairs:
        return []
    parts = csr_array(hstack([as_column((labels == t) & (predicted == a)) for t, a, _ in pairs]))
    wholes = csr_array(hstack([as_column(labels == t) for t, _, _ in pairs]))
    bounds = bootstrap.ratio_intervals(parts, wholes).tolist()
    return [
        {"label": classes[t], "predicted": classes[a], "n": n, "share": n / sum(matrix[t]), "ci95": interval}
        for (t, a, n), interval in zip(pairs, bounds, strict=True)
    ]


# ---- two classes


def _binary_metrics(
    result: Metrics,
    bootstrap: GroupBootstrap,
    true: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    decision_threshold: float | np.ndarray,
) -> Metrics:
    """ROC-AUC, and what share is found and left alone: by the likelier class, and `at_threshold`.

    true (n,) whether a photo is positive, score (n,) its probability of that, said (n,) whether it is called so.
    """
    _add_ratios(result, bootstrap, _binary_ratios(true, predicted))
    fpr, tpr, _ = metrics.roc_curve(true, score)
    kept_points = np.unique(np.linspace(0, len(fpr) - 1, 100).round().astype(int))
    at_threshold: Metrics = {"threshold": float(np.mean(decision_threshold)), "intervals": {}}
    predicted_at = score >= decision_threshold
    _add_ratios(
        at_threshold,
        bootstrap,
        {"accuracy": (predicted_at == true, np.ones(len(true)))} | _binary_ratios(true, predicted_at),
    )
    auc = float(metrics.roc_auc_score(true, score))
    result["intervals"]["roc_auc"] = bootstrap.interval(_bootstrap_roc_auc(bootstrap, true, score), auc)
    return {
        "roc_auc": auc,
        "roc": {"fpr": fpr[kept_points].tolist(), "tpr": tpr[kept_points].tolist()},
        "at_threshold": at_threshold,
    }


def _binary_ratios(true: np.ndarray, predicted: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "sensitivity": (true & predicted, true),
        "specificity": (~true & ~predicted, ~true),
        "ppv": (true & predicted, predicted),
        "npv": (~true & ~predicted, ~predicted),
    }


def _bootstrap_roc_auc(bootstrap: GroupBootstrap, true: np.ndarray, score: np.ndarray) -> np.ndarray:
    """ROC-AUC of each draw, (draws,): the share of pairs in which the positive photo has the higher score."""
    _, rank = np.unique(score, return_inverse=True)
    levels = rank.max() + 1
    sums = [csr_array(bootstrap.group_indicator @ one_hot(rank, levels, side)).T for side in (true, ~true)]
    values = []
    for weights in bootstrap.iter_weights():
        positives, negatives = (side @ weights.T for side in sums)  # (levels, block)
        below = np.cumsum(negatives, 0) - negatives / 2
        with np.errstate(invalid="ignore"):
            values.append((positives * below).sum(0) / (positives.sum(0) * negatives.sum(0)))
    return np.concatenate(values)


def _ece_interval(bootstrap: GroupBootstrap, confidence: np.ndarray, correct: np.ndarray, ece: float) -> list[float]:
    """By the basic bootstrap, which takes off by how much each draw is too high (Davison & Hinkley 1997, section 5.2).

    The distance of a bin cannot be below nothing, so of fewer photos it is larger, and so it is of photos drawn twice.
    """
    sums = bootstrap.resampled_totals(one_hot(bin_indices(confidence), N_BINS, confidence - correct))
    sizes = bootstrap.resampled_totals(as_column(np.ones(len(correct))))[:, 0]
    low, high = np.quantile(np.abs(sums).sum(1) / sizes, (0.025, 0.975))
    # Where it takes off so much that the figure itself would lie outside, the interval reaches up to it.
    return [max(0.0, float(min(ece, 2 * ece - high))), max(0.0, float(max(ece, 2 * ece - low)))]


# ---- text

SUMMARY_METRICS = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "ece", "coverage", "accuracy_known")
BINARY_METRICS = ("roc_auc", "sensitivity", "specificity", "ppv", "npv")


def summary_lines(result: Metrics) -> Iterator[str]:
    """What a person reads of the figures."""
    independent = "" if result["groups"] == result["n"] else f" in {result['groups']:,} groups"
    yield f"{result['n']:,} photos{independent}; in brackets what 95 % of such sets of photos would give"
    for name in SUMMARY_METRICS:
        yield _format_line(name, result)
    if "positive" in result:
        yield f"{result['positive']} or not:"
        for name in BINARY_METRICS:
            yield _format_line(name, result)
        at = result["at_threshold"]
        yield f"called {result['positive']} from {at['threshold']:.3f} on, as the validation photos choose:"
        for name in BINARY_METRICS[1:]:
            yield _format_line(name, at)
    if curve := result.get("learning_curve"):
        yield "would more photos help? On frozen features, learnt from so many:"
        for point in curve["points"]:
            yield f"  {point['photos']:8,} photos  {point['accuracy']:.4f}"
        yield f"  twice as many     {curve['doubled']:.4f}, if errors go on to fall as they did"
    if result["confused"]:
        yield "most confused:"
        for pair in result["confused"]:
            low, high = pair["ci95"]
            yield (
                f"  {pair['label']} taken for {pair['predicted']}: {pair['n']} photos, "
                f"{pair['share']:.1%} ({low:.1%} to {high:.1%})"
            )


def _format_line(name: str, result: Metrics) -> str:
    if result[name] is None:
        return f"  {name:18} -"
    low, high = result["intervals"][name]
    return f"  {name:18} {result[name]:.4f}  ({low:.4f} to {high:.4f})"
