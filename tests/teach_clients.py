"""Images of three kinds, a session on them whose features are made without a network, and a client of its server."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from PIL import Image, ImageDraw

from fieldmark.data.decoded import dhash, thumbnail
from fieldmark.data.image import UnreadableImageError, decode
from fieldmark.pipeline.teaching.journal import JOURNAL_FILE
from fieldmark.pipeline.teaching.projection import Projection
from fieldmark.pipeline.teaching.sources import SessionSettings, open_session_images
from fieldmark.pipeline.teaching.store import READ, UNREADABLE

KINDS = ("disc", "lines", "bars")
SIZE = (128, 96)


def draw_images(folder: Path, n: int = 48, seed: int = 0) -> Path:
    """Discs, lines and bars on noise; the name of a file begins with its kind."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        image = Image.fromarray(rng.integers(0, 60, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
        pen, kind = ImageDraw.Draw(image), KINDS[k % 3]
        x, y = map(int, rng.integers(5, 40, 2))
        if kind == "disc":
            pen.ellipse((x, y, x + 50, y + 50), fill=(230, 2 * x, 40))
        elif kind == "lines":
            for at in range(0, SIZE[0], 12):
                pen.line((at, 0, at + x, SIZE[1]), fill=(40, 100 + 2 * y, 230), width=4)
        else:
            for at in range(6):
                pen.rectangle((x + 10 * at, y, x + 10 * at + 6, y + 40), fill=(60, 220, 2 * x))
        image.save(folder / f"{kind}-{k:02}.jpg")
    return folder


def kind_of(image: dict[str, Any]) -> str:
    """The true class of an image, by its name."""
    return Path(image["path"]).name.partition("-")[0]


def prepare(images: Path, folder: Path) -> Path:
    """A session in `folder` whose images have been read already, so that its server starts in a moment."""
    folder.mkdir(parents=True)
    SessionSettings(str(images.absolute()), None, ignore_labels=True).save(folder)
    opened = open_session_images(folder)
    pixels = dict[int, np.ndarray]()
    for row, name in enumerate(opened.images.sources):
        try:
            small = decode(opened.images.read_bytes(name), 256, squash=True)
        except UnreadableImageError:
            opened.store.status[row] = UNREADABLE
            continue
        pixels[row] = np.asarray(small.resize((16, 16)), np.float32).ravel() / 255
        opened.store.write(row, np.zeros(0, np.float32), dhash(small), thumbnail(small))
    projection = Projection.fit(np.stack(list(pixels.values())), 32)
    projection.save(folder / "features" / "projection.npz")
    for row, values in zip(pixels, projection(np.stack(list(pixels.values()))), strict=True):
        opened.store.features[row, : len(values)] = values
    assert (opened.store.status[list(pixels)] == READ).all()
    return folder


def journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal of a session."""
    return [json.loads(line) for line in (folder / JOURNAL_FILE).read_text(encoding="utf-8").splitlines()]


class Client:
    """One tab: requests carry the token and an author."""

    def __init__(self, url: str, author: str = "one", token: str = "secret") -> None:
        self.url, self.author, self.headers = url, author, {"Authorization": f"Bearer {token}"}

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, headers=self.headers, timeout=30, **more)

    def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        """The JSON of a response with this status."""
        response = self.send(method, path, **more)
        assert response.status_code == status, response.text
        return response.json()

    def state(self) -> dict[str, Any]:
        return self.ask("GET", "/state")

    def next(self, n: int = 1, after: Sequence[int] = ()) -> list[dict[str, Any]]:
        query = {"n": n, "author": self.author, "after": ",".join(map(str, after))}
        return self.ask("GET", "/next", params=query)["questions"]

    def answer(self, *answers: dict[str, Any], status: int = 200, **more: Any) -> dict[str, Any]:
        return self.ask("POST", "/answers", status, json={"author": self.author, "answers": answers, **more})

    def label(self, image: dict[str, Any], label: str | None = None, **more: Any) -> dict[str, Any]:
        """Label an image, by default with the truth."""
        return self.answer({"id": image["id"], "action": "label", "label": label or kind_of(image)}, **more)

    def undo(self, **more: Any) -> dict[str, Any]:
        return self.ask("POST", "/undo", json={"author": self.author, **more})
