"""The test set is a random sample at any time, and what is said of it holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from fieldmark.pipeline.teaching import estimate
from fieldmark.pipeline.teaching.estimate import (
    MAX_TEST,
    MIN_FOR_GAIN,
    TEST_SHARE,
    Estimate,
    curve_sizes,
    draw_test_rows,
)
from fieldmark.pipeline.teaching.questions import CurvePoint
from fieldmark.pipeline.teaching.reader import reading_order

MASKS = st.lists(st.booleans(), min_size=1, max_size=300).map(np.array)


@given(MASKS, st.integers(0, 5))
def test_each_image_is_read_once_and_both_kinds_in_turn(is_labelled: np.ndarray, seed: int):
    order = reading_order(is_labelled, seed)
    assert sorted(order) == list(range(len(is_labelled)))
    fewer = min(is_labelled.sum(), (~is_labelled).sum())
    assert is_labelled[order][: 2 * fewer].sum() == fewer


@given(MASKS, st.integers(0, 5))
def test_candidates_have_no_label_if_there_are_such_images(is_labelled: np.ndarray, seed: int):
    order = reading_order(is_labelled, seed)
    rows = draw_test_rows(order, is_labelled, np.flatnonzero(is_labelled)[:40].tolist())
    assert len(set(rows)) == len(rows) > 0
    if not is_labelled.all():
        assert not is_labelled[rows].any() and len(rows) == -(-(~is_labelled).sum() // TEST_SHARE)


@given(MASKS, st.integers(0, 5), st.data())
def test_candidates_read_first_are_a_random_sample(is_labelled: np.ndarray, seed: int, data: st.DataObject):
    """They come in the random order of reading: those that have been read at any time are the first of them."""
    order = reading_order(is_labelled, seed)
    rows = draw_test_rows(order, is_labelled, [])
    read = set(order[: data.draw(st.integers(0, len(order)))].tolist())
    is_read = [row in read for row in rows.tolist()]
    assert is_read == sorted(is_read, reverse=True)


def test_every_image_is_a_candidate_equally_often():
    is_labelled = np.arange(60) < 10
    drawn = np.zeros(60)
    for seed in range(400):
        drawn[draw_test_rows(reading_order(is_labelled, seed), is_labelled, [])] += 1
    expected = 400 / TEST_SHARE
    assert not drawn[:10].any()
    assert np.abs(drawn[10:] - expected).max() < 4.5 * np.sqrt(expected * (1 - 1 / TEST_SHARE))


@pytest.mark.parametrize(("n_given", "is_taken"), [(29, False), (30, True)])
def test_the_test_split_of_a_dataset_is_the_test_set(n_given: int, is_taken: bool):
    order = reading_order(np.ones(200, bool), 0)
    rows = draw_test_rows(order, np.ones(200, bool), list(range(n_given)))
    assert (rows.tolist() == list(range(n_given))) == is_taken and len(rows) == (n_given if is_taken else 40)


def test_there_are_at_most_so_many_candidates():
    is_labelled = np.zeros(20 * MAX_TEST, bool)
    assert len(draw_test_rows(reading_order(is_labelled, 0), is_labelled, [])) == MAX_TEST


@given(st.lists(st.booleans(), max_size=50))
def test_an_estimate_is_the_share_within_its_interval(hits: list[bool]):
    found = Estimate.of(np.array(hits, bool))
    assert found.n == len(hits) and 0 <= found.low <= found.high <= 1
    if hits:
        assert (
            found.share is not None
            and found.share == np.mean(hits)
            and found.low <= found.share + 1e-12
            and found.share <= found.high + 1e-12
        )
    else:
        assert (found.share, found.low, found.high) == (None, 0.0, 1.0)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_the_interval_holds_its_level(share: float):
    rng = np.random.default_rng(0)
    found = [Estimate.of(rng.random(80) < share) for _ in range(1000)]
    assert np.mean([each.low <= share <= each.high for each in found]) > 0.92


@given(st.integers(0, 5000))
def test_sizes_of_the_learning_curve(n: int):
    sizes = curve_sizes(n)
    assert sizes == sorted(set(sizes)) and all(20 <= size <= n for size in sizes)
    assert bool(sizes) == (n >= 20) and len(sizes) < 15
    # Later labels take no point away until it is far behind, so a session adds points and never moves one.
    assert [size for size in curve_sizes(n + 1) if size <= n] == [size for size in sizes if size >= (n + 1) / 8]


def curve(*errors: float) -> list[CurvePoint]:
    return [CurvePoint(20 * 2**k, 1 - error) for k, error in enumerate(errors)]


@given(st.floats(0.05, 0.8), st.floats(0.5, 1.0), st.integers(1, 1000))
def test_the_gain_of_a_power_law_is_what_it_says(first: float, factor: float, more: int):
    points = curve(*(first * factor**k for k in range(4)))
    n, power = points[-1].labelled, np.log2(factor)
    expected = first * (n / 20) ** power - first * ((n + more) / 20) ** power
    gain = estimate.expected_gain(points, n, more, MIN_FOR_GAIN)
    assert gain is not None and gain == pytest.approx(expected, abs=1e-9) and (gain > 1e-9) == (expected > 1e-9)


def test_the_gain_of_a_flat_or_falling_curve_is_none():
    assert estimate.expected_gain(curve(0.2, 0.2, 0.2), 80, 100, MIN_FOR_GAIN) == pytest.approx(0, abs=1e-9)
    assert estimate.expected_gain(curve(0.1, 0.2, 0.3), 80, 100, MIN_FOR_GAIN) == 0


def test_the_gain_is_not_guessed_from_little():
    assert estimate.expected_gain(curve(0.3, 0.2), 40, 100, MIN_FOR_GAIN) is None
    assert estimate.expected_gain(curve(0.3, 0.2, 0.1), 80, 100, MIN_FOR_GAIN - 1) is None
    assert estimate.expected_gain(curve(0.0, 0.0, 0.0), 80, 100, MIN_FOR_GAIN) is None  # no power law goes through 0
    assert estimate.expected_gain([], 0, 100, MIN_FOR_GAIN) is None


@given(st.integers(0, 1000), st.floats(0.6, 10))
def test_the_scale_has_the_least_cross_entropy(seed: int, factor: float):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(200, 3))
    labels = (logits + rng.gumbel(size=(200, 3))).argmax(1)  # so 1 is the right scale
    logits /= factor
    scale = estimate.fit_scale(logits, labels)

    def cross_entropy(scale: float) -> float:
        return float(-log_softmax(scale * logits, axis=1)[np.arange(200), labels].mean())

    assert all(cross_entropy(scale) <= cross_entropy(other) + 1e-5 for other in (1.0, factor, scale / 1.1, scale * 1.1))
    assert estimate.fit_scale(logits[:29], labels[:29]) == 1.0


def test_confidence_is_the_probability_of_the_prediction():
    assert estimate.confidence(np.zeros((0, 3)), 2.0).shape == (0,)
    np.testing.assert_allclose(estimate.confidence(np.log([[0.2, 0.3, 0.5]]), 1.0), [0.5])
