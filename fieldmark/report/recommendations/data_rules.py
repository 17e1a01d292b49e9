"""Recommendations about the images: copies across splits, labels, shortcuts, and of which classes there are too few."""

import math
import shlex
from collections.abc import Iterator
from statistics import NormalDist, median_low

from fieldmark.audit.report import AuditReport
from fieldmark.audit.shortcuts import describe_shortcut
from fieldmark.core.i18n import Language
from fieldmark.evaluation.results import LearningCurve
from fieldmark.report.recommendations.findings import Findings
from fieldmark.report.recommendations.recommendation import (
    Recommendation,
    is_perfect,
    name_some,
    short_name,
    weak_classes,
)
from fieldmark.report.text import is_too_short

MIN_GAIN = 0.005
"""Gain of accuracy by twice as many images from which collecting them is recommended."""
NEGLIGIBLE_GAIN = 0.02
"""Upper bound of the gain by the last doubling below which more images are said not to help."""
MIN_IMAGES = 30
"""Training images of a class for a first classifier; with fewer in most classes, more images are recommended first."""
MIN_TEST_IMAGES = 20
"""Test images of a class from which on its metrics mean something."""
TEST_SHARE = 0.15
"""Part of the images of a class that a split of Fieldmark sets aside for the test."""
MAX_CLASS_RATIO = 5
"""Ratio of the largest class to the smallest, from which class weights are recommended."""


def leaked_test_images(findings: Findings) -> int:
    """Test images of which a duplicate or near-duplicate is in another split."""
    if findings.audit is None:
        return 0
    leaked = set[str]()
    for paths in (*findings.audit.leaks, *findings.audit.near_leaks):
        in_test = {path for path in paths if findings.splits.get(path) == "test"}
        leaked |= in_test if len(in_test) < len(paths) else set()
    return len(leaked)


def leaks(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Test images that were trained on make the accuracy too high."""
    n, groups = leaked_test_images(findings), findings.audit.group_leaks if findings.audit else ()
    if n:
        reason = language(
            "{n} of {all} test images are (nearly) the same as training images, so the accuracy is too high.",
            n=n,
            all=sum(findings.count_images("test").values()),
        )
    elif groups:
        reason = language(
            "{n} groups, as patients or objects, are in several splits, so the accuracy may be too high.", n=len(groups)
        )
    else:
        return
    text = language("Keep images that belong together in one split, and train again.")
    yield Recommendation("leaks", text, reason, (findings.check_command(),), "audit")


def labels(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Labels that are probably wrong, each with a probability above one half."""
    errors = findings.audit.label_errors if findings.audit else None
    if not errors:
        return
    reason = language(
        "They are probably wrong. The first is {path}: labelled {label}, but it looks like {suggested}.",
        path=short_name(errors[0].path),
        label=short_name(errors[0].label),
        suggested=short_name(errors[0].suggested),
    )
    text = language("Check labels ({n}): enter your decisions in decisions.csv and train with them.", n=len(errors))
    yield Recommendation("labels", text, reason, _decide_commands(findings), "audit")


def unchecked_labels(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Label errors were not looked for."""
    if findings.audit and findings.audit.label_errors is None:
        text = language("Search for wrong labels.")
        reason = language("The run had no time for it, or no pretrained features.")
        yield Recommendation("unchecked_labels", text, reason, (findings.check_command(),), "audit")


def conflicts(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """One image under several labels."""
    sets = findings.audit.conflicts if findings.audit else ()
    if not sets:
        return
    text = language("Decide on one class for each image that has several ({n}).", n=len(sets))
    names = " = ".join(map(short_name, sets[0][:2]))
    reason = language("The same image is in two classes, so one label is wrong. The first: {names}.", names=names)
    yield Recommendation("conflicts", text, reason, _decide_commands(findings), "audit")


def _decide_commands(findings: Findings) -> tuple[str, ...]:
    """List the issues; then, with the decisions entered, train."""
    check = findings.check_command()
    decisions = shlex.split(check)[-1] + "/decisions.csv"
    return check, findings.train_command(apply=decisions)


def shortcuts(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """A property of the files that tells a class from the others."""
    audit = findings.audit
    if audit is None:
        return
    if audit.metadata and audit.metadata.is_shortcut:
        found = audit.metadata.evidence
    elif audit.shortcuts:
        found = audit.shortcuts[0]
    else:
        return
    text = language("Take photos of all classes alike (camera, format, place), and test on photos from elsewhere.")
    reason = language(
        "{fact}: the network may learn this instead of the content.", fact=language.line(describe_shortcut(found))
    )
    command = shlex.join(["fieldmark", "evaluate", findings.run, "OTHER_PHOTOS"])
    yield Recommendation("shortcut", text, reason, (command,), "audit")


def unreadable(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Files that were left out."""
    files = findings.audit.unreadable if findings.audit else ()
    if files:
        text = language("Replace the files that cannot be read ({n}).", n=len(files))
        reason = language("They were left out. The first is {path}.", path=short_name(files[0].path))
        yield Recommendation("unreadable", text, reason, (findings.check_command(),), "audit")


# ---- more images


def typical_count(findings: Findings) -> int | None:
    """Training images of the median class; None if they are unknown."""
    counts = findings.count_images("train")
    sizes = [counts[name] for name in findings.metrics.classes or counts]
    return median_low(sizes) if sum(sizes) else None


def has_few_images(findings: Findings) -> bool:
    """Whether most classes have too few training images for a first classifier."""
    typical = typical_count(findings)
    return typical is not None and typical < MIN_IMAGES


def few_images(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Most classes have too few training images, whatever a learning curve of so few says."""
    if not has_few_images(findings):
        return
    text = language("Take more images: {n} a class in training are few.", n=typical_count(findings))
    if findings.recipe.folds or findings.recipe.split_file:  # how many are tested is not up to the share
        reason = language("{needed} a class give a first classifier.", needed=MIN_IMAGES)
    else:
        reason = language(
            "{needed} a class give a first classifier; with about {all} a class, training and test together, each has"
            " {n_test} test images, so that its metrics mean something.",
            needed=MIN_IMAGES,
            all=math.ceil(MIN_TEST_IMAGES / TEST_SHARE / 10) * 10,
            n_test=MIN_TEST_IMAGES,
        )
    yield Recommendation("few_images", text, reason, (), "photos")


def more_images(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Whether more images help, by the learning curve; else images of small classes that are recognised badly."""
    curve = findings.metrics.learning_curve
    if is_perfect(findings.test) or has_few_images(findings):  # `few_images` says so already
        return
    if curve and curve.rises and curve.doubled - curve.points[-1].accuracy >= MIN_GAIN:
        weak = weak_classes(findings.test) if findings.test else []
        names = list(dict.fromkeys([*weak, *significant_gains(curve)]))
        text = language("Collect more images of all classes.")
        if names:
            text = language("Collect more images, first of {names}.", names=name_some(names, language))
        reason = language(
            "The last doubling of the images helped. With twice as many, the accuracy may rise from {now} to {then}"
            " (estimated with a simple classifier).",
            now=language.percent(curve.points[-1].accuracy),
            then=language.percent(curve.doubled),
        )
        yield Recommendation("more_images", text, reason, (), "more")
        return
    yield from _small_weak_classes(findings, language)


def no_more_images(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """That more images would hardly help, if the upper bound of the last gain is small."""
    curve = findings.metrics.learning_curve
    if curve is None or curve.rises or is_small_curve(curve) or has_few_images(findings):
        return
    if (bound := largest_gain(curve)) >= NEGLIGIBLE_GAIN:
        return
    text = language("more images like these")
    reason = language("the last doubling brought at most {points:.1f} percentage points", points=100 * bound)
    yield Recommendation("no_more_images", text, reason, (), "more", helps=False)


def is_small_curve(curve: LearningCurve) -> bool:
    """Whether the curve was measured with too few images a class to say that more would not help."""
    return is_too_short(curve.points[-1].photos, len(curve.classes))


def significant_gains(curve: LearningCurve) -> list[str]:
    """Classes whose recall rose significantly by the last doubling, corrected for the number of classes."""
    z = NormalDist().inv_cdf(1 - 0.025 / len(curve.classes)) if curve.classes else 0.0
    return [row.name for row in curve.classes if row.recall - row.half > z * row.se > 0]


def largest_gain(curve: LearningCurve) -> float:
    """Upper bound (2 standard errors) of the gain of accuracy by the last doubling."""
    n = sum(row.n for row in curve.classes)
    if not n:
        return 1.0
    changed = sum((row.se * row.n) ** 2 for row in curve.classes)  # predictions that were right in one case alone
    gain = sum(row.n * (row.recall - row.half) for row in curve.classes) / n
    return max(0.0, gain) + 2 * math.sqrt(changed) / n


def rare_weak_classes(findings: Findings) -> dict[str, int]:
    """Classes with significantly low recall and fewer training images than an even share -> how many these are."""
    counts = findings.count_images("train")
    if findings.test is None or not counts:
        return {}
    even = sum(counts.values()) / len(findings.metrics.classes or counts)
    return {name: counts[name] for name in weak_classes(findings.test) if counts[name] < even}


def _small_weak_classes(findings: Findings, language: Language) -> Iterator[Recommendation]:
    rare, test = rare_weak_classes(findings), findings.test
    if not rare or test is None:
        return
    name, n = next(iter(rare.items()))
    text = language("Collect more images of {names}.", names=name_some(rare, language))
    reason = language(
        "Of “{name}” only {share} are recognised, of all images {accuracy}; it has {n} training images.",
        name=short_name(name),
        share=language.percent(test.per_class[name].recall, 0),
        accuracy=language.percent(test.accuracy, 0),
        n=n,
    )
    yield Recommendation("class_images", text, reason, (), "classes")


def class_weights(findings: Findings, language: Language) -> Iterator[Recommendation]:
    """Class weights, if rare classes are recognised badly and weights were not tried."""
    counts, rare = findings.count_images("train"), rare_weak_classes(findings)
    if not rare or findings.recipe.imbalance != "none" or max(counts.values()) < MAX_CLASS_RATIO * min(rare.values()):
        return
    text = language("Give rare classes more weight in the training.")
    largest, smallest = max(counts, key=lambda name: counts[name]), min(rare, key=lambda name: rare[name])
    reason = language(
        "“{large}” has {n_large} training images, “{small}” has {n_small}, and is recognised significantly less often.",
        large=short_name(largest),
        n_large=counts[largest],
        small=short_name(smallest),
        n_small=rare[smallest],
    )
    yield Recommendation("imbalance", text, reason, (findings.train_command(imbalance="weights"),), "classes")


def count_issues(audit: AuditReport) -> int:
    """Images and sets of images that need a decision."""
    sets = (audit.unreadable, audit.conflicts, audit.leaks, audit.near_leaks, audit.label_errors or ())
    return sum(map(len, sets))
