"""The commands of the README do on a few small photos what they are there for; those of the tutorials can be given.

The slow tests follow the tutorials, too, from top to bottom.
"""

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from containers import cub, mirrored
from pages import commands
from PIL import Image
from served import running, teaching

import fieldmark
from fieldmark.cli.main import app
from fieldmark.cli.options import make_recipe
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.model_factory import build_network

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(page for page in ROOT.glob("docs/tutorials/*.md") if ".zh-CN" not in page.name)]
SMALL = ["--image-size", "64", "--train-size", "64", "--batch", "8", "--seed", "0"]
"""What is written behind a training, and wins; the rest of the command stays as a reader types it."""


def made_small(words: list[str]) -> list[str]:
    """A training of seconds: phase 1 alone, or two steps from scratch where weights would be fetched."""
    if words[0] == "bench":
        return ["75" if word == "299" else "1" if word == "32" else word for word in words]
    if words[0] not in ("train", "compare"):
        return words
    scratch = "digits-vgg11" in words or any("resnet" in word or "densenet" in word for word in words)
    learnt = ["--weights", "none", "--epochs", "1", "--steps-per-epoch", "2"] if scratch else ["--epochs", "0"]
    learnt += ["--budget", "1s"] if {"waste", "digits"} & set(words) else []  # those recipes have one of minutes
    words = [word for word in words if word != "--budget" and not re.fullmatch(r"\d+m", word)]
    words = ["2" if word == "5" else word for word in words]  # folds
    for at in [at for at, word in enumerate(words) if word == "--network"][-2:0:-1]:
        with torch.device("meta"):
            fieldmark.build(words[at + 1])
        del words[at : at + 2]  # the first and the last are compared
    return [*words, *SMALL, *learnt, *(["--seeds", "1"] if words[0] == "compare" else [])]


@pytest.fixture
def at_hand(small_photos: Path, drawing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with whatever the pages name in capitals, or by a file's name."""
    monkeypatch.chdir(tmp_path)
    for number, photo in enumerate(sorted(small_photos.rglob("*.jpg"))):
        kind = ("Monkeypox", "Others")[number % 2]
        lesion = tmp_path / "LESIONS" / kind / f"{kind[0]}{number // 4:02}_{number % 4:02}_00.jpg"
        lesion.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, lesion)
    shutil.copytree(small_photos, "PHOTOS")
    for folder in small_photos.iterdir():
        mirrored(folder, Path("OTHER_PHOTOS") / folder.name)
    shutil.copytree("OTHER_PHOTOS", "NEW_PHOTOS")
    drawing(0, 100).save("photo.jpg")
    drawing(1, 101).save("PHOTO", "JPEG")
    with zipfile.ZipFile("mnist.zip", "w") as archive:
        for side, some in (("train", range(20)), ("test", range(20, 26))):
            for number in some:
                for digit in "012":
                    drawn: Image.Image = drawing(int(digit), 100 + number).convert("L").resize((28, 28))
                    drawn.save("digit.png")
                    archive.write("digit.png", f"mnist/{side}/{digit}/{number}.png")
    return tmp_path


def several(given: Any) -> list[Any]:
    """None, one word or several of the command line, as a list."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_can_be_given(page: Path, at_hand: Path):
    """Each is parsed, its files are there or made by a command before it, its recipe and its networks can be built."""
    group, files, verbs = typer.main.get_command(app), {path.name for path in at_hand.iterdir()}, []
    for program, *words in commands(page):
        if program != "fieldmark":
            continue
        verb: Any = group.get_command(None, words[0])  # type: ignore[attr-defined]  # of a group
        given = verb.make_context(words[0], list(words[1:])).params
        verbs.append(words[0])
        for name in ("photos", "inputs", "run", "model", "apply", "data", "more"):
            for file in several(given.get(name)):
                assert Path(file).parts[0] in files, (words, file)
        if "recipe" in given:
            settings = {name: given[name] for name in Recipe.model_fields if name in given}
            recipe = make_recipe(given["recipe"], settings)
            recipe = recipe.replace(weights="none", backbone=recipe.backbone or "efficientnet_lite0")
            with torch.device("meta"):
                build_network(recipe, 3)
        for network in several(given.get("network")):
            with torch.device("meta"):
                fieldmark.build(network)
        files |= {str(given[name]) for name in ("out", "csv") if given.get(name)}
    assert {"look", "train"} <= set(verbs)


FOLLOWED = [PAGES[0], *(pytest.param(page, marks=pytest.mark.slow) for page in PAGES[1:])]


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, at_hand: Path, here):
    if page.stem == "lesions":
        shutil.rmtree("PHOTOS")
        Path("LESIONS").rename("PHOTOS")
    if page.stem == "birds":
        shutil.rmtree("PHOTOS")
        files = sorted(Path("OTHER_PHOTOS").glob("*/*.jpg"))
        cub(Path("PHOTOS"), [(k * 3 // len(files) + 1, file.read_bytes()) for k, file in enumerate(files)])
    for program, *words in commands(page):
        before = set(Path().iterdir())
        if program == "fieldmark" and words[0] == "serve":
            with running(Path(words[1])) as served:
                assert served.url.startswith("http://127.0.0.1:")
        elif program == "fieldmark" and words[0] == "teach":
            with teaching(
                Path(words[1]), Path(words[words.index("--out") + 1]), *words[2 : words.index("--out")]
            ) as served:
                assert served.url.startswith("http://127.0.0.1:")
        elif program == "fieldmark":
            done = here(*made_small(words))
            assert done.code == 0 or (done.code, words[0]) == (1, "check"), (words, done)
            assert done.out or Path(words[-1]).stat().st_size > 100, words  # predict --csv FILE
            if "--out" in words:
                assert {path.name for path in set(Path().iterdir()) - before} == {words[words.index("--out") + 1]}
        elif program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program == "open":
            assert Path(words[0]).stat().st_size > 10_000
        else:
            assert program in {"python3", "pip", "."}, program


def test_the_python_of_the_readme(at_hand: Path):
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert python.count('"5m"') == 1
    exec(compile(python.replace('"5m"', '"1s"'), "README.md", "exec"), {"__name__": "README"})
    assert Path("RUN/report.html").exists()
