"""The labels of a session: what follows from its journal and from the labels that were there before."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from fieldmark.pipeline.teaching.journal import Journal


@dataclass
class SessionLabels:
    """Labels by row of the store.

    Attributes:
        train: row -> class of images to learn from, in the order in which they were labelled.
        test: row -> class of test images.
        excluded: rows that were left out.
        skipped: rows that are asked about again at the end, in the order in which they were skipped last.
        answered: rows that a person has answered for.
        checks: how often a person was asked about a row that had a label already.
    """

    train: dict[int, str] = field(default_factory=dict)
    test: dict[int, str] = field(default_factory=dict)
    excluded: set[int] = field(default_factory=set)
    skipped: dict[int, None] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    checks: Counter[int] = field(default_factory=Counter)

    @classmethod
    def from_journal(
        cls, journal: Journal, row_of: Mapping[str, int], given: Mapping[int, str], is_test: np.ndarray
    ) -> "SessionLabels":
        """The labels of now.

        Args:
            row_of: name -> row.
            given: row -> class before the session.
            is_test: which rows are test images, (n,).
        """
        labels = cls()
        answers = {row_of[path]: answer for path, answer in journal.current().items() if path in row_of}
        for row, label in given.items():
            if row not in answers:
                labels._add(row, label, is_test)
        for row, answer in sorted(answers.items(), key=lambda item: item[1].number):
            if answer.action == "label" and answer.label:
                labels._add(row, answer.label, is_test)
            elif answer.action == "exclude":
                labels.excluded.add(row)
            elif row in given:  # a doubted label whose question was skipped stays
                labels._add(row, given[row], is_test)
            else:
                labels.skipped[row] = None
        has_label = set(given)
        for answer in journal.standing():
            if (row := row_of.get(answer.path)) is None:
                continue
            labels.answered.add(row)
            if row in has_label:
                labels.checks[row] += 1
            elif answer.action == "label":
                has_label.add(row)
        return labels

    def _add(self, row: int, label: str, is_test: np.ndarray) -> None:
        (self.test if is_test[row] else self.train)[row] = label

    def __contains__(self, row: int) -> bool:
        return row in self.train or row in self.test or row in self.excluded or row in self.skipped

    def label_of(self, row: int) -> str | None:
        """The class of an image; None if it has none."""
        return self.train.get(row) or self.test.get(row)

    def contradictions(self, groups: np.ndarray) -> Iterator[tuple[int, list[int]]]:
        """Rows whose near-duplicates have another label, and those near-duplicates.

        Args:
            groups: number of the group of near-duplicates of each row, (n,).
        """
        labelled = np.fromiter(self.train, np.int64, len(self.train))
        _, number, sizes = np.unique(groups[labelled], return_inverse=True, return_counts=True)
        members = defaultdict[int, list[int]](list)
        for row in labelled[sizes[number] > 1].tolist():
            members[int(groups[row])].append(row)
        for rows in members.values():
            for row in rows:
                if others := [other for other in rows if self.train[other] != self.train[row]]:
                    yield row, others
