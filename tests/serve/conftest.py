"""A server on the small run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, running


@pytest.fixture(scope="session")
def serving(small_run: Path) -> Callable[..., Any]:
    """Options -> a context with a server of its own on the small run."""
    return lambda *options: running(small_run, *options)


@pytest.fixture(scope="session")
def server(serving: Callable[..., Any]) -> Iterator[Served]:
    """One for all tests that do not end it."""
    with serving() as served:
        yield served


@pytest.fixture(scope="session")
def served(server: Served) -> str:
    """Its URL."""
    return server.url


@pytest.fixture(scope="session")
def served_with_token(serving: Callable[..., Any]) -> Iterator[str]:
    """The URL of one that wants the token `let me in`."""
    with serving("--token", "let me in") as served:
        yield served.url
