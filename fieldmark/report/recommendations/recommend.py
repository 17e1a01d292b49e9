"""All rules, the most useful first."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report.recommendations import data_rules, result_rules, training_rules
from fieldmark.report.recommendations.findings import Findings, load_findings
from fieldmark.report.recommendations.recommendation import Recommendation, half_width

MAX_RECOMMENDATIONS = 6
"""How many are shown."""

Rule = Callable[[Findings, Language], Iterator[Recommendation]]

PREREQUISITES: tuple[Rule, ...] = (
    data_rules.leaks,
    result_rules.no_test,
    result_rules.majority_baseline,
    data_rules.conflicts,
    data_rules.few_images,
    result_rules.rejection_off,
)
"""Without these, the metrics say little, or the classifier is not safe to use."""
RULES: tuple[Rule, ...] = (
    # wrong data misleads training and test alike
    data_rules.labels,
    data_rules.shortcuts,
    # what raises the accuracy
    training_rules.longer_training,
    result_rules.confusions,
    data_rules.more_images,
    data_rules.class_weights,
    result_rules.decision_threshold,
    # what makes it known better, and safe to use
    result_rules.low_coverage,
    result_rules.small_test,
    result_rules.calibration,
    result_rules.review,
    data_rules.unchecked_labels,
    data_rules.unreadable,
)
USELESS: tuple[Rule, ...] = (training_rules.no_longer_training, data_rules.no_more_images)
"""Rules for what would not help."""


def recommend(findings: Findings, language: Language = ENGLISH) -> list[Recommendation]:
    """What to do, the most useful first and at most six, then what would not help."""
    is_uncertain = findings.test and half_width(findings.test) > result_rules.VERY_WIDE  # all metrics are, then
    first = [result_rules.small_test] if is_uncertain else []
    rules = [*PREREQUISITES, *first, *(rule for rule in RULES if rule not in first)]
    found = [recommendation for rule in rules for recommendation in rule(findings, language)]
    useless = [recommendation for rule in USELESS for recommendation in rule(findings, language)]
    return [*_with_own_folders(found[:MAX_RECOMMENDATIONS], findings), *useless]


def _with_own_folders(recommendations: list[Recommendation], findings: Findings) -> list[Recommendation]:
    """The recommendations, each training into a folder of its own (RUN-2, RUN-3, ...), since none is overwritten.

    Commands that are the same stay the same: they are run once.
    """
    shared, numbers = shlex.join(["--out", findings.next_run]), dict[str, int]()

    def rename(command: str) -> str:
        if shared not in command:
            return command
        number = numbers.setdefault(command, len(numbers) + 2)
        return command.replace(shared, shlex.join(["--out", f"{findings.run}-{number}"]))

    return [replace(one, commands=tuple(map(rename, one.commands))) for one in recommendations]


def recommend_for_run(run: Path, language: Language = ENGLISH) -> list[Recommendation]:
    """Recommendations for the finished run in that folder."""
    return recommend(load_findings(run), language)
