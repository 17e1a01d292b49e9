"""Intervals hold their level, also for images that come in groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fieldmark.evaluation.intervals import GroupBootstrap, as_column, one_hot, wilson_interval


@given(st.integers(1, 400), st.data())
def test_wilsons_interval_is_scipys(n: int, data: st.DataObject):
    right = data.draw(st.integers(0, n))
    found = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson_interval(np.array([right / n]), np.array([n]))[0] == pytest.approx([found.low, found.high], abs=1e-6)


def test_interval_without_trials():
    assert wilson_interval(np.array([np.nan]), np.array([0])).tolist() == [[0, 1]]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_resamples_hold_whole_groups(groups: list[int]):
    drawn = GroupBootstrap(np.array(groups), n_resamples=120)
    assert drawn.is_independent == (len(set(groups)) == len(groups))
    totals = drawn.resampled_totals(one_hot(np.array(groups), 7))
    sizes = np.bincount(groups, minlength=7)
    times = totals / np.maximum(sizes, 1)
    np.testing.assert_array_equal(times, times.round())  # a group is there once, twice, ..., never in part
    assert (times.sum(1) == len(set(groups))).all()


def test_resamples_do_not_depend_on_the_names_of_groups():
    one, two = (GroupBootstrap(np.array(names)) for names in ([5, 5, 2, 9], [0, 0, 8, 3]))
    values = as_column(np.arange(4.0))
    np.testing.assert_array_equal(one.resampled_totals(values), two.resampled_totals(values))


def test_the_group_bootstrap_holds_its_level_where_wilsons_does_not():
    """Groups of eight images that agree: in 200 samples, how often does the interval cover the true share?"""
    rng, truth, held, plain = np.random.default_rng(0), 0.7, 0, 0
    for _ in range(200):
        rights = np.repeat(rng.random(40) < truth, 8)
        drawn = GroupBootstrap(np.repeat(np.arange(40), 8), n_resamples=300)
        low, high = drawn.ratio_intervals(as_column(rights), as_column(np.ones(320)))[0]
        held += low <= truth <= high
        low, high = wilson_interval(rights.mean(), np.array(320))
        plain += low <= truth <= high
    assert held >= 180 and plain < 140


def test_constant_resamples_fall_back_to_wilson_over_groups():
    drawn = GroupBootstrap(np.repeat(np.arange(10), 3))
    low, high = drawn.ratio_intervals(as_column(np.ones(30)), as_column(np.ones(30)))[0]
    assert (low, high) == pytest.approx(tuple(wilson_interval(np.array(1.0), np.array(10))))
