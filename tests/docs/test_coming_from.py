"""docs/guides/coming-from.md: every block runs, on a few small images."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pages import commands, python_blocks

import fieldmark
import fieldmark.sklearn
from fieldmark.pipeline import api

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "coming-from.md"
SMALL: dict[str, Any] = {"image_size": 64, "train_size": 64, "batch": 8, "backbone": "efficientnet_lite0"}
"""In place of what a reader types: the weights of other networks are fetched, and hours are short here."""
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.fixture
def at_hand(small_photos: Path, drawing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_photos, "PHOTOS")
    drawing(0, 100).save("photo.jpg")
    train = api.train

    def train_small(data: Any, *arguments: Any, **settings: Any) -> fieldmark.Run:
        settings = settings | SMALL | {"epochs": min(1, settings.get("epochs", 1)), "steps_per_epoch": 1}
        return train(data, *arguments, **settings, progress=False)

    def train_probe(data: Any, *arguments: Any, **settings: Any) -> fieldmark.Run:
        return train(data, *arguments, **settings | SMALL)

    monkeypatch.setitem(fieldmark._LAZY_IMPORTS, "train", ("fieldmark.pipeline.api", "train_small"))
    monkeypatch.setattr(api, "train_small", train_small, raising=False)
    monkeypatch.setattr(fieldmark.sklearn.api, "train", train_probe)
    return tmp_path


QUICK = ("timm", "Without")
PARAMETERS = [
    pytest.param(section, marks=[] if section.startswith(QUICK) else pytest.mark.slow, id=section.split()[0])
    for section in SECTIONS
]


@pytest.mark.parametrize("section", PARAMETERS)
def test_the_python_of_a_section_runs(section: str, at_hand: Path):
    blocks = python_blocks(section)
    assert blocks
    for block in blocks:
        exec(compile(block, "coming-from.md", "exec"), {})


def small_command(words: list[str]) -> list[str]:
    if words[0] != "train":
        return words
    steps = ["--epochs", "1", "--steps-per-epoch", "1", "--image-size", "64", "--train-size", "64", "--batch", "8"]
    return [*words, *steps, "--backbone", "efficientnet_lite0"]


@pytest.mark.slow
def test_its_commands_run_in_their_order(at_hand: Path, here):
    given = commands(PAGE)
    assert {words[1] for words in given} == {"train", "check", "predict", "explain", "evaluate", "export", "zoo"}
    for program, *words in given:
        assert program == "fieldmark"
        done = here(*small_command(words))
        assert done.code in ((0, 1) if words[0] in ("check", "evaluate") else (0,)), (words, done.err)
