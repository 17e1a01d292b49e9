"""A bounded, ordered map over threads."""

import threading
from collections.abc import Iterator

import pytest

from fieldmark.core.parallel import PREFETCH_PER_WORKER, is_cancelled, ordered_map


def test_results_come_in_order_whichever_call_ends_first():
    first_may_end = threading.Event()

    def call(k: int) -> int:
        if k == 0:
            assert first_may_end.wait(10)
        elif k == 1:
            first_may_end.set()
        return k * k

    assert list(ordered_map(call, range(6), 2)) == [k * k for k in range(6)]


def test_it_reads_no_further_ahead_than_the_consumer_can_follow():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for k in range(1000):
            taken.append(k)
            yield k

    results = ordered_map(lambda k: k, items(), 3)
    for done in range(1, 20):
        next(results)
        assert len(taken) <= done + PREFETCH_PER_WORKER * 3
    results.close()
    assert len(taken) < 30


def test_an_error_is_raised_in_its_place():
    def call(k: int) -> int:
        return 12 // (k - 2)

    results = ordered_map(call, range(5), 2)
    assert [next(results), next(results)] == [-6, -12]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_calls_learn_that_nobody_waits_any_more():
    told = threading.Event()

    def call(k: int) -> int:
        while k and not is_cancelled():
            told.wait(0.01)
        told.set() if k else None
        return k

    results = ordered_map(call, range(9), 2)
    assert next(results) == 0 and not is_cancelled()
    results.close()
    assert told.is_set()
