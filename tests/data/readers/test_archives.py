"""An archive that could do harm is refused in one line, and a damaged one too."""

import gzip
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from containers import add, png, tarred

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.readers import read_catalog


def evil_zip(root: Path, name: str, content: bytes = b"x", link: bool = False) -> Path:
    with zipfile.ZipFile(root / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", png(1))
        archive.writestr("b/1.png", png(2))
        info = zipfile.ZipInfo(name)
        if link:
            info.external_attr = 0o120777 << 16
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return root / "evil.zip"


def evil_tar(root: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(root / "evil.tar", "w") as archive:
        add(archive, "a/1.png", png(1))
        add(archive, "b/1.png", png(2))
        add(archive, name, b"", kind, link)
    return root / "evil.tar"


@pytest.mark.parametrize("make", [evil_zip, evil_tar])
@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/x.png", "C:/x.png", "a\\..\\..\\x.png"])
def test_paths_that_lead_out_are_refused(tmp_path, make, name):
    with pytest.raises(FieldmarkError, match=r"refused: .* leads out of it") as caught:
        read_catalog(make(tmp_path, name))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["evil.zip"], ["evil.tar"])


def test_links_and_devices_are_refused(tmp_path):
    with pytest.raises(FieldmarkError, match="is a link"):
        read_catalog(evil_zip(tmp_path, "a/2.png", b"/etc/passwd", link=True))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with pytest.raises(FieldmarkError, match="is a link"):
            read_catalog(evil_tar(tmp_path, "a/2.png", kind, "/etc/passwd"))
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE):
        with pytest.raises(FieldmarkError, match="no ordinary file"):
            read_catalog(evil_tar(tmp_path, "a/2.png", kind))


def test_archives_in_archives_are_refused(tmp_path):
    with pytest.raises(FieldmarkError, match=r"a/inner\.zip is an archive within it"):
        read_catalog(evil_zip(tmp_path, "a/inner.zip", b"PK\x03\x04"))
    with pytest.raises(FieldmarkError, match=r"inner\.tgz is an archive within it"):
        read_catalog(evil_tar(tmp_path, "inner.tgz"))


def test_encrypted_and_broken_archives_are_one_line(tmp_path):
    path = evil_zip(tmp_path, "c/1.png", png(5))
    content = bytearray(path.read_bytes())
    for at in (content.find(b"PK\x01\x02") + 8,):
        content[at] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FieldmarkError, match="encrypted"):
        read_catalog(path)
    for cut in (b"PK\x03\x04 no zip", b"\x1f\x8b no gzip", b"BZ", b"\xfd7zXZ\0"):
        (tmp_path / "cut").write_bytes(cut)
        with pytest.raises(FieldmarkError, match=r"cut .*is it whole|holds no photos") as caught:
            read_catalog(tmp_path / "cut")
        assert "\n" not in str(caught.value)


def zeros(root: Path, kind: str, gigabytes: int) -> Path:
    """So many GB of zeros, packed."""
    path, block = root / f"bomb.{kind}", bytes(1 << 24)
    blocks = gigabytes * 64
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("a/1.png", png(1))
            with archive.open("b/1.png", "w", force_zip64=True) as file:
                for _ in range(blocks):
                    file.write(block)
        return path
    head = tarfile.TarInfo("a/1.png")
    head.size = blocks << 24
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head.tobuf())
        for _ in range(blocks):
            file.write(block)
    return path


@pytest.mark.parametrize(("kind", "why"), [("zip", "unpacks to"), ("tar.gz", "unpacks to over")])
def test_bombs_are_refused(tmp_path, kind, why):
    before = os.statvfs(tmp_path).f_bavail
    with pytest.raises(FieldmarkError, match=why) as caught:
        read_catalog(zeros(tmp_path, kind, 2))
    assert "\n" not in str(caught.value)
    assert (before - os.statvfs(tmp_path).f_bavail) * os.statvfs(tmp_path).f_frsize < 2**30


def test_many_files_that_are_a_bomb_together(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k in range(11):
            archive.writestr(f"{'ab'[k % 2]}/{k}.png", bytes(100 << 20))
    with pytest.raises(FieldmarkError, match="over 100 times its size"):
        read_catalog(tmp_path / "bomb.zip")


def test_names_of_a_chinese_zip(tmp_path):
    """Windows in China writes GBK and does not say so."""
    names = {f"{label}{k}": label for k, label in enumerate(("可回收", "其他"))}
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for k, name in enumerate(names):
            archive.writestr("x" * len(name.encode("gbk")) + f"/{k}.png", png(k))
    content = (tmp_path / "photos.zip").read_bytes()
    for k, name in enumerate(names):
        raw = name.encode("gbk")
        content = content.replace(b"x" * len(raw) + b"/%d.png" % k, raw + b"/%d.png" % k)
    (tmp_path / "photos.zip").write_bytes(content)
    catalog = read_catalog(tmp_path / "photos.zip")
    assert catalog.classes == tuple(sorted(names))
    assert {catalog.read_bytes(photo) for photo in catalog.photos} == {png(0), png(1)}


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    """The directory says 100 bytes, and 64 MiB of zeros are there."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", png(1))
        archive.writestr("b/1.png", bytes(64 << 20))
    content = path.read_bytes().replace(struct.pack("<I", 64 << 20), struct.pack("<I", 100))
    path.write_bytes(content)
    catalog = read_catalog(path)
    tracemalloc.start()  # the process's own peak would be that of the tests before
    with pytest.raises(UnreadableImageError, match="damaged in the archive"):
        catalog.read_bytes(catalog.photos[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/1.png", png(1))
    with pytest.raises(FieldmarkError, match="cannot be read in small steps"):
        read_catalog(path)


def test_a_tar_that_is_damaged_in_the_middle(tmp_path):
    path = tarred("w")(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"./set/test")
    content[at] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FieldmarkError, match="is it whole"):
        read_catalog(path)
    path.write_bytes(tarred("w")(tmp_path).read_bytes() * 2)
    with pytest.raises(FieldmarkError, match="several archives in one"):
        read_catalog(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_a_tar_that_are_too_large(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a/1.png", png(1))
        add(archive, "a/2.png", bytes(1 << 20), kind)
    with pytest.raises(FieldmarkError, match="damaged header"):
        read_catalog(tmp_path / "x.tar")


def test_names_too_long_or_too_deep_are_refused(tmp_path):
    for name in ("a/" * 100 + "1.png", "a/" + "x" * 5000):
        for make in (evil_zip, evil_tar):
            with pytest.raises(FieldmarkError, match="too long, too deep"):
                read_catalog(make(tmp_path, name))


def test_western_names_of_an_old_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for k, name in enumerate(("Kxfer", "Bxcher")):
            archive.writestr(f"{name}/{k}.png", png(k))
    path = tmp_path / "photos.zip"
    path.write_bytes(path.read_bytes().replace(b"Kxfer", b"K\x84fer").replace(b"Bxcher", b"B\x81cher"))
    assert read_catalog(path).classes == ("Bücher", "Käfer")
