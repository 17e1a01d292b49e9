"""TIFF files: which of their layouts Pillow reads right, and the repair of some that it reads wrong.

Pillow takes its decoder from a table of layouts. Some that it takes are read wrong without a word: values of 16 bits in
separate planes, deep grey with 0 as white, signed or floating-point values in the other byte order, subsampled YCbCr,
previews of raw files. `inspect` decides from the tags of the page, before anything is decoded.
"""

import contextlib
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import COMPRESSION_INFO, MAX_SAMPLESPERPIXEL

from fieldmark.core.text import pluralize
from fieldmark.data.formats.limits import UnreadableImageError, check_pixels
from fieldmark.data.formats.signatures import RAW_ADVICE

MAX_PAGES = 16
"""Pages, and previews of the first one, that are looked at for the picture."""
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _SAMPLES, _PLANAR, _COLOR_MAP, _TILE_WIDTH, _TILE_HEIGHT = 266, 277, 284, 320, 322, 323
_SUB_DIRECTORIES, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING, _DNG_VERSION = 330, 332, 338, 339, 530, 50706
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_RAW_PHOTOMETRICS = frozenset((32803, 34892))  # a mosaic of colours, linear raw
_COLOR_CHANNELS = {_RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3, _WHITE_IS_ZERO: 1, _GREY: 1}
_PHOTOMETRIC_NAMES = {
    _WHITE_IS_ZERO: "grey",
    _GREY: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    _CMYK: "CMYK",
    _YCBCR: "YCbCr",
    _LAB: "Lab",
    4: "a mask",
    9: "ICC Lab",
    10: "ITU Lab",
    32844: "LogL",
    32845: "LogLuv",
}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_FORMAT_NAMES = {_UNSIGNED: "", _SIGNED: "signed ", _FLOAT: "floating-point "}
_COMPRESSION_NAMES = {
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    34887: "LERC",
    50002: "JPEG XL",
    52546: "JPEG XL",
    34933: "PNG",
    22610: "JPEG XR",
    34892: "lossy JPEG",
}
_ADVICE = "save it as 8-bit RGB or grey"


_TAGS = frozenset(
    (
        *(_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR),
        *(_COLOR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _SUB_DIRECTORIES, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT),
        *(_SUBSAMPLING, _DNG_VERSION),
    )
)
_NUMBER_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_DAMAGES = (struct.error, ValueError, OverflowError)
_MAX_TAGS, _MAX_VALUES = 4096, 1024  # of a directory and of a tag; a colour map has 768


class Directory(NamedTuple):
    """The tags of a page that decide how it is read.

    Attributes:
        at: where it is in the file.
        next_at: where that of the next page is, 0 for none.
        order: "<" or ">", the byte order.
        is_big: a BigTIFF.
        planar_at: where the value of the planar configuration is, 0 if there is none.
    """

    at: int
    next_at: int
    order: str
    is_big: bool
    numbers: dict[int, tuple[int, ...]]
    planar_at: int

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        return (*self.numbers.get(tag, ()), default)[0]


@dataclass(frozen=True)
class TiffLayout:
    """How the pixels of a page are stored.

    Attributes:
        page: number of the page, counted along the file.
        bits: of a sample.
        samples: number of channels, with `extra` ones that are no colours.
        photometric: what the colours mean.
        sample_format: unsigned, signed or floating point.
    """

    page: int
    bits: int
    samples: int
    extra: int
    photometric: int
    sample_format: int
    color_map: tuple[int, ...]

    def describe(self) -> str:
        kind = _PHOTOMETRIC_NAMES.get(self.photometric, f"photometric {self.photometric}")
        channels = f" in {self.samples} channels" if self.extra else ""
        return f"a TIFF of {self.bits}-bit {_FORMAT_NAMES.get(self.sample_format, 'complex ')}{kind} values{channels}"

    def refusal(self) -> str:
        """The reason if it cannot be read."""
        return f"{self.describe()}, stored in a way that cannot be read here: {_ADVICE}"


def inspect(content: bytes) -> tuple[TiffLayout | None, bytes]:
    """The layout of the page that holds the picture, and the bytes by which Pillow reads it right.

    The layout is None if the tags are damaged, which Pillow reports.

    Raises:
        UnreadableImageError: it is a camera's raw file, or Pillow would not read this layout, or read it wrong.
    """
    if content.startswith(b"MM\0+"):
        raise UnreadableImageError("a BigTIFF in big-endian byte order, which cannot be read here: save it as TIFF")
    try:
        pages = _read_pages(content)
        _refuse_raw(pages, content)
        page = _picture_page(pages)
        layout, problem = _read_layout(page, pages[page])
        check_pixels(pages[page].number(_TILE_WIDTH, 1), pages[page].number(_TILE_HEIGHT, 1))
    except _DAMAGES:
        return None, content
    if problem:
        raise UnreadableImageError(problem)
    return layout, _with_one_plane(content, pages[0]) if layout.samples == 1 and page == 0 else content


def repair(image: Image.Image, layout: TiffLayout) -> Image.Image:
    """The loaded and upright image with the values that its tags mean."""
    if layout.bits == 12 and image.mode.startswith("I;16"):  # Pillow leaves them at 0..4095
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 65535 + 2047) // 4095).astype(np.uint16))
    if layout.photometric == _WHITE_IS_ZERO and image.mode.startswith("I;16"):
        return Image.fromarray(65535 - np.asarray(image).astype(np.uint16))
    if layout.photometric == _PALETTE and image.mode in ("P", "PA") and max(layout.color_map, default=256) < 256:
        # Colours of 16 bits, in which some programs write those of 8: all would be black.
        image.palette = ImagePalette.raw("RGB;L", bytes(layout.color_map))
        image.load()
    return image


def _read_pages(content: bytes) -> list[Directory]:
    """The directories of the first pages; raises exceptions of several types."""
    order, is_big = "<" if content[:1] == b"I" else ">", content[2:3] == b"+"
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
    pages = list[Directory]()
    while at and len(pages) < MAX_PAGES and at not in [page.at for page in pages]:
        try:
            pages.append(_read_directory(content, order, is_big, at))
        except (UnreadableImageError, *_DAMAGES):
            if not pages:
                raise
            break  # damage behind the first page
        at = pages[-1].next_at
    return pages


def _read_directory(content: bytes, order: str, is_big: bool, at: int) -> Directory:
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, at)
    if count > _MAX_TAGS:
        raise UnreadableImageError(f"damaged: a TIFF of {count:,} tags")
    first, size = (at + 8, 20) if is_big else (at + 2, 12)
    pointer, value_at = ("Q", 12) if is_big else ("I", 8)
    numbers, planar_at = dict[int, tuple[int, ...]](), 0
    for entry in range(first, first + count * size, size):
        tag, kind, length = struct.unpack_from(f"{order}HH{pointer}", content, entry)
        if tag not in _TAGS or kind not in _NUMBER_TYPES or length > _MAX_VALUES:
            continue
        pattern = f"{order}{length}{_NUMBER_TYPES[kind]}"
        start = entry + value_at
        if struct.calcsize(pattern) > struct.calcsize(order + pointer):
            (start,) = struct.unpack_from(order + pointer, content, start)
        elif tag == _PLANAR and kind == 3:
            planar_at = start
        with contextlib.suppress(*_DAMAGES):  # Pillow leaves such a tag out too
            numbers[tag] = struct.unpack_from(pattern, content, start)
    (next_at,) = struct.unpack_from(order + pointer, content, first + count * size)
    return Directory(at, next_at, order, is_big, numbers, planar_at)


def _refuse_raw(pages: list[Directory], content: bytes) -> None:
    """A raw file is a TIFF whose pages are previews, and whose mosaic is in a directory below them."""
    first, directories = pages[0], [*pages]
    for at in first.numbers.get(_SUB_DIRECTORIES, ())[:MAX_PAGES]:
        with contextlib.suppress(UnreadableImageError, *_DAMAGES):  # a damaged preview leaves the first page as it is
            directories.append(_read_directory(content, first.order, first.is_big, at))
    is_dng = _DNG_VERSION in first.numbers
    if is_dng or any(page.number(_PHOTOMETRIC, -1) in _RAW_PHOTOMETRICS for page in directories):
        kind = "a DNG, a camera's raw file" if is_dng else "a camera's raw file"
        raise UnreadableImageError(f"{kind}, which is no finished picture: {RAW_ADVICE}")
    if _is_preview(first) and len(directories) > len(pages) and all(map(_is_preview, pages)):
        raise UnreadableImageError(f"a TIFF whose pages are previews of something else (raw?): {RAW_ADVICE}")


def _picture_page(pages: list[Directory]) -> int:
    """The first page that is no preview or mask of another one."""
    return next((k for k, page in enumerate(pages) if not _is_preview(page)), 0)


def _is_preview(page: Directory) -> bool:
    return bool(page.number(_SUBFILE_TYPE, 0) & 0b101)


def _read_layout(page: int, tags: Directory) -> tuple[TiffLayout, str]:
    """The layout and why Pillow cannot read it; empty if it can."""
    compression, photometric = tags.number(_COMPRESSION, 1), tags.number(_PHOTOMETRIC, _WHITE_IS_ZERO)
    if compression == 6:
        photometric = _YCBCR
    bits, formats = tags.numbers.get(_BITS, ()) or (1,), tags.numbers.get(_SAMPLE_FORMAT, ()) or (_UNSIGNED,)
    default_samples = 3 if compression == 6 else 1
    layout = TiffLayout(
        page=page,
        bits=max(bits),
        samples=tags.number(_SAMPLES, default_samples),
        extra=len(tags.numbers.get(_EXTRA_SAMPLES, ())),
        photometric=photometric,
        sample_format=max(formats) if max(formats) != 4 else _UNSIGNED,
        color_map=tags.numbers.get(_COLOR_MAP, ()) if photometric == _PALETTE else (),
    )
    name = _COMPRESSION_NAMES.get(compression, f"method {compression}")
    if compression not in COMPRESSION_INFO:
        return layout, f"a TIFF compressed as {name}, which cannot be read here: save it uncompressed or with LZW"
    if photometric not in _COLOR_CHANNELS:
        return layout, f"{layout.describe()}: {_ADVICE}"
    colors, allowed = layout.samples - layout.extra, _COLOR_CHANNELS[photometric]
    is_alpha_unnamed = photometric == _RGB and layout.samples == 4 and not layout.extra
    is_multispectral = photometric in (_WHITE_IS_ZERO, _GREY) and layout.samples > 2
    if (colors != allowed and not is_alpha_unnamed) or is_multispectral or tags.number(_INK_SET, 1) != 1:
        channels = pluralize(layout.samples, "channel")
        return layout, f"a TIFF of {channels} that are not grey, RGB or CMYK: save it as one of these"
    if len(set(bits)) > 1 or len(set(formats)) > 1 or not _is_readable(layout, tags, compression):
        return layout, layout.refusal()
    return layout, ""


def _is_readable(layout: TiffLayout, tags: Directory, compression: int) -> bool:
    """Whether Pillow reads the values of this layout, compressed in this way, as they are."""
    is_swapped, is_plain = tags.order == ">", compression == 1
    in_planes = tags.number(_PLANAR, 1) == 2 and layout.samples > 1
    bits, sample_format = layout.bits, layout.sample_format
    if layout.samples > MAX_SAMPLESPERPIXEL or (bits > 8 and tags.number(_FILL_ORDER, 1) != 1):
        return False
    match layout.photometric:
        case 0 | 1 if layout.samples == 1 and sample_format == _UNSIGNED:
            if layout.photometric == _WHITE_IS_ZERO:
                return bits in (1, 2, 4, 8) or (bits == 16 and not is_swapped)
            return bits in (1, 2, 4, 8, 16) or (bits in (12, 32) and not is_swapped)
        case 0 | 1 if layout.samples == 1:
            # 32-bit integers are what numpy makes of any; signed ones of 16 or 8 bits have no known white.
            return layout.photometric == _GREY and bits == 32 and (is_plain or not is_swapped)
        case 0 | 1:
            is_known = layout.photometric == _GREY and bits == 8 and sample_format == _UNSIGNED
            return is_known and (is_plain or not in_planes)
        case 2 | 5:
            return sample_format == _UNSIGNED and (bits == 8 or (bits == 16 and not (in_planes and is_plain)))
        case 3:
            return sample_format == _UNSIGNED and bits <= 8 and not in_planes
        case 6:
            is_whole = not is_plain or (tags.numbers.get(_SUBSAMPLING, ()) == (1, 1) and not in_planes)
            return sample_format == _UNSIGNED and bits == 8 and is_whole
        case _:
            return sample_format == _UNSIGNED and bits == 8


def _with_one_plane(content: bytes, first: Directory) -> bytes:
    """The file with the planar configuration of its first page set to 1, which means the same for one channel.

    Pillow would take the first letter of its mode for that of a plane, and misread values of more than 8 bits.
    """
    if not first.planar_at or first.number(_PLANAR, 1) == 1:
        return content
    changed = bytearray(content)
    struct.pack_into(first.order + "H", changed, first.planar_at, 1)
    return bytes(changed)
