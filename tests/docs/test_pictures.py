"""The pictures of README and docs show today's pages: each text in them is still in the sources."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
PICTURES: dict[str, Any] = json.loads((IMAGES / "pictures.json").read_text("utf-8"))
SCHEMES = ("light", "dark")
TEXTS = runpy.run_path(str(ROOT / "docs" / "pictures" / "texts.py"))


@pytest.fixture(scope="module")
def sources() -> set[str]:
    return TEXTS["source_texts"]()


@pytest.mark.parametrize("name", PICTURES)
def test_each_text_of_a_picture_is_in_the_sources(name: str, sources: set[str]):
    assert PICTURES[name]["texts"], "no text was found in it"
    gone = [text for text in PICTURES[name]["texts"] if text not in sources]
    assert not gone, f"these texts have changed: run docs/pictures --work DIR {name}"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_there_in_light_and_in_dark(name: str):
    light, dark = (Image.open(IMAGES / f"{name}-{scheme}.webp").convert("L") for scheme in SCHEMES)
    assert light.size == dark.size and light.width == 1200
    assert ImageStat.Stat(light).mean[0] > 1.5 * ImageStat.Stat(dark).mean[0]


def test_every_image_is_made_by_the_script_or_shown_on_a_page():
    made = {"pictures.json"} | {f"{name}-{scheme}.webp" for name in PICTURES for scheme in SCHEMES}
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w.-]+)", page.read_text("utf-8"))}
    assert {file.name for file in IMAGES.iterdir()} <= made | shown
    assert sum(file.stat().st_size for file in IMAGES.iterdir()) < 3_000_000


def test_texts_are_found_as_templates():
    texts_in = TEXTS["texts_in"]
    sources = {"Likely label errors", "{n:,} images of {classes} classes", "{name}: {value}", "test accuracy"}
    shown = ["Likely label errors (4)", "2,624 images of\n 2 classes", "cat: 3", "test accuracy", "cell0404.png"]
    assert texts_in(shown, sources) == ["Likely label errors", "test accuracy", "{n:,} images of {classes} classes"]
