"""What happens -> a bar with the time left on stderr, and lines in a log; stdout stays free for JSON."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressCallback = Callable[[int, int], None]
"""Takes (done, total)."""


class Reporter:
    """Says to people what a run does, and keeps the seconds that each part took."""

    def __init__(self, log: Path | None = None, started: float | None = None, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=quiet)
        self.log_file = log
        self.start_time = time.monotonic() if started is None else started
        self.stage_seconds: dict[str, float] = {}

    def elapsed(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self.start_time

    def info(self, text: str, style: str | None = None) -> None:
        """One line on stderr and in the log, whatever control characters a file name may hold."""
        text = "".join(c if c.isprintable() else "\ufffd" for c in text)
        self.console.print(text, style=style, markup=False)
        if self.log_file is not None:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    def warning(self, text: str) -> None:
        self.info(f"warning: {text}", style="yellow")

    @contextmanager
    def timer(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `seconds[name]`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + time.monotonic() - start

    @contextmanager
    def progress_bar(self, description: str, unit: str = "") -> Iterator[ProgressCallback]:
        """A progress bar; on anything but a terminal nothing is drawn."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        time_left = (TimeRemainingColumn(), TextColumn("left"))
        with Progress(
            *columns, *time_left, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as progress:
            task = progress.add_task(description, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
