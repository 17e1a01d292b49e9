"""What each chart and table of a report says about this run, and what to do about it: two short sentences.

A note is empty where the run has no numbers for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from fieldmark.core.i18n import Language
from fieldmark.evaluation.calibration import MIN_IMAGES as MIN_CALIBRATION_IMAGES
from fieldmark.evaluation.results import BinaryMetrics, Metrics
from fieldmark.report.recommendations.data_rules import MAX_CLASS_RATIO, count_issues
from fieldmark.report.recommendations.findings import Findings
from fieldmark.report.recommendations.recommendation import independent_share, short_name, weak_classes
from fieldmark.report.recommendations.result_rules import (
    MAX_CALIBRATION_ERROR,
    MIN_CONFIDENCES,
    MIN_PAIR_ERRORS,
    agrees_on_average,
    is_miscalibrated,
    is_threshold_better,
    overconfidence,
    rejected_images,
)
from fieldmark.report.recommendations.training_rules import MAX_GAP, is_significant
from fieldmark.report.text import MIN_IMAGES_FOR_DECIMALS, MIN_TRAIN_IMAGES
from fieldmark.training.history import EpochRecord

Note = Callable[[Findings, Language], str]
MIN_SENSITIVITY = 0.95
"""Share of the positive images that most uses want to find: the note on the ROC curve names its price."""


def lead_sentence(findings: Findings, language: Language) -> str:
    """The accuracy in plain words."""
    metrics = findings.metrics.headline
    if metrics is None or metrics.ci95 is None:
        return ""
    low, high = (round(100 * bound) for bound in metrics.ci95)
    if metrics.n < MIN_IMAGES_FOR_DECIMALS:
        right = round(metrics.accuracy * metrics.n)
        text = language("Of {n} images, {right} were classified correctly.", n=metrics.n, right=right)
    else:
        text = language("About {right} of 100 images are classified correctly.", right=round(100 * metrics.accuracy))
    expected = language(
        "On other images like these (same camera, background and kind of object), expect {low} to {high} of 100.",
        low=low,
        high=high,
    )
    return language.join_sentences([text, expected])


def describe_all(findings: Findings, language: Language) -> dict[str, str]:
    """The note of each chart and table of the report, by name."""
    return {name: note(findings, language) for name, note in NOTES.items()}


# ---- data


def class_sizes(findings: Findings, language: Language) -> str:
    counts = dict.fromkeys(findings.metrics.classes, 0)
    for label in findings.labels.values():
        counts[label] = counts.get(label, 0) + 1
    return describe_balance(counts, language)


def describe_balance(counts: Mapping[str, int], language: Language) -> str:
    """The largest and the smallest class, and whether the difference matters."""
    if len(counts) < 2 or not sum(counts.values()):
        return ""
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[most] == counts[least]:
        if counts[most] < MIN_TRAIN_IMAGES:
            return language("The classes are balanced, but {n:,} images each are few.", n=counts[most])
        return language("All classes have {n:,} images each; nothing to do.", n=counts[most])
    values = {"most": short_name(most), "n_most": counts[most], "least": short_name(least), "n_least": counts[least]}
    text = language("“{most}” has the most images ({n_most:,}), “{least}” the fewest ({n_least:,}).", **values)
    if counts[most] >= MAX_CLASS_RATIO * max(1, counts[least]):
        advice = language(
            "Collect images of “{least}” first; until then, train with {option}.",
            **values,
            option="--imbalance weights",
        )
    elif counts[most] < MIN_TRAIN_IMAGES:
        advice = language("This is balanced enough, but so many images are few.")
    else:
        advice = language("This is balanced enough.")
    return language.join_sentences([text, advice])


def audit(findings: Findings, language: Language) -> str:
    if findings.audit is None:
        return ""
    if n := count_issues(findings.audit):
        return language(
            "Found: {n:,} issues that a person should decide on. {command} shows the images.",
            n=n,
            command="fieldmark check",
        )
    if findings.audit.label_errors is None:
        return language("No image needs a decision; wrong labels were not looked for.")
    return language("No image needs a decision.")


# ---- training


def training(findings: Findings, language: Language) -> str:
    """The gain by fine-tuning, and the gap between training and validation."""
    tuned = [record for record in findings.history if record.phase > 1 and record.has_validation]
    probe = [record for record in findings.history if record.phase == 1 and record.has_validation]
    if not tuned:
        if not probe:
            return ""
        text = language(
            "The linear probe (a simple classifier on fixed features) is right in {share} of the validation images.",
            share=language.percent(probe[-1].val_accuracy),
        )
        return language.join_sentences([text, language("Fine-tuning was left out; it is usually more accurate.")])
    best = findings.kept_epoch if findings.kept_epoch in tuned else max(tuned, key=lambda record: record.val_accuracy)
    return language.join_sentences([_describe_gain(probe, best, findings, language), _describe_gap(findings, language)])


def _describe_gain(probe: Sequence[EpochRecord], best: EpochRecord, findings: Findings, language: Language) -> str:
    share = language.percent(best.val_accuracy)
    if not probe:
        return language("The network is right in {share} of the validation images.", share=share)
    values = {"before": language.percent(probe[-1].val_accuracy), "share": share}
    if is_significant(best.val_accuracy - probe[-1].val_accuracy, best.val_accuracy, findings):
        return language("Fine-tuning raised the validation accuracy from {before} to {share}.", **values)
    return language(
        "Fine-tuning made no certain difference: validation accuracy {before} before, {share} after.", **values
    )


def _describe_gap(findings: Findings, language: Language) -> str:
    last = findings.finetuning[-1] if findings.finetuning else None
    if last is None or not last.has_validation or math.isnan(last.train_accuracy):
        return ""
    gap = last.train_accuracy - last.val_accuracy
    if gap > MAX_GAP:
        return language(
            "Training images are recognised better than validation images by {gap:.0f} points (overfitting): try"
            " {option}, or more images.",
            gap=100 * gap,
            option="--augment strong",
        )
    return language("Training and validation images are recognised about equally well: there is no overfitting.")


def folds(findings: Findings, language: Language) -> str:
    """Whether the accuracies of the folds differ by more than chance."""
    tests = [fold.test for fold in findings.metrics.folds if fold.test]
    if len(tests) < 2 or findings.test is None or findings.test.sd is None:
        return ""
    low, high = min(test.accuracy for test in tests), max(test.accuracy for test in tests)
    values = {"low": language.percent(low), "high": language.percent(high)}
    accuracy = findings.test.accuracy
    n = findings.test.n / len(tests) * independent_share(findings.test)
    text = language("The accuracy of the folds is between {low} and {high}.", **values)
    if findings.test.sd > 2 * math.sqrt(accuracy * (1 - accuracy) / n):
        advice = language("They differ by more than chance: look for images that belong together, and use --group-by.")
    else:
        advice = language("Chance explains the difference; nothing to do.")
    return language.join_sentences([text, advice])


# ---- errors


def classes(findings: Findings, language: Language) -> str:
    test = findings.metrics.headline
    rows = {name: row for name, row in (test.per_class if test else {}).items() if row.n}
    if test is None or not rows:
        return ""
    name = min(rows, key=lambda name: rows[name].recall)
    row = rows[name]
    if row.recall == 1:
        return language("All images of all classes are recognised.")
    values = {"name": short_name(name), "n": round(row.recall * row.n), "all": row.n}
    text = language("“{name}” is recognised least often: {n} of {all} images.", **values)
    if name in weak_classes(test):
        advice = language("That is really less than the average: start with this class.")
    else:
        advice = language("With so few images, this may be chance.")
    return language.join_sentences([text, advice])


def confusion(findings: Findings, language: Language) -> str:
    test = findings.metrics.headline
    if test is None:
        return ""
    if not test.confused:
        return language("No class is confused with another.")
    pair = test.confused[0]
    text = language(
        "Most often “{label}” is taken for “{predicted}”: {n} of {all} images.",
        label=short_name(pair.label),
        predicted=short_name(pair.predicted),
        n=pair.n,
        all=test.per_class[pair.label].n,
    )
    if pair.n < MIN_PAIR_ERRORS:
        return language.join_sentences([text, language("These are single images, not a pattern.")])
    return language.join_sentences([text, language("Look at these images first.")])


def binary(findings: Findings, language: Language) -> str:
    """The two errors at 0.5, what more sensitivity costs, and which threshold to take."""
    test = findings.metrics.headline
    found = test.binary if test else None
    if test is None or found is None or (specificity := found.specificity) is None:
        return ""
    text = language(
        "At a threshold of 0.5, {found} of “{name}” are found, with false alarms in {alarms} of the others.",
        found=language.percent(found.sensitivity, 0),
        name=short_name(found.positive),
        alarms=language.percent(1 - specificity, 0),
    )
    return language.join_sentences([text, _describe_threshold(test, found, language)])


def _describe_threshold(test: Metrics, found: BinaryMetrics, language: Language) -> str:
    if is_threshold_better(test, found):
        return language("The threshold {threshold:.2f} is better: use it.", threshold=found.at_threshold.threshold)
    needed = [fpr for fpr, tpr in zip(found.roc.fpr, found.roc.tpr, strict=True) if tpr >= MIN_SENSITIVITY]
    share, alarms = language.percent(MIN_SENSITIVITY, 0), language.percent(min(needed, default=1.0), 0)
    if found.sensitivity is not None and found.sensitivity >= MIN_SENSITIVITY:
        return language("If {share} are enough, raise it: false alarms are then {alarms}.", share=share, alarms=alarms)
    return language("To find {share} of them, lower it: false alarms are then {alarms}.", share=share, alarms=alarms)


# ---- confidence


def reliability(findings: Findings, language: Language) -> str:
    test = findings.metrics.headline
    if test is None or not test.reliability.after:
        return ""
    if test.n < MIN_CONFIDENCES:
        return language("{n} images are too few to say whether the confidences are right.", n=test.n)
    mean_confidence = test.accuracy + overconfidence(test)
    values = {"confidence": language.percent(mean_confidence, 0), "accuracy": language.percent(test.accuracy, 0)}
    text = language("The mean confidence is {confidence}, and {accuracy} of the images are right.", **values)
    if is_miscalibrated(test):
        if agrees_on_average(test):
            text = language(
                "On average confidence ({confidence}) and accuracy ({accuracy}) agree, but in single ranges of"
                " confidence they differ by {error}.",
                **values,
                error=language.percent(test.ece, 0),
            )
        return language.join_sentences([text, language("Do not read the confidence as a probability.")])
    if test.ece is None or test.ece > MAX_CALIBRATION_ERROR:
        return language.join_sentences([text, language("For single confidences, the test is too small to tell.")])
    return language.join_sentences([text, language("It can be read as a probability, roughly.")])


def coverage(findings: Findings, language: Language) -> str:
    test = findings.metrics.headline
    if test is None:
        return ""
    if not findings.rejects:
        return language(
            "Rejection of unknown images is off: {n} validation images are too few for a threshold, at least {needed}"
            " are needed.",
            n=findings.n_validation,
            needed=MIN_CALIBRATION_IMAGES,
        )
    rejected = rejected_images(test)
    if rejected is None:
        return language("No image is rejected as unknown.")
    text = language(
        "Accepted: {share} of the images, of which {accuracy} are right; of the {n} rejected ones, {other}.",
        share=language.percent(test.coverage, 0),
        accuracy=language.percent(test.accuracy_known, 0),
        n=rejected.n,
        other=language.percent(rejected.accuracy, 0),
    )
    advice = language("A person should check rejected images.") if rejected.is_worse else ""
    return language.join_sentences([text, advice])


NOTES: dict[str, Note] = {
    "sizes": class_sizes,
    "audit": audit,
    "training": training,
    "folds": folds,
    "classes": classes,
    "confusion": confusion,
    "binary": binary,
    "reliability": reliability,
    "coverage": coverage,
}
