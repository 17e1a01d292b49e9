"""A server on the small run, and a browser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, running

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = "no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium in {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as started:
        yield started.chromium.launch(executable_path=str(CHROMIUM), args=[f"--{word}" for word in SWITCHES.split()])


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """URL, what to do before, settings of the browser -> the page. The console stays empty, nothing goes elsewhere."""
    contexts, wrong = [], []

    def go(url: str, before: Callable[[Any], Any] = lambda page: None, **settings: Any) -> Any:
        contexts.append(browser.new_context(**settings))
        page, ours = contexts[-1].new_page(), (url.split("#")[0].rstrip("/") + "/", "blob:", "data:")
        # Of an answer like 401 or 503 Chromium itself has something to say.
        page.on("console", lambda one: one.text.startswith("Failed to load resource") or wrong.append(one.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: one.url.startswith(ours) or wrong.append(one.url))
        page.on("dialog", lambda dialog: dialog.accept())
        before(page)
        page.goto(url)
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []
