"""What a command prints: its result on stdout, everything for people on stderr."""

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

from fieldmark.core import io
from fieldmark.core.progress import LOGGER
from fieldmark.core.text import sanitize_for_terminal


def print_result(data: Any, lines: Iterable[str], warnings: Iterable[str], as_json: bool) -> None:
    """The result on stdout, as one JSON document (which holds the warnings) or as lines with the warnings on stderr."""
    if as_json:
        print(io.to_json(data))
        return
    for warning in warnings:
        LOGGER.warning("%s", sanitize_for_terminal(warning))
    print("\n".join(map(sanitize_for_terminal, lines)))


def print_to_stderr(line: str) -> None:
    """A line for people; that nobody reads it, or its disk is full, ends no work."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
