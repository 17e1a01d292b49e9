"""What is piped in -> names, or an image; nothing else is taken for either."""

import codecs
import io
import os
import sys
import zipfile
from pathlib import Path

import pytest
from addresses import PHOTO
from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.data import stdin_list
from fieldmark.data.locate import find_images
from fieldmark.data.stdin_list import STDIN, read_stdin


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch):
    """Content of stdin -> what it is read as."""

    def read(content: bytes) -> list[tuple[str, bytes | None]]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return list(read_stdin())

    return read


NAMES = ["a.jpg", "d e/f.jpg", "猫 1.jpg", "https://host/x.jpg"]
TEXT = "\n".join(NAMES)
LISTS = {
    "lines": TEXT.encode(),
    "a last line end": TEXT.encode() + b"\n",
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "blank lines": TEXT.replace("\n", "\n\n \t\n\r\n").encode(),
    "byte order mark": codecs.BOM_UTF8 + TEXT.encode(),
    "PowerShell": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16 of the other order": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "UTF-16 of the other order without a mark": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "find -print0": "\0".join([*NAMES, ""]).encode(),
    "double quotes": "\n".join(f'"{name}"' for name in NAMES).encode(),
    "single quotes": "\n".join(f"'{name}'" for name in NAMES).encode(),
    "blanks around": "\n".join(f"  {name} \t" for name in NAMES).encode(),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_any_kind_is_read(kind: str, piped):
    assert piped(LISTS[kind]) == [(name, None) for name in NAMES]


def test_a_name_that_exists_is_taken_as_it_stands(piped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names = ['"a".jpg', " b.jpg ", "'c'", "d\n2.jpg"]
    for name in names:
        (tmp_path / name).touch()
    assert piped("\n".join(names[:3]).encode()) == [(name, None) for name in names[:3]]
    assert piped("\0".join(names).encode()) == [(name, None) for name in names]
    odd = b"caf\xe9.jpg"
    assert piped(odd) == [(os.fsdecode(odd), None)]


def test_a_long_list_comes_as_it_is_written(monkeypatch: pytest.MonkeyPatch):
    """A name is there before the next is written: another program may wait for the prediction."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb", buffering=0) as stdout:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
        names = read_stdin()
        for k in range(3):
            stdout.write(f"{k}.jpg\n".encode())
            assert next(names) == (f"{k}.jpg", None)
        sys.stdin.detach()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000"])
def test_an_image_is_recognised(kind: str, piped):
    for size in ((50, 40), (300, 200)):
        file = io.BytesIO()
        Image.new("RGB", size, "red").save(file, kind)
        assert piped(file.getvalue()) == [(STDIN, file.getvalue())]


def test_names_like_the_beginning_of_an_image_are_names(piped):
    for name in ("BM1.jpg", "GIF89a.jpg", "P6", "II", "MM*.jpg", "RIFF.webp", "x"):
        assert piped(f"{name}\nb.jpg\n".encode()) == [(name, None), ("b.jpg", None)]
        assert piped(name.encode()) == [(name, None)]


def test_an_image_that_cannot_be_decoded_has_its_own_reason(piped):
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    assert piped(heic) == [(STDIN, heic)]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", PHOTO)
    return file.getvalue()


REFUSED = {
    "zip": (zipped(), "no list of names and no image"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(range(256)), "no list of names and no image"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "no list of names and no image"),
    "tar": (b"a.jpg" + bytes(1000), "no list of names and no image"),
    "zeros": (bytes(1000), "no list of names and no image"),
    "a line without end": (b"x" * 300_000, "no list of names and no image"),
    "two photos": (PHOTO + PHOTO, "several images one after another"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_neither_is_refused(kind: str, piped):
    content, message = REFUSED[kind]
    with pytest.raises(FieldmarkError, match=message):
        piped(content)


def test_a_photo_with_a_second_picture_is_one(piped):
    """As phones take them: a multi-picture JPEG."""
    photo = PHOTO[:2] + b"\xff\xe2\0\x08MPF\0\0\0" + PHOTO[2:] + PHOTO
    assert piped(photo) == [(STDIN, photo)]


def test_an_image_on_stdin_has_a_limit(piped, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdin_list, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FieldmarkError, match="stdin holds more than"):
        piped(PHOTO + bytes(10**5))


def test_without_stdin(monkeypatch: pytest.MonkeyPatch, piped):
    assert piped(b"") == piped(b"\n\n") == []
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FieldmarkError, match="stdin is closed"):
        list(read_stdin())


def test_a_dash_in_a_list_is_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"-\na.jpg\n")))
    assert [name for name, _ in find_images(["-", "-"])] == ["-", "a.jpg"]
