"""`Recommendation`, and the statistics that its rules share."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from fieldmark.core.i18n import Language
from fieldmark.core.text import printable, shorten
from fieldmark.evaluation.intervals import wilson_interval
from fieldmark.evaluation.results import Interval, Metrics

MAX_NAME_LENGTH = 40
"""Characters of a class name or path in a sentence."""
MAX_NAMES = 4
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Recommendation:
    """One thing to do, or one that would not help.

    Attributes:
        kind: the rule that it comes from, as `labels`.
        text: what to do, in the language of the page.
        reason: the numbers of this run behind it.
        commands: what to run for it, in this order; empty if it is no command.
        section: id of the report's section that shows it.
        helps: whether it is worth doing; else `text` names what would not help.
    """

    kind: str
    text: str
    reason: str
    commands: tuple[str, ...] = ()
    section: str = ""
    helps: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        own = {"kind": self.kind, "text": self.text, "reason": self.reason, "commands": list(self.commands)}
        return own | {"helps": self.helps}


def short_name(name: str) -> str:
    """A class name or path for a sentence."""
    return shorten(printable(name), MAX_NAME_LENGTH)


def name_some(names: Iterable[str], language: Language) -> str:
    """The first names as a list in a sentence, and how many there are more."""
    all_names = [short_name(name) for name in names]
    listed = language.join_names(all_names[:MAX_NAMES])
    more = len(all_names) - MAX_NAMES
    return language("{names} and {n} more classes", names=listed, n=more) if more > 0 else listed


def corrected_interval(share: float, n: float, n_tests: int) -> Interval:
    """Wilson's 95 % interval, corrected for so many simultaneous tests (Bonferroni)."""
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, n_tests))
    low, high = wilson_interval(np.array([share]), np.array([n]), z)[0].tolist()
    return low, high


def independent_share(metrics: Metrics) -> float:
    """Groups for each image: of n images, so many are counted as independent trials."""
    return metrics.n_groups / metrics.n


def weak_classes(metrics: Metrics) -> list[str]:
    """Classes whose recall is significantly below the accuracy, lowest recall first."""
    k, factor = len(metrics.per_class), independent_share(metrics)
    weak = [
        (row.recall, name)
        for name, row in metrics.per_class.items()
        if row.n and corrected_interval(row.recall, row.n * factor, k)[1] < metrics.accuracy
    ]
    return [name for _, name in sorted(weak)]


def half_width(metrics: Metrics) -> float:
    """Half the width of the confidence interval of the accuracy."""
    low, high = metrics.ci95 or (0.0, 1.0)
    return (high - low) / 2


def is_perfect(metrics: Metrics | None) -> bool:
    """Whether no test image is misclassified, so that nothing that raises the accuracy can be measured."""
    return metrics is not None and metrics.accuracy == 1.0
