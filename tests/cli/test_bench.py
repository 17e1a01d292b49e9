"""A benchmark says what it timed, how often and how exactly."""

import statistics

import pytest

from fieldmark.cli import bench
from fieldmark.core import timing
from fieldmark.core.errors import FieldmarkError


def test_what_is_timed_is_what_it_says(monkeypatch: pytest.MonkeyPatch):
    durations = iter([1.0, 3.0] * 50)
    now, calls = 0.0, 0

    def clock() -> float:  # is read before and after each timed run
        nonlocal now, calls
        calls += 1
        now += 0.5 if calls % 2 else next(durations)
        return now

    monkeypatch.setattr(timing.time, "perf_counter", clock)
    lines: list[str] = []
    result = bench.benchmark_network("resnet18", 2, 32, False, lines.append)
    assert calls == 2 * 100
    assert result.mean_seconds == 2.0
    assert result.sd_seconds == pytest.approx(statistics.stdev([1.0, 3.0] * 50))
    assert result.images_per_second == 1.0
    assert (result.network, result.batch, result.image_size, result.time_training) == ("resnet18", 2, 32, False)
    assert len(lines) == 11
    assert "step 0, duration = 1.000" in lines[0]
    assert lines[-1].endswith("Forward across 100 steps, 2.000 +/- 1.005 sec / batch")


def test_the_json_has_the_keys_of_the_contract(brief: None):
    keys = ["network", "batch", "image_size", "train", "device", "mean_s", "sd_s", "images_per_s"]
    assert list(bench.benchmark_network("resnet18", 1, 32, False, print).to_dict()) == keys


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARMUP_RUNS", 1)
    monkeypatch.setattr(bench, "TIMED_RUNS", 3)


def test_training(brief: None):
    lines: list[str] = []
    result = bench.benchmark_network("resnet18", 2, 32, True, lines.append)
    assert result.time_training
    assert result.mean_seconds > 0 <= result.sd_seconds
    assert "Forward-backward across 3 steps" in lines[-1]


def test_words_of_a_network(brief: None):
    assert (
        bench.benchmark_network("resnet18+after=-1:mask+head=bilinear(reduced=4)", 1, 32, False, print).mean_seconds > 0
    )
    with pytest.raises(FieldmarkError, match="resnet18"):
        bench.benchmark_network("resnet19", 1, None, False, print)
