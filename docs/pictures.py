"""Makes the pictures of the README from a real run: its report, and the page that `fieldmark serve` gives.

    python docs/pictures.py RUN PHOTO ...

Takes Debian's Chromium. The photos must be free to be shown; those in the README are scikit-image's `data.coffee()` and
`data.chelsea()`, both CC0; the run is the EfficientNet-Lite0 of docs/results.md's table of Lite networks.
"""

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1200, 860


def main(run: Path, *photos: Path) -> None:
    words = [sys.executable, "-m", "fieldmark.cli", "serve", str(run), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with sync_playwright() as started, subprocess.Popen(words, **pipes) as server:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto((run / "report.html").resolve().as_uri())
        page.screenshot(path=IMAGES / "report.png")
        assert server.stdout
        page.goto(server.stdout.readline().split()[1])
        page.locator("#choose").set_input_files(list(map(str, photos)))
        page.locator(".card[aria-busy=false]").nth(len(photos) - 1).wait_for()
        page.set_viewport_size({"width": WIDTH, "height": 1260})
        page.screenshot(path=IMAGES / "page.jpg", quality=85)
        server.terminate()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
