"""Decoding: the one function for training, evaluation, predict and serve. Does not import torch.

Every image becomes 8-bit RGB in sRGB, upright (EXIF orientation), on white if it is transparent; of several in a file
the first one (HEIC: the primary one, DICOM: the middle one). What cannot be decoded raises `UnreadableImageError`, with
a reason for people. `formats` has what is particular to a format, and the limits.
"""

import contextlib
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fieldmark.data.formats import signatures
from fieldmark.data.formats.color import Conversion, to_rgb
from fieldmark.data.formats.dicom import read_dicom, read_dicom_header
from fieldmark.data.formats.heic import read_heic, read_heic_header
from fieldmark.data.formats.limits import UnreadableImageError, check_pixels, ignore_library_warnings, too_many_pixels
from fieldmark.data.formats.pillow import load_with_pillow, open_with_pillow

MAX_FILE_BYTES = 256 * 2**20
Box = tuple[float, float, float, float]
"""x, y, width and height of an object, in pixels of the upright image."""
_EXIF_MODEL = 0x0110  # the EXIF tag "Model"
_EXIF_FORMATS = frozenset(("JPEG", "MPO", "TIFF", "WEBP"))


class ByteSource(Protocol):
    """Gives the bytes of an image; `read` raises `UnreadableImageError`."""

    def read(self) -> bytes: ...


class ImageHeader(NamedTuple):
    """What the header of an image file says.

    Attributes:
        size: width and height in the file, in pixels.
        mode: Pillow's mode: RGB, L, ...
        camera: the EXIF tag "Model", or that of a DICOM device; empty if there is none.
    """

    size: tuple[int, int]
    mode: str
    format: str
    camera: str


def decode(
    source: str | Path | bytes | ByteSource | Image.Image,
    shorter: int | None = None,
    interpolation: str = "bicubic",
    box: Box | None = None,
    *,
    squash: bool = False,
) -> Image.Image:
    """Decode an image to upright RGB. For one version of Pillow, equal bytes give bit-equal pixels.

    Args:
        source: a path, the bytes of a file, or what reads them.
        shorter: resize the shorter side to this number of pixels; of an image longer than 2:1 only the middle is kept,
            so that memory is bounded. A JPEG is decoded at the smallest of the scales 1/8, 1/4, 1/2 and 1 that is
            large enough.
        interpolation: `bicubic` or `bilinear`.
        box: crop to this box before resizing.
        squash: resize the whole image to shorter x shorter pixels, whatever its aspect ratio.

    Raises:
        UnreadableImageError: the image cannot be read or decoded, and no other exception.
    """
    if isinstance(source, Image.Image):
        rgb, to_srgb = _upright_rgb(source)
        rgb = rgb if shorter is None else _resize(rgb, shorter, interpolation, squash)
        return to_srgb(rgb) if to_srgb else rgb
    if isinstance(source, str | Path):
        source = read_file(Path(source))
    content = source if isinstance(source, bytes) else source.read()
    if not content:
        raise UnreadableImageError("empty file")
    ignore_library_warnings()
    try:
        image, full_size = _load(content, shorter, min(box[2:]) if box else None)
        rgb, to_srgb = to_rgb(image)
        if box:
            rgb = _crop_to_box(rgb, box, max(full_size) / max(rgb.size))
        rgb = rgb if shorter is None else _resize(rgb, shorter, interpolation, squash)
        return to_srgb(rgb) if to_srgb else rgb
    except Exception as error:  # Pillow raises exceptions of many types on damaged files
        raise _to_unreadable_error(error, content) from error


def _load(content: bytes, shorter: int | None, box_side: float | None) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image, which may be scaled down to what is needed, and its size in the file."""
    if signatures.is_dicom(content) or signatures.is_heic(content):
        image = read_dicom(content) if signatures.is_dicom(content) else read_heic(content)
        return image, image.size
    return load_with_pillow(content, shorter, box_side)


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, Conversion | None]:
    """`to_rgb` of an open image, upright; it stays as it is."""
    ignore_library_warnings()
    try:
        check_pixels(image.width, image.height)
        image.load()
        upright = image
        with contextlib.suppress(Exception):  # a damaged EXIF block does not make pixels unreadable
            upright = ImageOps.exif_transpose(image)
        return to_rgb(upright)
    except Exception as error:
        raise _to_unreadable_error(error, b"") from error


def read_header(content: bytes, visit: Callable[[Image.Image], None] | None = None) -> ImageHeader:
    """The header of an image file; decodes no pixels.

    Args:
        content: the bytes of the file.
        visit: is called with the image that Pillow has opened, unless the format is another library's.

    Raises:
        UnreadableImageError: the file cannot be read, and no other exception.
    """
    ignore_library_warnings()
    try:
        if signatures.is_dicom(content):
            size, mode, model = read_dicom_header(content)
            return ImageHeader(size, mode, "DICOM", model)
        exif = Image.Exif()
        if signatures.is_heic(content):
            size, mode, block = read_heic_header(content)
            with contextlib.suppress(Exception):  # damaged EXIF
                exif.load(block)
            return ImageHeader(size, mode, "HEIC", _camera(exif))
        with open_with_pillow(content) as image:
            if image.format in _EXIF_FORMATS:
                with contextlib.suppress(Exception):
                    exif = image.getexif()
            if visit is not None:
                visit(image)
            return ImageHeader(image.size, image.mode, image.format or "", _camera(exif))
    except Exception as error:
        raise _to_unreadable_error(error, content) from error


def _camera(exif: Image.Exif) -> str:
    return str(exif.get(_EXIF_MODEL, "")).strip(" \0")


def read_file(path: Path) -> bytes:
    """The bytes of a file; raises `UnreadableImageError` with the system's reason."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would block forever
            raise UnreadableImageError("not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise UnreadableImageError(
                f"{status.st_size / 2**20:,.0f} MiB, more than the limit of {MAX_FILE_BYTES >> 20} MiB"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except PermissionError:
        raise UnreadableImageError("may not be read: permission denied") from None
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The central `size` x `size` pixels, uint8 (size, size, 3); the image must be at least that large."""
    return center_crop_array(np.asarray(image), size)


def center_crop_array(pixels: np.ndarray, size: int) -> np.ndarray:
    """`center_crop` of pixels, uint8 (h, w, 3); a copy."""
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"an image of {width} x {height} pixels has no centre of {size} x {size}")
    top, left = (height - size) // 2, (width - size) // 2
    return np.array(pixels[top : top + size, left : left + size])


def preprocess(
    source: str | Path | bytes | ByteSource | Image.Image, preprocessing: Mapping[str, Any], box: Box | None = None
) -> np.ndarray:
    """Decode an image to the network's input size, uint8 (size, size, 3), not normalised.

    Raises `UnreadableImageError`.

    Args:
        preprocessing: `size` in pixels, `crop` (part of the shorter side that is kept, 0.875 for most published
            weights), `interpolation`, and `fit`: `squash` for the whole image, else its central square.
        box: crop to this box first.
    """
    size, interpolation = preprocessing["size"], preprocessing.get("interpolation", "bicubic")
    shorter, squash = round(size / preprocessing["crop"]), preprocessing.get("fit") == "squash"
    return center_crop(decode(source, shorter, interpolation, box, squash=squash), size)


def _crop_to_box(image: Image.Image, box: Box, scale: float) -> Image.Image:
    """The part in the box, which is given in pixels of the image before it was scaled down by `scale`."""
    x, y, w, h = (side / scale for side in box)
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(image.width, round(x + w)), min(image.height, round(y + h))
    if left >= right or top >= bottom:
        raise UnreadableImageError("its box lies outside the image")
    return image.crop((left, top, right, bottom))


def _resize(image: Image.Image, shorter: int, interpolation: str, squash: bool) -> Image.Image:
    if squash:
        return image.resize((shorter, shorter), Image.Resampling[interpolation.upper()])
    side = min(image.size)
    width, height = min(image.width, 2 * side), min(image.height, 2 * side)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    size = (round(width * shorter / side), round(height * shorter / side))
    return image.resize(size, Image.Resampling[interpolation.upper()], box=(left, top, left + width, top + height))


def _to_unreadable_error(error: Exception, content: bytes) -> UnreadableImageError:
    """Pillow's error with a reason for people."""
    if isinstance(error, UnreadableImageError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\d+", str(error))
        number = f"{int(pixels[0]):,}" if pixels else "too many"
        return UnreadableImageError(too_many_pixels(f"{number} pixels", Image.MAX_IMAGE_PIXELS or 0))
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImageError(signatures.describe_unidentified(content))
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return UnreadableImageError("truncated")
    if isinstance(error, MemoryError):
        return UnreadableImageError("not enough memory to decode it")
    return UnreadableImageError(f"damaged: {error or type(error).__name__}")
