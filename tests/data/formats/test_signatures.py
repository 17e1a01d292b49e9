"""The first bytes of a file say what it is, whatever its name."""

import io
from pathlib import Path

import numpy as np
import pytest
from containers import png
from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.formats.signatures import SIGNATURE_BYTES, looks_like_image
from fieldmark.data.image import UnreadableImageError, decode
from fieldmark.data.locate import find_images
from fieldmark.data.readers import read_catalog


def encoded(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30), 99 if mode == "L" else (200, 99, 9)).save(buffer, kind)
    return buffer.getvalue()


READ = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
RAW = {
    "CR2": b"II*\0\x10\0\0\0CR\2\0",
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "RAF": b"FUJIFILMCCD-RAW 0201",
    "RW2": b"IIU\0\x18\0\0\0",
    "ORF": b"IIRO\x08\0\0\0",
    "CRW": b"II\x1a\0\0\0HEAPCCDR",
    "MRW": b"\0MRM\0\0\0\0",
    "X3F": b"FOVb\0\0\2\0",
}
OTHERS = (
    b"",
    b"hello",
    b"BMW is a maker of cars, and this is a text",
    b"P12 is not a picture",
    b"P1 is not a picture",
    b"%PDF-1.7",
    b"PK\x03\x04",
    b"<html>",
    b"\0\0\0\x18ftypmp42\0\0\0\0isom",
    b"\x1f\x8b\x08",
    b"path,label\n",
    bytes(200),
)


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_looks_like_an_image(kind):
    assert looks_like_image(encoded(kind)[:SIGNATURE_BYTES])


@pytest.mark.parametrize(
    "first",
    [*RAW.values(), bytes(128) + b"DICM", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", b"\xff\x0a\x7f"],
)
def test_what_is_only_named_looks_like_one_too(first):
    assert looks_like_image(first[:SIGNATURE_BYTES])


@pytest.mark.parametrize("first", OTHERS)
def test_other_files_do_not(first):
    assert not looks_like_image(first[:SIGNATURE_BYTES])


@pytest.mark.parametrize("kind", RAW)
def test_a_raw_file_is_named(kind):
    with pytest.raises(UnreadableImageError, match=r"camera's raw file.* export it as JPEG"):
        decode(RAW[kind] + bytes(500))


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_photos_without_an_extension_are_found_by_their_content(tmp_path):
    files = {f"{label}/{k}": png(k) for label in ("cat", "dog") for k in range(3)}
    files |= {"cat/web.txt": encoded("JPEG"), "dog/photo.jpg_large": encoded("WEBP"), "dog/notes": b"these are dogs"}
    catalog = read_catalog(write(tmp_path, files))
    assert {photo.path for photo in catalog.photos} == set(files) - {"dog/notes"}
    assert len(catalog.warnings) == 1 and "notes" in catalog.warnings[0]
    assert all(decode(catalog.read_bytes(photo)).mode == "RGB" for photo in catalog.photos)


def test_a_folder_without_extensions_is_predicted(tmp_path):
    root = write(
        tmp_path, {"a": png(1), "b.jpg_large": png(2), "notes": b"text", "more/c.png": png(3), "more/d": png(4)}
    )
    found = [name for name, _ in find_images([root])]
    assert found == [str(root / name) for name in ("a", "b.jpg_large", "more/c.png")]


def test_where_some_have_an_extension_the_others_are_left_out(tmp_path):
    files = {"cat/1.png": png(1), "cat/2": png(2), "dog/1": png(3)}
    catalog = read_catalog(write(tmp_path, files))
    assert {photo.path for photo in catalog.photos} == {"cat/1.png", "dog/1"}
    assert any("left out: 2" in warning for warning in catalog.warnings)


def test_folders_of_other_files_are_still_no_classes(tmp_path, monkeypatch):
    root = write(tmp_path, {f"{label}/{k}.txt": b"text" for label in ("cat", "dog") for k in range(200)})
    opened = list[Path]()
    original = Path.open

    def counting(self: Path, *args, **options):
        opened.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "open", counting)
    with pytest.raises(FieldmarkError, match="without photos"):
        read_catalog(root)
    assert len(opened) <= 2 * 64


@pytest.mark.parametrize("extension", [".dcm", ".DICOM", ".HEIC", ".hif", ".avif", ".jpx"])
def test_extensions_of_photos(tmp_path, extension):
    files = {f"{label}/1{extension}": np.random.default_rng(k).bytes(99) for k, label in enumerate(("cat", "dog"))}
    assert {photo.path for photo in read_catalog(write(tmp_path, files)).photos} == set(files)
