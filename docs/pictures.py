"""Makes the pictures of the README from a real run: its report, and the page that `fieldmark serve` gives.

    python docs/pictures.py RUN PHOTO

Takes Debian's Chromium, and scales what it sees to half of its pixels. PHOTO must be free to be shown.
"""

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1200, 860


def keep(png: bytes, name: str) -> None:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(128).save(IMAGES / name, optimize=True)


def main(run: Path, photo: Path) -> None:
    words = [sys.executable, "-m", "fieldmark.cli", "serve", str(run), "--port", "0"]
    with sync_playwright() as started, subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto((run / "report.html").resolve().as_uri())
        keep(page.screenshot(), "report.png")
        assert server.stdout
        page.goto(server.stdout.readline().split()[1])
        page.locator("#choose").set_input_files(str(photo))
        page.locator(".card[aria-busy=false]").wait_for()
        keep(page.screenshot(), "page.png")
        server.terminate()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
