"""What a file may cost: large photos of phones are read, tiny files that claim huge pictures are refused at once."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.data.formats import limits
from fieldmark.data.image import UnreadableImageError, decode

SIDE = 60_000
CLAIM = struct.pack(">II", SIDE, SIDE)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(width: int, height: int, marker: int = 0xC0, components: int = 3, in_scan: int = 3, bits: int = 8) -> bytes:
    """The header of a JPEG of this size, and a few bytes of its first scan."""
    frame = struct.pack(">BHHB", bits, height, width, components)
    frame += b"".join(bytes([k + 1, 0x11, 0]) for k in range(components))
    scan = bytes([in_scan]) + b"".join(bytes([k + 1, 0]) for k in range(in_scan)) + b"\0\x3f\0"
    segments = ((0xDB, b"\0" + bytes([1] * 64)), (marker, frame), (0xDA, scan))
    packed = b"".join(bytes([255, kind]) + struct.pack(">H", 2 + len(body)) + body for kind, body in segments)
    return b"\xff\xd8" + packed + bytes(99)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(99_999))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def claiming(kind: str) -> bytes:
    """A small image whose header claims to be huge."""
    content = encoded(Image.new("RGB", (48, 32)), kind)
    if kind == "GIF":
        return content[:6] + struct.pack("<HH", SIDE, SIDE) + content[10:]
    if kind == "BMP":
        return content[:18] + struct.pack("<ii", SIDE, SIDE) + content[26:]
    if kind == "PPM":
        return content.replace(b"48 32", b"60000 60000")
    if kind == "WEBP":
        canvas = (SIDE - 1).to_bytes(3, "little") * 2
        chunks = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + content[12:]
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    if kind == "TIFF":
        for tag, value in ((256, 48), (257, 32)):
            old = struct.pack("<HHII", tag, 4, 1, value)
            content = content.replace(old, struct.pack("<HHII", tag, 4, 1, SIDE))
            old = struct.pack("<HHIHH", tag, 3, 1, value, 0)
            content = content.replace(old, struct.pack("<HHII", tag, 4, 1, SIDE))
        return content
    at = content.index({"AVIF": b"ispe\0\0\0\0", "JPEG2000": b"ihdr"}[kind]) + (8 if kind == "AVIF" else 4)
    content = content[:at] + CLAIM + content[at + 8 :]
    if kind == "JPEG2000":
        at = content.index(b"\xff\x4f\xff\x51") + 8  # SIZ: the size of the grid, then where it and its tiles begin
        content = content[:at] + CLAIM + bytes(8) + CLAIM + content[at + 24 :]
    return content


BOMBS = {kind: claiming(kind) for kind in ("GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")}
BOMBS |= {
    "PNG": png(SIDE, SIDE),
    "JPEG": jpeg(SIDE, SIDE),
    "JPEG, truncated": jpeg(40_000, 40_000),
    "JPEG, progressive": jpeg(40_000, 40_000, 0xC2),
    "JPEG, one component a scan": jpeg(40_000, 40_000, in_scan=1),
    "JPEG, scans": jpeg(9_000, 9_000, 0xC2) + b"\xff\xda\0\x02" * 3_000,
    "JPEG, fill bytes": b"\xff\xd8\xff" + b"\xff" * (4 << 20),
    "JPEG, junk": b"\xff\xd8\xff\xe0\0\2" + bytes(4 << 20),
    "JPEG, segments": b"\xff\xd8" + b"\xff\xe0\0\2" * (1 << 20),
}
CHILD = """
import sys, time
from pathlib import Path
from PIL import Image
from fieldmark.data.image import UnreadableImageError, decode
Image.init()
def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])
for name in sys.argv[1:]:
    content = Path(name).read_bytes()
    before, began, reason = peak(), time.process_time(), ''
    for shorter in (256, None):
        try: decode(content, shorter)
        except UnreadableImageError as error: reason = str(error)
    print(time.process_time() - began, (peak() - before) >> 10, reason, sep='|')
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_bomb_of_any_format_is_refused_soon_and_in_little_memory(tmp_path: Path):
    files = []
    for k, content in enumerate(BOMBS.values()):
        files.append(tmp_path / f"{k}.bin")
        files[-1].write_bytes(content)
    command = [sys.executable, "-W", "error", "-c", CHILD, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    for name, line in zip(BOMBS, lines, strict=True):
        seconds, mib, reason = line.split("|")
        assert reason, name
        assert float(seconds) < 0.5, (name, seconds)
        assert int(mib) < 250, (name, mib)


@pytest.mark.parametrize("name", sorted(set(BOMBS) - {"JPEG, truncated"}))
def test_the_reason_of_a_bomb(name):
    with pytest.raises(UnreadableImageError, match=r"more than the limit of|times over its|damaged"):
        decode(BOMBS[name], 64)


def test_a_large_photo_is_read_at_a_smaller_scale():
    """12,000 x 9,000 pixels, more than may be held at a time."""
    small = encoded(Image.new("L", (2_000, 1_500), 200), "JPEG", quality=30)
    whole = Image.new("L", (12_000, 9_000), 200)
    content = encoded(whole, "JPEG", quality=30)
    del whole
    assert np.abs(np.asarray(decode(content, 64), int) - 200).max() <= 2
    assert decode(content, 64, box=(6_000.0, 4_000.0, 900.0, 900.0)).size == (64, 64)
    for shorter in (None, 9_000):
        with pytest.raises(UnreadableImageError, match=r"12000 x 9000 pixels.*FIELDMARK_MAX_PIXELS"):
            decode(content, shorter)
    assert decode(small).size == (2_000, 1_500)


def test_a_progressive_jpeg_may_have_twice_the_pixels_that_are_held(monkeypatch):
    content = encoded(Image.new("RGB", (1_200, 900), (90, 150, 30)), "JPEG", progressive=True)
    for limit, is_read in ((600_000, True), (500_000, False)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if is_read:
            assert decode(content, 64).size == (85, 64)
        else:
            with pytest.raises(UnreadableImageError, match="1200 x 900 pixels, more than the limit of 1,000,000"):
                decode(content, 64)


def test_the_environment_sets_another_limit(monkeypatch):
    content, before = png(300, 200), Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", before)  # restored afterwards
    monkeypatch.setenv("FIELDMARK_MAX_PIXELS", "50_000")
    with pytest.raises(UnreadableImageError, match="300 x 200 pixels, more than the limit of 50,000"):
        decode(content)
    monkeypatch.setenv("FIELDMARK_MAX_PIXELS", "300_000_000")
    assert limits.max_pixels() == Image.MAX_IMAGE_PIXELS == 300_000_000
    for wrong in ("many", "-1", "0", "1e8", "²"):
        monkeypatch.setenv("FIELDMARK_MAX_PIXELS", wrong)
        with pytest.raises(UnreadableImageError, match=r"FIELDMARK_MAX_PIXELS is .* but is a number of pixels"):
            decode(content)


@pytest.mark.parametrize("variable", [None, "300_000_000"])
def test_another_limit_ends_with_its_block(monkeypatch, variable: str | None):
    before = 400 * 300
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", before)
    if variable:
        monkeypatch.setenv("FIELDMARK_MAX_PIXELS", variable)
    refused = pytest.raises(UnreadableImageError, match="300 x 200 pixels, more than the limit of 50,000")
    with refused, limits.max_pixels_set_to(50_000):
        decode(png(300, 200))
    assert (os.environ.get("FIELDMARK_MAX_PIXELS"), Image.MAX_IMAGE_PIXELS) == (variable, before)
    assert limits.max_pixels() == (300_000_000 if variable else before)


def test_what_follows_a_photo_does_not_count_as_its_scans(monkeypatch):
    """The film behind a phone's photo holds any bytes, also those of a JPEG's markers."""
    photo = encoded(Image.effect_noise((400, 300), 80), "JPEG", progressive=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 300)
    wanted = decode(photo, 64).tobytes()
    assert decode(photo + b"\xff\xda\0\x0c" * 5_000, 64).tobytes() == wanted
    plain = encoded(Image.effect_noise((400, 300), 80), "JPEG")
    assert decode(plain + plain[plain.index(b"\xff\xda") :] * 50, 64).size == (85, 64)


def test_twelve_bits_are_named():
    with pytest.raises(UnreadableImageError, match="a JPEG of 12 bits"):
        decode(jpeg(8, 8, 0xC1, bits=12))
