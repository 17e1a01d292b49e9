"""Takes the pictures: runs the commands of each, opens its page in light and in dark, and crops it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import browser as chromium
import teach
from browser import SCHEMES, Shot
from commands import make_images, output_of, run_again, run_once, served
from table import AGAIN, REPORT, Picture
from terminal import terminal_page
from texts import source_texts, texts_in
from way import PANEL_HEIGHT, PANEL_WIDTHS, way_page

VIEWPORT = 1040
"""CSS pixels of a page, whose column of text is 992 wide."""


class Studio:
    """Takes pictures of the runs in `work` into `images`."""

    def __init__(self, browser: Any, work: Path, data: Path | None, images: Path) -> None:
        self.browser, self.work, self.data, self.images = browser, work, data, images
        self.sources = source_texts()
        self.written = dict[Path, tuple[str, str]]()  # folder -> the command that wrote it last, what that printed

    def take(self, name: str, picture: Picture) -> dict[str, list[str]]:
        """Write both files of a picture; returns its entry in pictures.json."""
        folder = self.work / picture.folder
        make_images(folder, self.data)
        printed = {command: run_once(folder, command) for command in picture.kept}
        runs = " ".join(sorted(str(run.relative_to(folder)) for run in folder.glob("runs/*/") if run.name != "cache"))
        again = [command.format(runs=runs) for command in picture.again]
        printed |= self._write_pages(folder, again)
        with _server(picture, folder) as url:
            for scheme in SCHEMES:
                shot = self._shoot(picture, folder, scheme, printed, url)
                chromium.save(shot.image, self.images / f"{name}-{scheme}.webp")
        commands = [*picture.kept, *again, *(["fieldmark serve run"] if picture.photos else [])]
        commands += [] if picture.answers is None else [teach.COMMAND]
        return {"commands": commands, "texts": texts_in(shot.texts, self.sources)}

    def _write_pages(self, folder: Path, commands: list[str]) -> dict[str, str]:
        """Run the commands, but those that were the last to write into their folder; returns what each printed."""
        printed = dict[str, str]()
        for command in commands:
            output = output_of(folder, command)
            if self.written.get(output, ("", ""))[0] != command:
                self.written[output] = (command, run_again(folder, command))
            printed[command] = self.written[output][1]
        return printed

    def _shoot(self, picture: Picture, folder: Path, scheme: str, printed: dict[str, str], url: str) -> Shot:
        match picture.page:
            case "way":
                return self._shoot_way(picture, folder, scheme, printed, url)
            case "terminal":
                address = _write(folder / "terminal.html", terminal_page(dict(reversed(printed.items()))))
            case "serve" | "teach":
                address = url
            case page:
                address = (folder / page).as_uri()
        with self._opened(address, scheme, VIEWPORT) as page:
            if picture.page == "serve":
                _predict(page, [folder / photo for photo in picture.photos])
            if picture.page == "teach":
                page.locator("#frame img, #tiles img").first.wait_for()
                page.wait_for_timeout(1000)  # until the other images of a group are there
            return chromium.take(page, picture.start, picture.end, picture.limit)

    def _shoot_way(self, picture: Picture, folder: Path, scheme: str, printed: dict[str, str], url: str) -> Shot:
        """Terminal, report and page side by side, each in a window of a phone's width."""
        shown = {command: text for command, text in printed.items() if command != AGAIN}
        terminal = _write(folder / "narrow.html", terminal_page(shown, is_narrow=True))
        language = "zh" if any("--lang zh" in command for command in picture.again) else "en"
        shots = list[Shot]()
        pages = ((terminal, "main"), ((folder / REPORT).as_uri(), "header"), (url, ".card"))
        for width, (address, start) in zip(PANEL_WIDTHS, pages, strict=True):
            with self._opened(address, scheme, width, width, language) as page:
                if address == url:
                    _predict(page, [folder / photo for photo in picture.photos])
                shots.append(chromium.take(page, start, "main", PANEL_HEIGHT - 20))
        page = way_page([shot.image for shot in shots], language)
        with self._opened(_write(folder / "way.html", page), scheme, chromium.WIDTH) as page:
            whole = chromium.take(page, "main", "main", 900)
        return Shot(whole.image, [text for shot in shots for text in shot.texts])

    def _opened(
        self, address: str, scheme: str, viewport: int, width: int = chromium.WIDTH, language: str = "en"
    ) -> Any:
        return chromium.opened(self.browser, address, scheme, viewport, width, language)


def _server(picture: Picture, folder: Path) -> AbstractContextManager[str]:
    """The address of the page that the picture shows; empty if it is that of a file."""
    if picture.answers is not None:
        return teach.taught(folder, picture.answers)
    return served(folder, "run") if picture.photos else nullcontext("")


def _predict(page: Any, photos: list[Path]) -> None:
    """Give the photos to the page of `fieldmark serve`, and wait for its predictions."""
    page.locator("#choose").set_input_files(list(map(str, photos)))
    page.locator(".card[aria-busy=false]").nth(len(photos) - 1).wait_for()
    page.evaluate("() => Promise.all([...document.images].map((image) => image.decode().catch(() => 0)))")
    page.evaluate("document.activeElement.blur()")


def _write(file: Path, page: str) -> str:
    """The address of a page that is written there."""
    file.write_text(page, encoding="utf-8")
    return file.as_uri()
