"""The report in a browser: readable by all, in light and dark, on a phone, without a request to anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from told import make_run

from fieldmark.core.i18n import get_language
from fieldmark.report.run_report import write_report

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium in {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as started:
        yield started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])


@pytest.mark.parametrize("code", ["en", "zh"])
@pytest.mark.parametrize("classes", [["cat", "dog"], [f"kind {k}" for k in range(7)]], ids=["2", "7"])
def test_axe_finds_nothing_and_nothing_is_requested(browser: Any, tmp_path: Path, classes: list[str], code: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    make_run(tmp_path, classes)
    url = write_report(tmp_path, None, get_language(code))[0].as_uri()
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 400), ("dark", 400)):
        page, requests = browser.new_page(viewport={"width": width, "height": 860}, color_scheme=scheme), list[str]()
        page.on("request", lambda one, found=requests: found.append(one.url))
        page.goto(url)
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not [one for one in requests if not one.startswith(("data:", "file:"))]
        first, viewport = page.locator(".next li").first.bounding_box(), page.viewport_size
        assert first["y"] + first["height"] < viewport["height"], "the first screen says what to do"
        page.close()
