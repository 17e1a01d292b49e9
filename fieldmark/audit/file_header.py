"""What an image file says of itself, apart from its pixels: size, format, camera, how it was compressed."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fieldmark.data.image import UnreadableImageError, read_header

# fmt: off
_LUMINANCE_TABLE = (  # ITU-T T.81, table K.1
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
# fmt: on


class FileHeader(NamedTuple):
    """Metadata of an image file.

    Attributes:
        size: width and height, in pixels.
        mode: Pillow's mode: RGB, L, ...
        format: Pillow's name: JPEG, PNG, ...; empty if it cannot be read.
        camera: the EXIF tag "Model", or empty.
        quality: of a JPEG, 1..100, estimated from its quantisation table; else 0.
        dpi: resolution in pixels an inch, 0 without.
    """

    size: tuple[int, int]
    mode: str = "RGB"
    format: str = ""
    camera: str = ""
    quality: int = 0
    is_progressive: bool = False
    has_exif: bool = False
    has_icc: bool = False
    dpi: float = 0.0


def read_file_header(content: bytes, decoded_size: tuple[int, int]) -> FileHeader:
    """The header of a file; with the size of the decoded image if it cannot be read."""
    details: dict[str, Any] = {}

    def read_details(image: Image.Image) -> None:
        with contextlib.suppress(Exception):
            details.update(
                quality=_jpeg_quality(getattr(image, "quantization", None)),
                is_progressive=bool(image.info.get("progressive")),
                has_exif=bool(image.info.get("exif")),
                has_icc=bool(image.info.get("icc_profile")),
                dpi=_first_number(image.info.get("dpi")),
            )

    try:
        header = read_header(content, read_details)
    except UnreadableImageError:
        return FileHeader(decoded_size)
    return FileHeader(*header, **details)


def _first_number(values: Any) -> float:
    """The first of some numbers, which a file may hold in any type; 0 if there is none."""
    with contextlib.suppress(Exception):
        number = float(values[0])
        return round(number, 1) if math.isfinite(number) else 0.0
    return 0.0


def _jpeg_quality(tables: Mapping[int, Sequence[int]] | None) -> int:
    """The quality of libjpeg whose luminance table has the most similar sum; 0 without tables."""
    return 1 + int(np.abs(_LUMINANCE_SUMS - sum(tables[0])).argmin()) if tables and 0 in tables else 0


def _libjpeg_luminance_sums() -> np.ndarray:
    """The sums of libjpeg's luminance tables for the qualities 1 to 100."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((np.array(_LUMINANCE_TABLE) * scale[:, None] + 50) // 100, 1, 255).sum(1)


_LUMINANCE_SUMS = _libjpeg_luminance_sums()
