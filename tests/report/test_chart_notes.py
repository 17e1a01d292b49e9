"""What is said of each chart follows its numbers, and calls chance by its name."""

import numpy as np
import pytest
from findings import FLAT, RARE_WEAK, audited, decided, epochs, found, metrics_of, uneven
from told import english

from fieldmark.core.i18n import ENGLISH, get_language
from fieldmark.evaluation.metrics import Predictions, compute_metrics
from fieldmark.evaluation.paired import PairedDifference
from fieldmark.report import chart_notes
from fieldmark.report.check_page import SECTION_NOTES, SECTION_TITLES
from fieldmark.report.compare_page import describe_choice, describe_cost
from fieldmark.report.results import Comparison, ComparisonRow
from fieldmark.report.run_metrics import FoldMetrics
from fieldmark.report.text import describe_class_gains, describe_learning_curve

ZH = get_language("zh")


def folded(*accuracies: float):
    tests = [metrics_of([[round(200 * at), 200 - round(200 * at)], [0, 200]]) for at in accuracies]
    pooled = metrics_of([[400, 20], [0, 400]])
    sd = float(np.std([test.accuracy for test in tests], ddof=1))
    object.__setattr__(pooled, "sd", sd)
    return found(pooled, folds=[FoldMetrics(test, None, "") for test in tests])


def doubtful():
    """A test without a confident image below the threshold of 0.5, where it misses many positives."""
    scores = np.concatenate([np.linspace(0.3, 0.9, 100), np.linspace(0.05, 0.6, 100)])
    labels = np.repeat([1, 0], 100)
    probabilities = np.stack([1 - scores, scores], 1)
    predictions = Predictions(np.log(probabilities), probabilities, np.ones(200), labels, np.arange(200))
    return found(compute_metrics(predictions, ["a", "b"], 0.5, "b", 0.5))


NOTES = [
    (
        "classes",
        found(metrics_of(RARE_WEAK)),
        "“class 2” is recognised least often: 12 of 30 images. That is really less",
    ),
    ("classes", found(metrics_of(FLAT)), "“class 0” is recognised least often: 190 of 200 images. With so few images"),
    ("classes", found(metrics_of([[9, 0, 0], [0, 9, 0], [0, 0, 9]])), "All images of all classes are recognised."),
    ("confusion", found(metrics_of(RARE_WEAK)), "“class 2” is taken for “class 0”: 10 of 30 images. Look at these"),
    ("confusion", found(metrics_of([[9, 1], [0, 9]])), "1 of 10 images. These are single images, not a pattern."),
    (
        "sizes",
        found(metrics_of(FLAT), counts={"class 0": 90, "class 1": 10, "class 2": 40}),
        "with --imbalance weights",
    ),
    (
        "sizes",
        found(metrics_of(FLAT), counts={"class 0": 30, "class 1": 10, "class 2": 20}),
        "enough, but so many images are few.",
    ),
    ("sizes", found(metrics_of(FLAT), counts={"class 0": 90, "class 1": 60, "class 2": 50}), "balanced enough."),
    ("sizes", found(metrics_of(FLAT), images=50), "All classes have 50 images each; nothing to do."),
    ("sizes", found(metrics_of(FLAT), images=10), "The classes are balanced, but 10 images each are few."),
    ("audit", audited(label_errors=()), "No image needs a decision."),
    ("audit", audited(conflicts=(("a", "b"),)), "Found: 1 issues that a person should decide on."),
    (
        "training",
        found(metrics_of(FLAT), history=epochs(probe=0.9)),
        "90.0\xa0% of the validation images. Fine-tuning was left out",
    ),
    (
        "training",
        found(metrics_of(FLAT), validation=metrics_of(FLAT), history=epochs(0.9, probe=0.7), best_epoch=2),
        "Fine-tuning raised the validation accuracy from 70.0\xa0% to 90.0\xa0%. Training and validation images are",
    ),
    (
        "training",
        found(metrics_of(FLAT), validation=metrics_of(FLAT), history=epochs(0.9, probe=0.89, train=0.99), best_epoch=2),
        "no certain difference: validation accuracy 89.0\xa0% before, 90.0\xa0% after. Training images are recognised"
        " better than validation images by 9 points (overfitting): try --augment strong",
    ),
    ("folds", folded(0.95, 0.94, 0.96), "Chance explains the difference"),
    ("folds", folded(0.6, 0.99, 0.8), "They differ by more than chance"),
    ("binary", decided(20), "The threshold 0.30 is better: use it."),
    ("binary", doubtful(), "To find 95\xa0% of them, lower it: false alarms are then"),
    ("reliability", found(metrics_of(FLAT)), "It can be read as a probability, roughly."),
    ("reliability", found(metrics_of(FLAT, 0.7)), "Do not read the confidence as a probability."),
    (
        "reliability",
        uneven(100),
        "On average confidence (75\xa0%) and accuracy (75\xa0%) agree, but in single ranges of confidence they differ"
        " by 40\xa0%. Do not read",
    ),
    ("reliability", uneven(24), "48 images are too few to say whether the confidences are right."),
    ("coverage", found(metrics_of(FLAT)), "No image is rejected as unknown."),
    (
        "coverage",
        found(metrics_of(FLAT), validation=metrics_of([[6, 0], [0, 6]])),
        "Rejection of unknown images is off: 12 validation images are too few for a threshold, at least 20 are needed.",
    ),
    (
        "coverage",
        found(metrics_of(FLAT, rejected=10, wrong_rejected=10)),
        "of the 20 rejected ones, 50\xa0%. A person should",
    ),
]


@pytest.mark.parametrize(("name", "findings", "text"), NOTES)
def test_a_note_says_what_the_numbers_say(name, findings, text):
    note = chart_notes.NOTES[name]
    assert text in note(findings, ENGLISH)
    names = ["class", "check", "imbalance", "weights", "augment", "strong", "group", "by", "a", "b"]
    assert not english(
        note(findings, ZH), ["--imbalance weights", "--augment strong", "--group-by", "fieldmark check", *names]
    )


def test_few_images_are_counted_and_not_made_a_hundred():
    assert chart_notes.lead_sentence(found(metrics_of([[7, 1], [0, 2]])), ENGLISH).startswith("Of 10 images, 9 were")
    assert chart_notes.lead_sentence(found(metrics_of(FLAT)), ENGLISH).startswith("About 95 of 100 images")
    assert "(same camera, background and kind of object), expect" in chart_notes.lead_sentence(
        found(metrics_of(FLAT)), ENGLISH
    )
    assert chart_notes.lead_sentence(found(), ENGLISH) == ""


@pytest.mark.parametrize(("photos", "gain", "told"), [(59, 0.0, False), (60, 0.0, True), (59, 0.03, True)])
def test_a_learning_curve_of_few_images_does_not_say_that_more_would_not_help(photos, gain, told):
    points = [{"photos": n, "accuracy": at, "ci95": [at, at]} for n, at in ((30, 0.8 - gain), (photos, 0.8))]
    rows = [{"name": name, "half": 0.8, "recall": 0.8, "se": 0.1} for name in "abc"]
    data = {"points": points, "doubled": 0.8 + gain, "rises": gain > 0, "classes": rows}
    text = describe_learning_curve(data)
    assert (text == "Too few images to say whether more would help; below 50 a class they usually do.") != told
    assert bool(describe_class_gains(data)) == (photos == 60)


def row(network: str, accuracy: float, difference: PairedDifference | None = None, **costs: float) -> ComparisonRow:
    own = {"seconds": 60.0, "megabytes": 10.0, "images_per_s": 50.0} | costs
    ci95 = (accuracy - 0.02, accuracy + 0.02)
    return ComparisonRow(
        network, accuracy, None, ci95, 500, [0], [accuracy], None, None, parameters=1, macs=1, added=(), runs=(),
        difference=difference, **own
    )  # fmt: skip


def test_a_comparison_says_which_network_to_take():
    better = PairedDifference(0.05, (0.02, 0.08), 0.001, "sign", 40, 15, 0.001, True)
    even = PairedDifference(0.01, (-0.02, 0.04), 0.5, "sign", 20, 15, 0.5, False)
    baseline = row("first", 0.90, seconds=30.0)
    assert describe_choice(Comparison([baseline, row("second", 0.95, better)])).startswith("Take second, which is")
    assert "Choose by cost" in describe_choice(Comparison([baseline, row("second", 0.91, even)]))


def test_the_cheapest_of_the_best_is_named_and_no_worse_one():
    rows = [row("weak", 0.80, seconds=1.0), row("small", 0.93, seconds=30.0), row("large", 0.94, images_per_s=9.0)]
    assert "small costs least: 30.0 s" in describe_cost(rows, "seconds")
    assert "small is the fastest: 50 images/s" in describe_cost(rows, "images_per_s")
    assert not english(describe_cost(rows, "images_per_s", ZH), ["small"])


def test_every_kind_of_issue_has_a_note():
    assert list(SECTION_NOTES) == list(SECTION_TITLES)
