"""Every epoch once in every tracker, wherever a run was killed; a tracker that fails harms nothing but itself."""

import csv
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import loggers
from fieldmark.training.history import HISTORY_COLUMNS
from fieldmark.training.loggers import SCALAR_TAGS, parse_loggers

BOTH = Recipe(logger="wandb,mlflow")
FIGURES = {"test": {"accuracy": 0.9}, "validation": {}}
EPOCHS = range(1, 10)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@st.composite
def tries(draw: st.DrawFn) -> list[tuple[int, int, set[str]]]:
    """Of each try to train: epochs in the checkpoint, epochs done when it is killed, services lost on the way."""
    found, saved = [], 0
    for _ in range(draw(st.integers(0, 4))):
        done = draw(st.integers(saved, EPOCHS[-1]))
        found.append((saved, done, draw(st.sets(st.sampled_from(["wandb", "mlflow"])))))
        saved = draw(st.integers(saved, done))
    return [*found, (saved, EPOCHS[-1], set())]


numbers = itertools.count()


@settings(max_examples=40)
@given(tries())
def test_a_run_killed_anywhere_has_every_epoch_once(remote, begin, row, shown, tmp_path: Path, tries):
    out = tmp_path / str(next(numbers))
    remote.forget()
    for saved, done, lost in tries:
        remote.down = set()
        tracking, warnings = begin(out, saved, BOTH)
        for epoch in range(saved + 1, done + 1):
            if epoch > (saved + done) // 2:
                remote.down = lost
            tracking.log_epoch(row(epoch))
            assert [line["epoch"] for line in table(out)] == [str(k) for k in range(1, epoch + 1)]
        assert len(warnings) <= len(lost)
    plain = {
        k: {SCALAR_TAGS[n]: value for n, value in row(k).to_dict().items() if n in SCALAR_TAGS and math.isfinite(value)}
        for k in EPOCHS
    }
    (wandb,), (mlflow,) = remote.wandb.values(), remote.mlflow.values()
    assert wandb["rows"] == list(plain.items())
    assert mlflow["rows"] == [(k, {**values, "epoch": k}) for k, values in plain.items()]
    assert table(out) == [{name: str(value) for name, value in row(k).to_dict().items()} for k in EPOCHS]
    seen = shown(out)
    for tag in SCALAR_TAGS.values():
        curve = {event.step: event.value for event in seen.Scalars(tag)}
        assert curve == pytest.approx({k: values[tag] for k, values in plain.items() if tag in values})
        assert len(seen.Scalars(tag)) == len(curve)


def test_a_table_is_there_from_the_start_and_keeps_every_bit(begin, row, tmp_path: Path):
    tracking, _ = begin(tmp_path, 0, Recipe())
    assert (tmp_path / "history.csv").read_text().split() == [",".join(HISTORY_COLUMNS)]
    tracking.log_epoch(row(7))
    assert [{name: float(value) for name, value in line.items()} for line in table(tmp_path)] == [row(7).to_dict()]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("moment", ["begin", "epoch", "close"])
def test_a_service_that_is_gone_costs_one_line(remote, begin, row, shown, tmp_path: Path, capfd, name, moment):
    remote.down = {name} if moment == "begin" else set()
    tracking, warnings = begin(tmp_path, 0, BOTH)
    remote.down = {name} if moment == "epoch" else set()
    tracking.log_epoch(row(1))
    tracking.log_epoch(row(2))
    remote.down = {name} if moment == "close" else set()
    tracking.close(FIGURES, BOTH)
    (line,) = warnings
    assert line.startswith(f"{name} failed; training continues without it") and "\n" not in line
    assert len(table(tmp_path)) == 2 and "test/accuracy" in shown(tmp_path).Tags()["scalars"]
    out, err = capfd.readouterr()
    assert out == "" and "chatters" in err


def test_the_table_alone_may_stop_a_training(begin, row, tmp_path: Path):
    (tmp_path / "tensorboard").touch()
    tracking, warnings = begin(tmp_path, 0, Recipe())
    tracking.log_epoch(row(1))
    assert len(warnings) == 1 and warnings[0].startswith("tensorboard failed")
    assert len(table(tmp_path)) == 1
    (tmp_path / "history.csv.half").mkdir()
    with pytest.raises(OSError, match="history"):
        tracking.log_epoch(row(2))


@pytest.mark.parametrize("logger", [None, "", " , "])
def test_no_logger_needs_nothing(logger):
    assert parse_loggers(logger) == ()


def test_loggers_are_found_or_refused(remote, tmp_path: Path, monkeypatch):
    assert parse_loggers("mlflow, wandb,mlflow") == ("mlflow", "wandb")
    with pytest.raises(FieldmarkError, match="'comet', but can be wandb or mlflow"):
        parse_loggers("wandb,comet")
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("a_folder", "a_package_that_is_not_here"):
        monkeypatch.setitem(loggers.LOGGERS, name, loggers.LOGGERS["wandb"])
        with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[loggers\]'"):
            parse_loggers(f"wandb,{name}")
