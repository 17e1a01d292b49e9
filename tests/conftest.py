"""Fixtures that several test modules share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the photos {name} in {SHARED}, which are not here")
    return folder


@pytest.fixture(scope="session")
def trashnet() -> Path:
    """TrashNet: six class folders, 2,527 photos of 512 x 384 pixels."""
    return _shared("trashnet")


@pytest.fixture(scope="session")
def birds100() -> Path:
    """A hundred bird species of CUB-200-2011 in train/ and test/, 227 x 227 pixels."""
    return _shared("birds100")


def synthetic(kind: int, number: int) -> Image.Image:
    """A red disc, a green square or a blue cross, 80 to 110 pixels wide, on noise: no two alike to the audit."""
    rng = np.random.default_rng((kind, number))
    w, h = int(rng.integers(80, 111)), int(rng.integers(64, 81))
    coarse = Image.fromarray(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((w, h), Image.Resampling.BICUBIC)
    drawn, r = ImageDraw.Draw(image), int(rng.integers(14, 25))
    x, y = int(rng.integers(r, w - r)), int(rng.integers(r, h - r))
    colour = [int(c) for c in rng.integers(0, 40, 3)]
    colour[kind] = int(rng.integers(215, 256))
    box = (x - r, y - r, x + r, y + r)
    if kind == 0:
        drawn.ellipse(box, tuple(colour))
    elif kind == 1:
        drawn.rectangle(box, tuple(colour))
    else:
        drawn.line((x - r, y, x + r, y), tuple(colour), 12)
        drawn.line((x, y - r, x, y + r), tuple(colour), 12)
    noise = rng.integers(-12, 13, (h, w, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 16 synthetic photos of about 96 x 72 pixels, which a network tells apart at once."""
    folder = tmp_path_factory.mktemp("small") / "photos"
    for kind, label in enumerate(("disc", "square", "cross, blue")):
        (folder / label).mkdir(parents=True)
        for number in range(16):
            synthetic(kind, number).save(folder / label / f"{number:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def small_run(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on `small_photos`, through both phases; never write into it."""
    import fieldmark

    recipe = fieldmark.Recipe(image_size=64, train_size=64, frozen_epochs=3, epochs=1, batch=8)
    return fieldmark.train(small_photos, recipe, out=tmp_path_factory.mktemp("run") / "run").folder
