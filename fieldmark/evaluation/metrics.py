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

from fieldmark.evaluation.calibration import BINS, bins, calibration_error, coverage_curve, reliability
from fieldmark.evaluation.intervals import Resampled, column, one_hot

Figures = dict[str, Any]

PAIRS = 10
"""Pairs of classes that are named as the most confused."""


@dataclass(frozen=True)
class Answers:
    """What a classifier says of n labelled photos."""

    logits: np.ndarray  # float32 (n, classes)
    probabilities: np.ndarray  # float32 (n, classes): softmax of the tempered logits
    scores: np.ndarray  # float32 (n,): known_score
    labels: np.ndarray  # int64 (n,): numbers of the true classes
    groups: np.ndarray  # int64 (n,): photos of one group are no independent witnesses

    def __len__(self) -> int:
        return len(self.labels)

    def write(self, file: Path) -> None:
        half = file.with_name(f"{file.stem}.half.npz")
        np.savez_compressed(half, **vars(self))
        half.replace(file)

    @classmethod
    def read(cls, file: Path) -> "Answers":
        with np.load(file, allow_pickle=False) as kept:
            return cls(**{name: kept[name] for name in kept.files})

    @classmethod
    def together(cls, each: Iterable["Answers"]) -> "Answers":
        """Those of several sets of photos that share no group."""
        several, groups, first = list(each), [], 0
        for one in several:
            groups.append(one.groups + first)
            first += int(one.groups.max(initial=-1)) + 1
        joined = {
            name: np.concatenate([getattr(one, name) for one in several])
            for name in ("logits", "probabilities", "scores", "labels")
        }
        return cls(**joined, groups=np.concatenate(groups))


def figures(
    answers: Answers,
    classes: list[str],
    least: float,
    positive: str | None = None,
    decision: float | np.ndarray = 0.5,
) -> Figures | None:
    """Every figure of one set of photos; None where there are no photos.

    Args:
        answers: what was said of the photos.
        classes: their names.
        least: the score from which a photo is `known`.
        positive: of two classes the one that is looked for; without it, the rarer of these photos.
        decision: the probability of `positive` from which `at_threshold` calls a photo so; for each, or (n,).
    """
    n = len(answers)
    if n == 0:
        return None
    labels, probabilities, k = answers.labels, answers.probabilities, len(classes)
    drawn = Resampled(answers.groups)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right, known = predicted == labels, answers.scores >= least
    own = probabilities[np.arange(n), labels][:, None]
    ahead = (probabilities > own) | ((probabilities == own) & (np.arange(k) < labels[:, None]))
    top5 = ahead.sum(1) < 5
    found: Figures = {"n": n, "groups": drawn.groups, "intervals": {}}

    shares = {
        "accuracy": (right, np.ones(n)),
        "top5": (top5, np.ones(n)),
        "coverage": (known, np.ones(n)),
        "accuracy_known": (right & known, known),
    }
    _add_shares(found, drawn, shares)
    found["ci95"] = found["intervals"]["accuracy"]
    found |= _by_class(found, drawn, labels, predicted, classes)
    found["confusion"] = metrics.confusion_matrix(labels, predicted, labels=list(range(k))).tolist()
    found["confused"] = confused(found["confusion"], classes, labels, predicted, drawn)
    found["ece"] = calibration_error(confidence, right)
    found["intervals"]["ece"] = _interval_of_ece(drawn, confidence, right, found["ece"])
    found["loss"] = float(-np.log(np.maximum(probabilities[np.arange(n), labels], 1e-12)).mean())
    found["threshold"] = least
    plain = softmax(answers.logits, axis=1).max(1)
    found["reliability"] = {"before": reliability(plain, right), "after": reliability(confidence, right)}
    found["ece_before"] = calibration_error(plain, right)
    found["coverage_curve"] = coverage_curve(answers.scores, right)
    if k == 2 and len(np.unique(labels)) == 2:
        one = classes.index(positive) if positive else int(np.argmin(np.bincount(labels, minlength=2)))
        found |= _of_two(found, drawn, labels == one, probabilities[:, one], predicted == one, decision)
        found["positive"] = classes[one]
    return found


def _add_shares(found: Figures, drawn: Resampled, shares: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Each share of (part, whole), (n,) truth values each, and its interval; None of nothing."""
    parts, wholes = (csr_array(hstack([column(pair[i]) for pair in shares.values()])) for i in (0, 1))
    bounds = drawn.shares(parts, wholes)
    for name, (part, whole), interval in zip(shares, shares.values(), bounds, strict=True):
        some = bool(whole.any())
        found[name] = float(part.sum() / whole.sum()) if some else None
        found["intervals"][name] = interval.tolist() if some else None


def _by_class(
    found: Figures, drawn: Resampled, labels: np.ndarray, predicted: np.ndarray, classes: list[str]
) -> Figures:
    """Precision, recall and F1 of each class, and their means over the classes that have photos."""
    k, right = len(classes), predicted == labels
    true, said, both = one_hot(labels, k), one_hot(predicted, k), one_hot(labels, k, right)
    # scikit-learn documents the number; its annotation knows the words only.
    scores = metrics.precision_recall_fscore_support(labels, predicted, labels=list(range(k)), zero_division=0)  # type: ignore[arg-type]
    precision, recall, f1, support = map(np.asarray, scores)
    of_true, of_said = drawn.shares(both, true).tolist(), drawn.shares(both, said).tolist()
    answered = np.bincount(predicted, minlength=k)
    seen = support > 0
    trues, saids, boths = (drawn.totals(columns)[:, seen] for columns in (true, said, both))
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = np.nanmean(np.where(trues > 0, boths / trues, np.nan), 1)
        f1s = np.nanmean(np.where(trues > 0, 2 * boths / (trues + saids), np.nan), 1)
    means = {"balanced_accuracy": float(recall[seen].mean()), "macro_f1": float(f1[seen].mean())}
    for name, values in (("balanced_accuracy", recalls), ("macro_f1", f1s)):
        found["intervals"][name] = drawn.of(values, means[name])
    rows = zip(classes, precision, recall, f1, support, answered, of_true, of_said, strict=True)
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


def confused(
    matrix: list[list[int]], classes: list[str], labels: np.ndarray, predicted: np.ndarray, drawn: Resampled
) -> list[dict[str, Any]]:
    """The commonest mistakes, most photos first: true class, answer, photos, their share of the true class."""
    pairs = [(t, a, n) for t, row in enumerate(matrix) for a, n in enumerate(row) if n and t != a]
    pairs = sorted(pairs, key=lambda pair: (-pair[2], -pair[2] / sum(matrix[pair[0]])))[:PAIRS]
    if not pairs:
        return []
    parts = csr_array(hstack([column((labels == t) & (predicted == a)) for t, a, _ in pairs]))
    wholes = csr_array(hstack([column(labels == t) for t, _, _ in pairs]))
    bounds = drawn.shares(parts, wholes).tolist()
    return [
        {"label": classes[t], "predicted": classes[a], "n": n, "share": n / sum(matrix[t]), "ci95": interval}
        for (t, a, n), interval in zip(pairs, bounds, strict=True)
    ]


# ---- two classes


def _of_two(
    found: Figures,
    drawn: Resampled,
    true: np.ndarray,
    score: np.ndarray,
    said: np.ndarray,
    decision: float | np.ndarray,
) -> Figures:
    """ROC-AUC, and what share is found and left alone: by the likelier class, and `at_threshold`.

    true (n,) whether a photo is positive, score (n,) its probability of that, said (n,) whether it is called so.
    """
    _add_shares(found, drawn, _four(true, said))
    fpr, tpr, _ = metrics.roc_curve(true, score)
    few = np.unique(np.linspace(0, len(fpr) - 1, 100).round().astype(int))
    at: Figures = {"threshold": float(np.mean(decision)), "intervals": {}}
    called = score >= decision
    _add_shares(at, drawn, {"accuracy": (called == true, np.ones(len(true)))} | _four(true, called))
    auc = float(metrics.roc_auc_score(true, score))
    found["intervals"]["roc_auc"] = drawn.of(_drawn_auc(drawn, true, score), auc)
    return {"roc_auc": auc, "roc": {"fpr": fpr[few].tolist(), "tpr": tpr[few].tolist()}, "at_threshold": at}


def _four(true: np.ndarray, said: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "sensitivity": (true & said, true),
        "specificity": (~true & ~said, ~true),
        "ppv": (true & said, said),
        "npv": (~true & ~said, ~said),
    }


def _drawn_auc(drawn: Resampled, true: np.ndarray, score: np.ndarray) -> np.ndarray:
    """ROC-AUC of each draw, (draws,): the share of pairs in which the positive photo has the higher score."""
    _, rank = np.unique(score, return_inverse=True)
    levels = rank.max() + 1
    sums = [csr_array(drawn.gather @ one_hot(rank, levels, side)).T for side in (true, ~true)]
    found = []
    for weights in drawn.weights():
        yes, no = (side @ weights.T for side in sums)  # (levels, block)
        below = np.cumsum(no, 0) - no / 2
        with np.errstate(invalid="ignore"):
            found.append((yes * below).sum(0) / (yes.sum(0) * no.sum(0)))
    return np.concatenate(found)


def _interval_of_ece(drawn: Resampled, confidence: np.ndarray, right: np.ndarray, ece: float) -> list[float]:
    """By the basic bootstrap, which takes off by how much each draw is too high (Davison & Hinkley 1997, section 5.2).

    The distance of a bin cannot be below nothing, so of fewer photos it is larger, and so it is of photos drawn twice.
    """
    sums = drawn.totals(one_hot(bins(confidence), BINS, confidence - right))
    many = drawn.totals(column(np.ones(len(right))))[:, 0]
    low, high = np.quantile(np.abs(sums).sum(1) / many, (0.025, 0.975))
    # Where it takes off so much that the figure itself would lie outside, the interval reaches up to it.
    return [max(0.0, float(min(ece, 2 * ece - high))), max(0.0, float(max(ece, 2 * ece - low)))]


# ---- text

SHOWN = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "ece", "coverage", "accuracy_known")
OF_TWO = ("roc_auc", "sensitivity", "specificity", "ppv", "npv")


def lines(found: Figures) -> Iterator[str]:
    """What a person reads of the figures."""
    independent = "" if found["groups"] == found["n"] else f" in {found['groups']:,} groups"
    yield f"{found['n']:,} photos{independent}; in brackets what 95 % of such sets of photos would give"
    for name in SHOWN:
        yield _line(name, found)
    if "positive" in found:
        yield f"{found['positive']} or not:"
        for name in OF_TWO:
            yield _line(name, found)
        at = found["at_threshold"]
        yield f"called {found['positive']} from {at['threshold']:.3f} on, as the validation photos choose:"
        for name in OF_TWO[1:]:
            yield _line(name, at)
    if curve := found.get("learning_curve"):
        yield "would more photos help? On frozen features, learnt from so many:"
        for point in curve["points"]:
            yield f"  {point['photos']:8,} photos  {point['accuracy']:.4f}"
        yield f"  twice as many     {curve['doubled']:.4f}, if errors go on to fall as they did"
    if found["confused"]:
        yield "most confused:"
        for pair in found["confused"]:
            low, high = pair["ci95"]
            yield (
                f"  {pair['label']} taken for {pair['predicted']}: {pair['n']} photos, "
                f"{pair['share']:.1%} ({low:.1%} to {high:.1%})"
            )


def _line(name: str, found: Figures) -> str:
    if found[name] is None:
        return f"  {name:18} -"
    low, high = found["intervals"][name]
    return f"  {name:18} {found[name]:.4f}  ({low:.4f} to {high:.4f})"
