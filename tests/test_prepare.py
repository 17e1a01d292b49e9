"""Audit, pack and split of a run: made once, taken up when whole, refused when the photos have changed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fieldmark import prepare as module
from fieldmark.errors import FieldmarkError
from fieldmark.photos.catalog import read
from fieldmark.photos.decode import prepare as decoded
from fieldmark.prepare import Table, prepare
from fieldmark.progress import Reporter
from fieldmark.recipe import Recipe

LOOK = {"size": 56, "crop": 0.875, "interpolation": "bilinear"}


@pytest.fixture
def photos(small_photos: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(small_photos, tmp_path / "photos")
    (copy / "disc" / "00.jpg").write_bytes(b"no photo")
    return copy


def made(photos: Path, out: Path) -> Table:
    (out / "resume").mkdir(parents=True, exist_ok=True)
    return prepare(read(photos), LOOK, Recipe(), out, Reporter())


def test_sides_labels_and_pixels_belong_together(photos: Path, tmp_path: Path):
    table = made(photos, tmp_path / "run")
    data = table.data
    together = np.concatenate([data.train, data.val, data.test])
    assert sorted(together) == list(range(47)) and len(table.test) == len(data.test)
    for k, path in zip(data.test, table.test, strict=True):
        assert table.classes[data.labels[k]] == path.split("/")[0]
        h, w = data.pack[k].shape[:2]
        top, left = (h - 56) // 2, (w - 56) // 2
        assert np.array_equal(data.pack[k][top : top + 56, left : left + 56], decoded(photos / path, LOOK))
    assert table.audit["unreadable"][0]["path"] == "disc/00.jpg"


def test_it_is_taken_up_without_reading_a_photo(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = made(photos, tmp_path / "run")
    monkeypatch.setattr(module, "audit", None)
    again = made(photos, tmp_path / "run")
    assert (again.classes, again.test, again.audit) == (first.classes, first.test, first.audit)
    for side in ("labels", "train", "val", "test"):
        assert np.array_equal(getattr(again.data, side), getattr(first.data, side))


def test_changed_photos_are_refused(photos: Path, tmp_path: Path):
    made(photos, tmp_path / "run")
    (photos / "disc" / "01.jpg").rename(photos / "disc" / "new.jpg")
    with pytest.raises(FieldmarkError, match=r"1 new, 1 gone.*another --out"):
        made(photos, tmp_path / "run")
