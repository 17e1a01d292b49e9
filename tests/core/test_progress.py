"""What a run says goes to stderr and the log, a line each, and never to stdout."""

import io
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fieldmark.core import progress
from fieldmark.core.progress import Reporter, log_to_stderr


def test_a_line_on_stderr_and_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(tmp_path / "log.txt")
    said = ["phase 1: [bold]3[/bold] of 5 :smile:", "长" * 300, "x" * 500]
    with log_to_stderr():
        for text in said:
            reporter.info(text)
        reporter.warning("caf\udce9")
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines() == [*said, "warning: caf\ufffd"]
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in lines] == seen.err.splitlines()


@given(text=st.text(st.characters(blacklist_categories=())))
def test_any_text_is_one_line(text: str, tmp_path: Path):
    (tmp_path / "log.txt").unlink(missing_ok=True)
    reporter = Reporter(tmp_path / "log.txt")
    with pytest.MonkeyPatch.context() as patch, log_to_stderr():
        patch.setattr(progress, "CONSOLE", Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))
        reporter.info(text)
        reporter.info(text)
    content = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert len(content.splitlines()) == content.count("\n") == 2
    assert "\x1b" not in content


def test_logs_grow(tmp_path: Path):
    for text in ("first", "second"):
        Reporter(tmp_path / "log.txt").info(text)
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]


def test_parts_add_up_and_count_what_failed():
    reporter = Reporter()
    for _ in range(2):
        with reporter.timer("a"):
            time.sleep(0.01)
    with pytest.raises(ValueError), reporter.timer("b"):
        time.sleep(0.01)
        raise ValueError
    assert 0.02 <= reporter.stage_seconds["a"] <= reporter.elapsed()
    assert 0.01 <= reporter.stage_seconds["b"] <= reporter.elapsed() - reporter.stage_seconds["a"]


def test_elapsed_counts_from_the_given_start():
    assert 5 <= Reporter(started=time.monotonic() - 5).elapsed() < 5 + 60


def test_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]):
    with Reporter().progress_bar("reading", "photos") as advance:
        for k in range(3):
            advance(k + 1, 3)
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "")


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    drawn = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=drawn, force_terminal=True))
    with Reporter().progress_bar("reading", "photos") as advance:
        advance(1, 3)
    assert "reading" in drawn.getvalue()
    assert "left" in drawn.getvalue()


def test_a_library_is_silent_but_for_warnings(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    Reporter().info("epoch 1")
    Reporter().warning("two classes have one name")
    Reporter(quiet=True).warning("nobody hears this")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", "two classes have one name")]


def test_the_command_line_leaves_logging_as_it_was(capsys: pytest.CaptureFixture[str]):
    before = (progress.LOGGER.level, progress.LOGGER.propagate, list(progress.LOGGER.handlers))
    with log_to_stderr():
        Reporter().info("shown")
    Reporter().info("not shown")
    assert (progress.LOGGER.level, progress.LOGGER.propagate, list(progress.LOGGER.handlers)) == before
    assert capsys.readouterr().err == "shown\n"
