"""Messages and progress of a run: `logging`, a progress bar on stderr, a log file; stdout stays free for JSON."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fieldmark.core.text import sanitize_for_terminal

LOGGER = logging.getLogger("fieldmark")
"""All messages of the library. Python shows warnings by default, the command line shows all (`log_to_stderr`)."""


def is_in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell"


# In a notebook stderr is red, and Rich's own output is a block for each line.
CONSOLE = Console(stderr=not is_in_notebook(), highlight=False, soft_wrap=True, emoji=False, force_jupyter=False)

STEP_WIDTH = 14
"""Characters of the column with the names of a run's steps."""

ProgressCallback = Callable[[int, int], None]
"""Takes (done, total)."""


class Reporter:
    """Messages, progress bars and stage times of one run.

    Args:
        log: a file to which every message is appended with its time.
        started: `time.monotonic()` of the start; now by default.
        quiet: send no message and draw no bar.
    """

    def __init__(self, log: Path | None = None, started: float | None = None, quiet: bool = False) -> None:
        self.quiet = quiet
        self.log_file = log
        self.start_time = time.monotonic() if started is None else started
        self.stage_seconds: dict[str, float] = {}

    def elapsed(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self.start_time

    def info(self, text: str) -> None:
        """One line; control characters, which a file name may hold, become U+FFFD."""
        self._send(logging.INFO, text)

    def warning(self, text: str) -> None:
        """One line, as a warning."""
        self._send(logging.WARNING, text)

    def step(self, name: str, text: str) -> None:
        """One line that names a step of the run and says what came of it."""
        self.info(f"{name:<{STEP_WIDTH}}{text}")

    def row(self, text: str, log_text: str = "", name: str = "") -> None:
        """A row of a table, or a step with that name; the log file gets `log_text` in its place."""
        if not self.quiet:
            LOGGER.info("%s", f"{name:<{STEP_WIDTH}}{sanitize_for_terminal(text)}")
        if log_text:
            self._log(log_text)

    def _send(self, level: int, text: str) -> None:
        text = sanitize_for_terminal(text)
        if not self.quiet:
            LOGGER.log(level, "%s", text)
        self._log(f"warning: {text}" if level == logging.WARNING else text)

    def _log(self, text: str) -> None:
        if self.log_file is not None:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    @contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `stage_seconds[name]`, in seconds."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + time.monotonic() - start

    @contextmanager
    def progress_bar(self, description: str, unit: str = "") -> Iterator[ProgressCallback]:
        """A progress bar with the remaining time; nothing is drawn on anything but a terminal or a notebook."""
        if is_in_notebook() and not self.quiet:
            line = _NotebookLine(description, unit)
            yield line.update
            line.clear()
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        time_left = (TimeRemainingColumn(), TextColumn("left"))
        is_hidden = self.quiet or not CONSOLE.is_terminal
        with Progress(*columns, *time_left, console=CONSOLE, transient=True, disable=is_hidden) as progress:
            task = progress.add_task(description, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


class _NotebookLine:
    """Progress on one line of a notebook's cell, written anew at most four times a second."""

    def __init__(self, description: str, unit: str) -> None:
        self.description, self.unit, self.width, self.last = description, unit, 0, 0.0

    def update(self, done: int, total: int) -> None:
        if time.monotonic() - self.last > 0.25:
            self.last = time.monotonic()
            self._write(f"{self.description}: {done:,} of {total:,} {self.unit}")

    def clear(self) -> None:
        self._write("")
        print("\r", end="", flush=True)

    def _write(self, text: str) -> None:
        print(f"\r{text:<{self.width}}", end="", flush=True)
        self.width = len(text)


class _ConsoleHandler(logging.Handler):
    """Writes records to stderr above the progress bar; warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        text = f"warning: {record.getMessage()}" if is_warning else record.getMessage()
        CONSOLE.print(text, style="yellow" if is_warning else None, markup=False)


@contextmanager
def log_to_stderr(is_shown: bool = True) -> Iterator[None]:
    """Show all messages on stderr inside the block, as the command line does, or leave everything as it is."""
    if not is_shown:
        yield
        return
    handler, level, propagate = _ConsoleHandler(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
