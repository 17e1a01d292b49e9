"""The same photos in any container give the same table and the same bytes."""

import io
import tarfile

import numpy as np
import pytest
from containers import CLASSES, CONTAINERS, CONTENT, WANTED, add, bomb, folder, table
from PIL import Image

from fieldmark.audit.audit import audit_catalog
from fieldmark.data.image import decode
from fieldmark.data.readers import read_catalog


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_photos_in_any_container(tmp_path, container):
    catalog = read_catalog(CONTAINERS[container](tmp_path))
    assert table(catalog) == WANTED
    assert catalog.classes == tuple(sorted(CLASSES)) and catalog.warnings == ()
    found = audit_catalog(catalog, shorter=32)
    assert found.unreadable == () and found.duplicates == ()


@pytest.mark.parametrize("container", CONTAINERS)
def test_bad_photos_are_named_in_any_container(tmp_path, container, monkeypatch):
    good = next(iter(CONTENT))
    bad = {"train/鳥/cut.png": CONTENT[good][:-40], "train/鳥/empty.png": b"", "train/鳥/text.png": b"no photo"}
    bad["train/鳥/bomb.png"] = bomb()
    for path, content in bad.items():
        monkeypatch.setitem(CONTENT, path, content)
    catalog = read_catalog(CONTAINERS[container](tmp_path))
    assert len(catalog.photos) == len(CONTENT)
    reasons = sorted(file.reason for file in audit_catalog(catalog, shorter=32).unreadable)
    many = "30000 x 30000 pixels, more than the limit of 89,478,485 (FIELDMARK_MAX_PIXELS sets it)"
    assert reasons == [many, "empty file", "not a photo (text?)", "truncated"]


ODD = {
    "train/鳥/cmyk.jpg": ("CMYK", "JPEG", {}),
    "train/鳥/deep.png": ("I;16", "PNG", {}),
    "train/鳥/palette.png": ("P", "PNG", {"transparency": 0}),
    "train/鳥/clear.png": ("RGBA", "PNG", {}),
    "train/鳥/webp.jpeg": ("RGB", "WEBP", {}),
    "train/鳥/two  spaces 'and' \"quotes\".gif": ("P", "GIF", {}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_odd_photos_are_the_same_in_any_container(tmp_path, container, monkeypatch):
    """CMYK, 16 bits, palettes, transparency, extensions that are wrong, names that are odd."""
    wanted = dict(CONTENT)
    for k, (path, (mode, kind, options)) in enumerate(ODD.items()):
        packed, grey = io.BytesIO(), np.random.default_rng(k).integers(0, 255, (30, 40), np.uint8)
        plain = Image.fromarray(grey)
        image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else plain.convert("RGB").convert(mode)
        image.save(packed, kind, **options)
        wanted[path] = packed.getvalue()
        monkeypatch.setitem(CONTENT, path, packed.getvalue())
    catalog = read_catalog(CONTAINERS[container](tmp_path))
    pixels = {np.asarray(decode(catalog.read_bytes(photo))).tobytes() for photo in catalog.photos}
    assert pixels == {np.asarray(decode(content)).tobytes() for content in wanted.values()}


def test_what_only_looks_like_another_format(tmp_path):
    """Class folders stay class folders, whatever lies beside them."""
    folder(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos" / "backup.tar", "w") as archive:
        add(archive, "x.json", b"{}")
    (tmp_path / "photos" / "labels.csv").write_text("id,breed\n1,dog\n")
    catalog = read_catalog(tmp_path / "photos")
    assert table(catalog) == WANTED
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path, content in CONTENT.items():
            add(archive, path, content)
        add(archive, "labels.json", b"{}")
    assert table(read_catalog(tmp_path / "set.tar")) == WANTED
