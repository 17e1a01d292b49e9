"""Repeated measurement of a call."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Durations of one call, in seconds, without those of the warm-up."""

    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seconds)

    @property
    def sd(self) -> float:
        """Sample standard deviation; 0 for a single run."""
        return statistics.stdev(self.seconds) if len(self.seconds) > 1 else 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(
    call: Callable[[], object],
    *,
    runs: int = 3,
    warmup: int = 1,
    min_seconds: float = 0.0,
    on_run: Callable[[int, float], None] | None = None,
) -> Timing:
    """Time `call` at least `runs` times, and until `min_seconds` have been spent, after `warmup` untimed calls.

    `on_run(k, seconds)` is called after each timed run. A call that uses a GPU must wait for it itself.
    """
    for _ in range(warmup):
        call()
    durations: list[float] = []
    while len(durations) < runs or sum(durations) < min_seconds:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
        if on_run:
            on_run(len(durations) - 1, durations[-1])
    return Timing(tuple(durations))


def measure_interleaved(calls: list[Callable[[], object]], *, runs: int = 3, warmup: int = 1) -> list[Timing]:
    """Time several calls in turns, so that a busy moment of the machine meets all of them."""
    durations: list[list[float]] = [[] for _ in calls]
    for run in range(warmup + runs):
        for call, spent in zip(calls, durations, strict=True):
            seconds = measure(call, runs=1, warmup=0).seconds[0]
            if run >= warmup:
                spent.append(seconds)
    return [Timing(tuple(spent)) for spent in durations]
