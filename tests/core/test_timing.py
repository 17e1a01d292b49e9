"""Repeated measurement of a call."""

import statistics

import pytest

from fieldmark.core import timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows `clock[0]`."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_the_warm_up_is_left_out(clock: list[float]):
    lengths = iter([100.0, 1.0, 2.0, 6.0])

    def call() -> None:
        clock[0] += next(lengths)

    seen = []
    timed = timing.measure(call, runs=3, warmup=1, on_run=lambda k, seconds: seen.append((k, seconds)))
    assert timed.seconds == (1.0, 2.0, 6.0)
    assert (timed.mean, timed.median, timed.sd) == (3.0, 2.0, statistics.stdev([1, 2, 6]))
    assert seen == [(0, 1.0), (1, 2.0), (2, 6.0)]


def test_it_goes_on_until_enough_time_is_spent(clock: list[float]):
    def call() -> None:
        clock[0] += 0.5

    assert len(timing.measure(call, runs=3, min_seconds=2.0).seconds) == 4


def test_calls_in_turns(clock: list[float]):
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    fast, slow = timing.measure_interleaved([lambda: call("a", 1.0), lambda: call("b", 2.0)], runs=2)
    assert order == ["a", "b"] * 3
    assert (fast.seconds, slow.seconds) == ((1.0, 1.0), (2.0, 2.0))
