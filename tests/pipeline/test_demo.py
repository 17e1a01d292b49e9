"""The solar cells are laid out once, whole, by the probability in labels.csv."""

import csv
import importlib.util
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline import demo
from fieldmark.pipeline.demo import copy_solar_cells

INSTALLED = importlib.util.find_spec("elpv_dataset")
needs_photos = pytest.mark.skipif(INSTALLED is None, reason="needs the photos of the demo: pip install elpv-dataset")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like elpv_dataset with four photos."""
    data = tmp_path / "package" / "data"
    (data / "images").mkdir(parents=True)
    rows = [("a", "1.0", "mono"), ("b", "0.3333333333333333", "poly"), ("c", "0.5", "poly"), ("d", "0.6666", "mono")]
    for name, _, _ in rows:
        (data / "images" / f"{name}.png").write_bytes(name.encode())
    text = "".join(f"images/{name}.png   {p}  {kind}\n" for name, p, kind in rows)
    (data / "labels.csv").write_text(text + "\n")
    spec = ModuleSpec("elpv_dataset", None, origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(demo, "find_spec", lambda name: spec)
    return data


LAID_OUT = {"defective/a.png": b"a", "defective/d.png": b"d", "functional/b.png": b"b", "functional/c.png": b"c"}


def test_classes_are_the_probability(few: Path, tmp_path: Path):
    assert files(copy_solar_cells(tmp_path / "new" / "cells")) == LAID_OUT


def test_a_second_call_copies_nothing(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = copy_solar_cells(tmp_path / "cells")
    monkeypatch.setattr(demo.shutil, "copyfile", lambda *_: pytest.fail("copied again"))
    assert copy_solar_cells(folder) == folder


def test_an_interrupted_call_leaves_nothing_half(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copied: list[Path] = []

    def killed(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 3:
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(demo.shutil, "copyfile", killed)
        copy_solar_cells(tmp_path / "cells")
    assert not (tmp_path / "cells").exists()
    assert files(copy_solar_cells(tmp_path / "cells")) == LAID_OUT


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(FieldmarkError, match=r"pip install 'fieldmark\[demo\]'"):
        copy_solar_cells(tmp_path / "cells")
    assert not list(tmp_path.iterdir())


@needs_photos
def test_the_real_photos(tmp_path: Path):
    folder = copy_solar_cells(tmp_path / "cells")
    assert INSTALLED is not None and INSTALLED.origin is not None
    with (Path(INSTALLED.origin).parent / "data" / "labels.csv").open() as file:
        rows = [row for row in csv.reader(file, delimiter=" ", skipinitialspace=True) if row]
    found = {photo.name: photo.parent.name for photo in folder.glob("*/*.png")}
    assert len(found) == 2624
    assert Counter(found.values()) == {"functional": 1803, "defective": 821}
    assert all((found[Path(row[0]).name] == "defective") == (float(row[1]) > 0.5) for row in rows)
