"""Recommendations about the test: its errors, thresholds and confidences, and whether it is large enough."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from fieldmark.core.i18n import Language
from fieldmark.evaluation.calibration import MIN_IMAGES as MIN_CALIBRATION_IMAGES
from fieldmark.evaluation.results import BinaryMetrics, Interval, Metrics
from fieldmark.recipes.recipe import parse_duration
from fieldmark.report.recommendations.data_rules import has_few_images
from fieldmark.report.recommendations.findings import Findings
from fieldmark.report.recommendations.recommendation import (
    Recommendation,
    corrected_interval,
    half_width,
    independent_share,
    name_some,
    short_name,
)

MAX_HALF_WIDTH, VERY_WIDE = 0.05, 0.1
"""Half width of the accuracy's interval, from which on more test images are recommended; first of all if very wide."""
MIN_PAIR_ERRORS, MIN_PAIR_SHARE = 3, 0.1
"""Errors between two classes, and their share of all errors, from which on the two are a confused pair."""
MAX_PAIRS = 2
MIN_COVERAGE_LOSS = 0.05
"""How much lower the coverage of the test set must be than that of the validation set."""
MAX_CALIBRATION_ERROR = 0.05
"""Lower bound of the calibration error from which on confidences are no probabilities."""
MIN_CONFIDENCES = 50
"""With fewer test images, nothing is said of the confidences: the bins hold single images."""
N_FOLDS = 5


def no_test(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """There is no test set, or none with images of some classes."""
    if not findings.has_test:
        text = language("Set labelled images aside for a test.")
        reason = language("There is no test set, so nobody knows how good the classifier is.")
        yield Recommendation("no_test", text, reason)
    elif findings.test and (absent := findings.test.absent_classes):
        text = language("Add test images of {names}.", names=name_some(absent, language))
        reason = language("There are none, so it is unknown how well they are recognised.")
        yield Recommendation("untested", text, reason, (), "classes")


def majority_baseline(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """The classifier is not significantly better than always predicting the most frequent class."""
    test = findings.test
    if test is None or test.ci95 is None:
        return
    name, row = max(test.per_class.items(), key=lambda item: item[1].n)
    if test.ci95[0] > row.n / test.n:
        return
    text = language("Do not use this classifier yet: check labels, and collect more images.")
    reason = language(
        "Always predicting “{name}” would be right in {share}; this classifier ({accuracy}) is not significantly"
        " better.",
        name=short_name(name),
        share=language.percent(row.n / test.n),
        accuracy=language.percent(test.accuracy),
    )
    yield Recommendation("baseline", text, reason, (), "classes")


# ---- errors


@dataclass(frozen=True)
class ClassPair:
    """Two classes that are confused with each other more often than errors spread by chance.

    Attributes:
        n: images of one of them that are predicted as the other.
        n_images: images of both.
        ci95: corrected interval of n / n_images.
    """

    first: str
    second: str
    n: int
    n_images: int
    ci95: Interval


def confused_pairs(test: Metrics) -> list[ClassPair]:
    """Pairs with a sizeable part of all errors, and more of them than if each error hit another class at random.

    Without a preference, each of the k - 1 other classes would get its part of the errors; the corrected lower bound of
    the pair's share of confused images must lie above that. With two classes there is no choice.
    """
    k, names = len(test.per_class), list(test.per_class)
    n_errors, factor = round((1 - test.accuracy) * test.n), independent_share(test)
    if k < 3 or not n_errors:
        return []
    expected, n_pairs = (1 - test.accuracy) / (k - 1), k * (k - 1) // 2
    pairs = []
    for i, row in enumerate(test.confusion):
        for j in range(i + 1, k):
            n, n_images = row[j] + test.confusion[j][i], sum(row) + sum(test.confusion[j])
            if n < max(MIN_PAIR_ERRORS, MIN_PAIR_SHARE * n_errors):
                continue
            bounds = corrected_interval(n / n_images, n_images * factor, n_pairs)
            if bounds[0] > expected:
                pairs.append(ClassPair(names[i], names[j], n, n_images, bounds))
    return sorted(pairs, key=lambda pair: -pair.n)


def confusions(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Classes to look at together."""
    test = findings.test
    for pair in confused_pairs(test)[:MAX_PAIRS] if test else ():
        text = language(
            "Compare “{first}” and “{second}”, which are confused: merge them if people cannot tell them apart; else"
            " add images of both.",
            first=short_name(pair.first),
            second=short_name(pair.second),
        )
        reason = language(
            "{n} of all {errors} errors are between these two: {share} of their images (95 % CI {range}).",
            n=pair.n,
            errors=round((1 - test.accuracy) * test.n) if test else 0,
            share=language.percent(pair.n / pair.n_images),
            range=language.interval(pair.ci95),
        )
        yield Recommendation("confused", text, reason, (), "confusion")


def small_test(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """The interval of the accuracy is wide: cross-validation, or more test images."""
    test = findings.test
    if test is None or (half := half_width(test)) <= MAX_HALF_WIDTH:
        return
    values = {"n": test.n, "half": round(100 * half, 1)}
    n_all = len(findings.splits)
    half_of_all = half * math.sqrt(test.n / n_all) if n_all else half
    can_fold = not (findings.recipe.folds or findings.recipe.split_file)
    if can_fold and half_of_all < 0.8 * half:
        text = language("Test on all images by {k}-fold cross-validation, which takes {k} times as long.", k=N_FOLDS)
        reason = language(
            "{n} test images leave the accuracy uncertain by ±{half} percentage points; all {all} images would by about"
            " ±{then}.",
            **values,
            all=n_all,
            then=round(100 * half_of_all, 1),
        )
        budget = findings.recipe.budget
        longer = {"budget": f"{N_FOLDS * parse_duration(budget):.0f}s"} if budget else {}
        yield Recommendation("small_test", text, reason, (findings.train_command(folds=N_FOLDS, **longer),), "metrics")
        return
    if has_few_images(findings):  # more images are recommended already
        return
    more = math.ceil(test.n * (half / MAX_HALF_WIDTH) ** 2) - test.n
    more = math.ceil(more / (step := 10 ** max(0, len(str(more)) - 2))) * step
    text = language("Label about {more:,} more images for the test.", more=more)
    reason = language(
        "{n} test images leave the accuracy uncertain by ±{half} percentage points; with these it would be about"
        " ±{target}.",
        **values,
        target=round(100 * MAX_HALF_WIDTH),
    )
    yield Recommendation("small_test", text, reason, (), "metrics")


# ---- thresholds and confidences


def decision_threshold(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """The fitted decision threshold of two classes, if it is significantly better than 0.5 on the test set."""
    test = findings.test
    if test is None or test.binary is None or findings.metrics.folds or not is_threshold_better(test, test.binary):
        return
    binary, at = test.binary, test.binary.at_threshold
    text = language(
        "Predict “{name}” from a probability of {threshold:.2f} on, not 0.50, if both kinds of error count alike.",
        name=short_name(binary.positive),
        threshold=at.threshold,
    )
    reason = language(
        "On the test set this finds {after} of “{name}” instead of {before}; of the others {right_after} are right"
        " instead of {right_before}.",
        name=short_name(binary.positive),
        after=language.percent(at.sensitivity, 0),
        before=language.percent(binary.sensitivity, 0),
        right_after=language.percent(at.specificity, 0),
        right_before=language.percent(binary.specificity, 0),
    )
    command = shlex.join(["fieldmark", "predict", findings.run, "PHOTOS", "--top", "2", "--csv", "predictions.csv"])
    yield Recommendation("threshold", text, reason, (command,), "two")


def is_threshold_better(test: Metrics, binary: BinaryMetrics) -> bool:
    """Whether the fitted threshold raises sensitivity + specificity by more than two standard errors.

    A lower threshold only adds positive predictions, so each of the two changes is a share of its own images.
    """
    at, positive = binary.at_threshold, test.per_class[binary.positive].n * independent_share(test)
    negative = test.n * independent_share(test) - positive
    rates = (at.sensitivity, binary.sensitivity, at.specificity, binary.specificity)
    if None in rates or not positive or not negative:
        return False
    after, before, right_after, right_before = (rate or 0.0 for rate in rates)
    found, lost = after - before, right_after - right_before
    error = math.sqrt(abs(found) * (1 - abs(found)) / positive + abs(lost) * (1 - abs(lost)) / negative)
    return found + lost > 2 * error


def rejection_off(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Too few validation images for an OOD threshold: every image is accepted."""
    if findings.rejects:
        return
    text = language("Do not rely on the classifier to reject unknown images: rejection is off.")
    reason = language(
        "There are {n} validation images; at least {needed} are needed. Every image, even of something else, gets one"
        " of the {classes} classes.",
        n=findings.n_validation,
        needed=MIN_CALIBRATION_IMAGES,
        classes=len(findings.metrics.classes),
    )
    yield Recommendation("rejection_off", text, reason, (), "trust")


def low_coverage(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Far more test images than validation images are rejected."""
    test, validation = findings.test, findings.metrics.validation
    if test is None or validation is None:
        return
    pooled = (test.coverage * test.n + validation.coverage * validation.n) / (test.n + validation.n)
    n_test, n_validation = (metrics.n * independent_share(metrics) for metrics in (test, validation))
    error = math.sqrt(pooled * (1 - pooled) * (1 / n_test + 1 / n_validation))
    if validation.coverage - test.coverage <= max(MIN_COVERAGE_LOSS, 2 * error):
        return
    text = language("Look at the rejected test images, and add images like them to the training.")
    reason = language(
        "{share} of the test images are rejected as unlike the training images, but only {expected} of the validation"
        " images.",
        share=language.percent(1 - test.coverage, 0),
        expected=language.percent(1 - validation.coverage, 0),
    )
    yield Recommendation("coverage", text, reason, (), "trust")


@dataclass(frozen=True)
class Rejected:
    """Test images below the OOD threshold.

    Attributes:
        accuracy: of these images.
        is_worse: whether that is significantly below the accuracy of the accepted ones.
    """

    n: int
    accuracy: float
    is_worse: bool


def rejected_images(test: Metrics) -> Rejected | None:
    """The rejected images of a test; None if there are none."""
    accepted = round(test.coverage * test.n)
    n, n_correct = test.n - accepted, round(test.accuracy * test.n) - round((test.accuracy_known or 0) * accepted)
    if not n or test.accuracy_known is None:
        return None
    high = corrected_interval(n_correct / n, n * independent_share(test), 1)[1]
    return Rejected(n, n_correct / n, high < test.accuracy_known)


def review(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Rejected images are misclassified more often: a person should look at them."""
    test = findings.test
    rejected = rejected_images(test) if test else None
    if test is None or rejected is None or not rejected.is_worse:
        return
    text = language("In use, have a person check predictions that are marked as unknown (known is False).")
    reason = language(
        "Of the {n} rejected test images {share} are right, of the accepted ones {other}.",
        n=rejected.n,
        share=language.percent(rejected.accuracy, 0),
        other=language.percent(test.accuracy_known, 0),
    )
    command = shlex.join(["fieldmark", "predict", findings.run, "PHOTOS", "--csv", "predictions.csv"])
    yield Recommendation("review", text, reason, (command,), "trust")


def overconfidence(test: Metrics) -> float:
    """Mean confidence minus accuracy."""
    return sum(row.n * (row.confidence - row.accuracy) for row in test.reliability.after) / test.n


def agrees_on_average(test: Metrics) -> bool:
    """Whether mean confidence and accuracy are close, whatever the single bins say."""
    return abs(overconfidence(test)) <= MAX_CALIBRATION_ERROR


def is_miscalibrated(test: Metrics) -> bool:
    """Whether the calibration error is significantly large; never by a small test."""
    bounds = test.intervals.get("ece")
    return test.n >= MIN_CONFIDENCES and bounds is not None and bounds[0] > MAX_CALIBRATION_ERROR


def calibration(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """The calibration error is significantly large."""
    test = findings.test
    if test is None or not is_miscalibrated(test):
        return
    text = language("Do not read the confidence as a probability; use it to rank images, most doubtful first.")
    values = {"error": language.percent(test.ece), "range": language.interval(test.intervals["ece"])}
    if agrees_on_average(test):
        reason = language(
            "On average it agrees with the accuracy, but in single ranges of confidence they differ by {error} (95 % CI"
            " {range}).",
            **values,
        )
    elif overconfidence(test) > 0:
        reason = language("It is too high: it differs from the accuracy by {error} (95 % CI {range}).", **values)
    else:
        reason = language("It is too low: it differs from the accuracy by {error} (95 % CI {range}).", **values)
    yield Recommendation("calibration", text, reason, (), "trust")
