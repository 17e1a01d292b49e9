"""A benchmark says what it timed, how often and how exactly."""

import statistics

import pytest

from fieldmark.cli import bench
from fieldmark.core.errors import FieldmarkError


def test_what_is_timed_is_what_it_says(monkeypatch: pytest.MonkeyPatch):
    durations = iter([9.0] * 10 + [1.0, 3.0] * 50)
    now, calls = 0.0, 0

    def clock() -> float:  # is asked before and after each run
        nonlocal now, calls
        calls += 1
        now += 0.5 if calls % 2 else next(durations)
        return now

    monkeypatch.setattr(bench.time, "perf_counter", clock)
    said: list[str] = []
    found = bench.benchmark_network("resnet18", 2, 32, False, said.append)
    assert calls == 2 * (10 + 100)
    assert found["mean_s"] == 2.0
    assert found["sd_s"] == pytest.approx(statistics.stdev([1.0, 3.0] * 50))
    assert found["images_per_s"] == 1.0
    assert (found["network"], found["batch"], found["image_size"], found["train"]) == ("resnet18", 2, 32, False)
    assert len(said) == 11
    assert "step 0, duration = 1.000" in said[0]
    assert said[-1].endswith("Forward across 100 steps, 2.000 +/- 1.005 sec / batch")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARMUP_RUNS", 1)
    monkeypatch.setattr(bench, "TIMED_RUNS", 3)


def test_training(brief: None):
    said: list[str] = []
    found = bench.benchmark_network("resnet18", 2, 32, True, said.append)
    assert found["train"]
    assert found["mean_s"] > 0 <= found["sd_s"]
    assert "Forward-backward across 3 steps" in said[-1]


def test_words_of_a_network(brief: None):
    assert bench.benchmark_network("resnet18+after=-1:mask+head=bilinear(reduced=4)", 1, 32, False, print)["mean_s"] > 0
    with pytest.raises(FieldmarkError, match="resnet18"):
        bench.benchmark_network("resnet19", 1, None, False, print)
