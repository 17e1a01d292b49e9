"""TIFFs of every layout: read as they mean, or refused by the name of what they are."""

import io
import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fieldmark.data.image import UnreadableImageError, decode

Y, X = np.mgrid[:48, :64]
UNIT = np.stack([(X * (c + 1) * 3 + Y * 2) % 256 for c in range(4)], axis=2) / 255
GREY = np.rint(65535 * UNIT[..., 0]).astype(np.uint16)
READ = {
    "minisblack": {"u1": 24, "u2": 24, "u4": 16, "i4": 20, "f4": 20},
    "miniswhite": {"u1": 24, "u2": 16, "u4": 0, "i4": 0, "f4": 0},
    "rgb": {"u1": 24, "u2": 18, "u4": 0, "i4": 0, "f4": 0},
    "separated": {"u1": 24, "u2": 18, "u4": 0, "i4": 0, "f4": 0},
}
"""Photometric interpretation -> kind of numbers -> how many of the 32 layouts are read; the others are refused."""
WHITE = {"u1": 255, "u2": 65535, "u4": 65535, "i4": 65535, "f4": 1}


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=options.pop("order", "<"), bigtiff=options.pop("big", False)) as writer:
        writer.write(values, metadata=None, **options)
    return buffer.getvalue()


def by_hand(tags: dict[int, tuple[int, int]], data: bytes) -> bytes:
    """A little-endian TIFF of one strip: tag -> type (3 or 4) and value."""
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = {**tags, 273: (4, start), 279: (4, len(data))}
    packed = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, (kind, value) in sorted(tags.items()):
        packed += struct.pack("<HHI", tag, kind, 1)
        packed += struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
    return packed + bytes(4) + data


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content), int)


def layouts() -> Iterator[dict[str, Any]]:
    """Every way to store the same values that Pillow has code of its own for."""
    choices = {"planar": ("contig", "separate"), "compression": (None, "zlib"), "tile": (None, (16, 16))}
    choices |= {"order": ("<", ">"), "big": (False, True)}
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb", "separated"])
@pytest.mark.parametrize("kind", WHITE)
def test_a_layout_is_read_right_or_refused(kind, photometric):
    channels = {"rgb": 3, "separated": 4}.get(photometric, 1)
    unit, read = UNIT[..., :channels], 0
    wanted = {
        "minisblack": unit,
        "miniswhite": 1 - unit,
        "rgb": unit,
        "separated": (1 - UNIT[..., :3]) * (1 - UNIT[..., 3:]),
    }[photometric]
    for layout in layouts():
        values = unit * WHITE[kind] if kind == "f4" else np.rint(unit * WHITE[kind])
        values = values.astype(np.dtype(kind).newbyteorder(layout["order"]))
        planar = layout.pop("planar")
        if channels == 1:
            values = values[..., 0]
        else:
            values = np.moveaxis(values, 2, 0).copy() if planar == "separate" else values
            layout["planarconfig"] = planar
        try:
            found = pixels(tiff(values, photometric=photometric, **layout))
        except UnreadableImageError as error:
            assert str(error).startswith(("a TIFF of", "a BigTIFF")), layout
        else:
            read += 1
            assert np.abs(found - 255 * wanted).max() <= 1.01, layout
    assert read == READ[photometric][kind]


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (np.zeros((9, 9, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "5 channels"),
        (np.zeros((9, 9, 12), np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}, "12 channels"),
        (np.zeros((9, 9, 7), np.uint8), {"photometric": "rgb", "planarconfig": "contig"}, "8-bit RGB .* 7 channels"),
        (np.zeros((9, 9, 3), np.float32), {"photometric": "rgb"}, "32-bit floating-point RGB"),
        (np.zeros((9, 9), np.float64), {}, "64-bit floating-point grey"),
        (np.zeros((9, 9), np.complex64), {}, "64-bit complex grey"),
        (np.zeros((9, 9), np.int8), {}, "8-bit signed grey"),
        (np.zeros((9, 9), np.int16), {}, "16-bit signed grey"),
        (np.zeros((3, 9, 9), np.uint16), {"photometric": "rgb", "planarconfig": "separate"}, "16-bit RGB"),
        (np.zeros((9, 9, 3), np.uint16), {"photometric": "cielab"}, "16-bit Lab"),
        (np.zeros((9, 9), np.uint8), {"photometric": 32803}, "raw file"),
        (np.zeros((9, 9, 3), np.uint16), {"photometric": 34892, "planarconfig": "contig"}, "raw file"),
        (np.zeros((9, 9, 3), np.uint8), {"photometric": "rgb", "extratags": [(50706, 1, 4, b"\1\4\0\0")]}, "DNG"),
    ],
)
def test_the_reason_says_what_it_is(values, options, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(tiff(values, **options))


def test_the_preview_of_a_raw_file_is_not_read_for_it():
    """As those of Nikon and Sony: the first page is a small picture, and the mosaic lies in a directory below it."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(GREY, photometric=32803, metadata=None)
    with pytest.raises(UnreadableImageError, match=r"raw file.* export it as JPEG"):
        decode(buffer.getvalue())


def test_a_preview_before_the_picture_is_passed_over():
    buffer, rgb = io.BytesIO(), np.rint(255 * UNIT[..., :3]).astype(np.uint8)
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(rgb[::4, ::4].copy(), photometric="rgb", subfiletype=1, metadata=None)
        writer.write(rgb, photometric="rgb", metadata=None)
        writer.write(rgb[::-1].copy(), photometric="rgb", metadata=None)
    assert (pixels(buffer.getvalue()) == rgb).all()


@pytest.mark.parametrize(
    ("compression", "reason"), [(33003, "JPEG 2000"), (50002, "JPEG XL"), (34887, "LERC"), (7777, "method 7777")]
)
def test_a_compression_is_named(compression, reason):
    tags = {256: (3, 9), 257: (3, 9), 258: (3, 8), 259: (3, compression), 262: (3, 1), 277: (3, 1), 278: (3, 9)}
    with pytest.raises(UnreadableImageError, match=f"compressed as {reason}"):
        decode(by_hand(tags, bytes(81)))


def test_twelve_bits():
    values = X.astype(np.uint32) * 65
    high, low = values[:, 0::2], values[:, 1::2]
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=2).astype(np.uint8).tobytes()
    tags = {256: (3, 64), 257: (3, 48), 258: (3, 12), 259: (3, 1), 262: (3, 1), 277: (3, 1), 278: (3, 48)}
    assert np.abs(pixels(by_hand(tags, packed))[..., 0] - values * 255 / 4095).max() <= 1


def test_one_channel_has_one_plane():
    """What the planar configuration says of one channel means nothing."""
    tags = {256: (3, 64), 257: (3, 48), 258: (3, 16), 259: (3, 1), 262: (3, 1), 277: (3, 1), 278: (3, 48), 284: (3, 2)}
    assert np.abs(pixels(by_hand(tags, GREY.astype("<u2").tobytes()))[..., 0] - GREY / 257).max() <= 0.5


@pytest.mark.parametrize("scale", [1, 257], ids=["of 8 bits", "of 16 bits"])
def test_colours_of_a_palette(scale):
    ramp = np.arange(256, dtype=np.uint16)
    colors = np.stack([ramp, 255 - ramp, ramp // 2]) * scale
    indices = (X * 4).astype(np.uint8)
    found = pixels(tiff(indices, photometric="palette", colormap=colors))
    assert np.abs(found - np.stack([indices, 255 - indices, indices // 2], axis=2)).max() <= 1


def test_subsampled_ycbcr_is_not_misread():
    whole = tiff(np.asarray(Image.new("YCbCr", (16, 16), (100, 90, 180))), photometric="ycbcr")
    wanted = np.asarray(Image.new("YCbCr", (1, 1), (100, 90, 180)).convert("RGB"), int)
    assert np.abs(pixels(whole) - wanted).max() <= 1
    at = whole.index(struct.pack("<HHI", 530, 3, 2)) + 8
    with pytest.raises(UnreadableImageError, match="8-bit YCbCr"):
        decode(whole[:at] + struct.pack("<HH", 2, 2) + whole[at + 4 :])


def test_deep_rgb_keeps_its_levels():
    deep = np.rint(65535 * UNIT[..., :3]).astype(np.uint16)
    assert np.abs(pixels(tiff(deep, photometric="rgb")) - deep / 257).max() <= 1


def test_a_huge_tile_of_a_small_image_is_refused():
    tags = {256: (3, 9), 257: (3, 9), 258: (3, 8), 259: (3, 8), 262: (3, 1), 277: (3, 1)}
    tags |= {322: (4, 60_000), 323: (4, 60_000), 324: (4, 8), 325: (4, 8)}
    with pytest.raises(UnreadableImageError, match="more than the limit"):
        decode(by_hand(tags, bytes(9)))


def test_directories_in_a_circle_or_without_end():
    content = bytearray(tiff(np.zeros((9, 9), np.uint8)))
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    struct.pack_into("<I", content, at + 2 + 12 * count, at)
    assert decode(bytes(content)).size == (9, 9)
    struct.pack_into("<H", content, at, 65535)
    with pytest.raises(UnreadableImageError, match="65,535 tags"):
        decode(bytes(content))
