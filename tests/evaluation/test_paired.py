"""Tests of paired differences hold their level, have power, and count groups of images once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fieldmark.evaluation.paired import Outcomes, PairedDifference, accuracy_change, correct_holm, paired_difference


def outcomes(correct: np.ndarray, groups: np.ndarray | None = None) -> Outcomes:
    names = [f"{k}.jpg" for k in range(len(correct))]
    own = names if groups is None else [str(group) for group in groups]
    return dict(zip(names, zip(map(bool, correct), own, strict=True), strict=True))


def test_one_seed_is_mcnemars_test():
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.8, rng.random(400) < 0.85
    result = paired_difference([(outcomes(first), outcomes(second))])
    won, lost = int((second & ~first).sum()), int((first & ~second).sum())
    assert (result.won, result.lost, result.test) == (won, lost, "McNemar, exact")
    assert result.p == pytest.approx(binomtest(won, won + lost).pvalue)
    assert result.difference == pytest.approx(second.mean() - first.mean())
    assert result.ci95[0] < result.difference < result.ci95[1]
    assert paired_difference([(outcomes(first), outcomes(first))]).p == 1.0


@pytest.mark.parametrize(("gain", "is_different"), [(0.0, False), (0.15, True)])
def test_level_and_power_over_seeds(gain: float, is_different: bool):
    """Of twenty samples without a difference hardly one is significant; of those with 15 points nearly all are."""
    rng, n_significant = np.random.default_rng(3), 0
    for _ in range(20):
        difficulty = rng.random(300)  # the same images are hard for all
        pairs = []
        for _ in range(3):
            a, b = (difficulty + 0.2 * rng.normal(size=300) < quality for quality in (0.75, 0.75 + gain))
            pairs.append((outcomes(a), outcomes(b)))
        n_significant += paired_difference(pairs).p < 0.05
    assert n_significant >= 16 if is_different else n_significant <= 4


def test_near_duplicates_are_one_observation():
    rng = np.random.default_rng(0)
    first = rng.random(40) < 0.7
    second = first ^ (rng.random(40) < 0.2)
    alone = paired_difference([(outcomes(first), outcomes(second))])
    copies = [outcomes(np.repeat(correct, 6), np.repeat(np.arange(40), 6)) for correct in (first, second)]
    grouped = paired_difference([(copies[0], copies[1])])
    assert grouped.difference == pytest.approx(alone.difference) and grouped.test.startswith("bootstrap")
    widths = [result.ci95[1] - result.ci95[0] for result in (alone, grouped)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)  # 240 images say no more than 40


def test_holms_adjustment():
    results = [PairedDifference(0.1, (0.0, 0.2), p, "McNemar, exact", 9, 3) for p in (0.02, 0.5, 0.01, 0.04)]
    adjusted = correct_holm(results)
    assert [result.p_holm for result in adjusted] == pytest.approx([0.06, 0.5, 0.04, 0.08])
    assert [result.real for result in adjusted] == [False, False, True, False]
    assert [result.p for result in adjusted] == [result.p for result in results]
    assert correct_holm([]) == []
    assert list(adjusted[0].to_dict().items()) == [
        ("difference", 0.1), ("ci95", [0.0, 0.2]), ("p", 0.02), ("test", "McNemar, exact"), ("won", 9), ("lost", 3),
        ("p_holm", adjusted[0].p_holm), ("real", False),
    ]  # fmt: skip


# ---- the interval of Agresti & Min


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=400))
def test_accuracy_change_equals_its_definition(correct: list[tuple[bool, bool]]):
    before, after = np.array(correct).T
    change, back = accuracy_change(before, after), accuracy_change(after, before)
    assert change.difference == pytest.approx(after.mean() - before.mean()) and change.n == len(before)
    assert -1 <= change.ci95[0] <= change.difference <= change.ci95[1] <= 1
    assert (change.won, change.lost) == (back.lost, back.won)
    assert change.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert list(change.to_dict()) == ["difference", "ci95", "won", "lost", "n"]


@pytest.mark.parametrize(("won", "lost"), [(0.0, 0.0), (0.01, 0.02), (0.05, 0.03), (0.2, 0.1)])
def test_the_interval_of_a_change_holds_its_level(won: float, lost: float):
    rng, n_covered = np.random.default_rng(0), 0
    for _ in range(2000):
        sample = rng.uniform(size=320)
        before = (sample < lost) | (sample > 0.5)
        after = ((sample >= lost) & (sample < lost + won)) | (sample > 0.5)
        low, high = accuracy_change(before, after).ci95
        n_covered += low <= won - lost <= high
    assert n_covered / 2000 >= 0.94
