"""Images of a run are found where they were moved, by their content and, of a run that crops, by their boxes too."""

import shutil
from pathlib import Path

import pytest

from fieldmark.core import io
from fieldmark.data.catalog import Catalog
from fieldmark.data.decoded import content_hash
from fieldmark.data.image_hashes import content_key
from fieldmark.data.moved import find_moved
from fieldmark.data.readers import read_catalog


def copy_with_boxes(photos: list[Path], folder: Path, name: str, x: int = 0) -> Catalog:
    """Copies of the images under other names, each with a box that begins at `x`, in a manifest."""
    folder.mkdir()
    rows = []
    for k, photo in enumerate(photos):
        shutil.copy(photo, folder / name.format(k))
        rows.append({"path": name.format(k), "label": photo.parent.name, "box": f"{x},{photo.stem},20,30"})
    io.write_csv(folder / "manifest.csv", rows, ["path", "label", "box"])
    return read_catalog(folder / "manifest.csv")


@pytest.mark.parametrize("has_crops", [False, True])
@pytest.mark.parametrize("name", ["{}.jpg", "photo {}.jpg"])
def test_they_are_found_with_and_without_boxes(has_crops: bool, name: str, small_photos: Path, tmp_path: Path):
    photos = sorted(small_photos.glob("*/0[0-3].jpg"))
    before = copy_with_boxes(photos, tmp_path / "before", "{}.jpg")
    content = {
        photo.path: content_key(content_hash(before.read_bytes(photo), photo.box if has_crops else None))
        for photo in before.photos
    }
    assert all(photo.box for photo in before.photos) and len(set(content.values())) == 12
    moved = copy_with_boxes(photos[2:], tmp_path / "moved", name)
    expected = {f"{k + 2}.jpg": name.format(k) for k in range(10)}  # also where a name is now that of another image
    assert find_moved(moved, content) == expected
    other_boxes = copy_with_boxes(photos[2:], tmp_path / "other", name, x=1)
    assert find_moved(other_boxes, content) == ({} if has_crops else expected), "another crop is another image"
