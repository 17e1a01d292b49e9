"""Decoding: the one function for training, evaluation, predict and serve. Does not import torch.

Every image becomes 8-bit RGB, upright (EXIF orientation), on white if it is transparent, the first frame if it is
animated. What cannot be decoded raises `UnreadableImageError`, with a reason for people.
"""

import contextlib
import io
import math
import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

MAX_FILE_BYTES = 256 * 2**20
Box = tuple[float, float, float, float]
"""x, y, width and height of an object, in pixels of the upright image."""
# Tried in this order. Left out are EPS, for which Pillow runs Ghostscript, and formats without a signature (TGA, ...),
# which would accept any file.
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
_SOS_MARKER = b"\xff\xda"
_MAX_SCANS = 20  # of a JPEG with the largest number of pixels; common ones have up to 10
# Pattern of the first bytes of a file that cannot be decoded -> the reason.
_UNREADABLE_SIGNATURES = (
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM", "truncated or damaged in its first bytes"),
    (rb"....ftyp(hei|hev|mif|msf)", "a HEIC photo, which cannot be read here: save it as JPEG"),
    (rb"....ftypavif", "an AVIF photo, which this Pillow was built without: save it as JPEG"),
    (rb"....ftypcrx |FUJIFILM", "a camera's raw file, which cannot be read here: save it as JPEG"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI", "not a photo (video?)"),
    (rb"%PDF|%!PS", "not a photo (PDF or PostScript?)"),
    (rb"PK\x03\x04", "not a photo (zip?)"),
    (rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z", "not a photo (text?)"),
)


class ByteSource(Protocol):
    """Gives the bytes of an image; `read` raises `UnreadableImageError`."""

    def read(self) -> bytes: ...


class UnreadableImageError(Exception):
    """An image that cannot be read or decoded; the text is the reason ("truncated", "empty file")."""


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
        rgb = _upright_rgb(source)
        return rgb if shorter is None else _resize(rgb, shorter, interpolation, squash)
    if isinstance(source, str | Path):
        source = read_file(Path(source))
    content = source if isinstance(source, bytes) else source.read()
    if not content:
        raise UnreadableImageError("empty file")
    _ignore_pillow_warnings()
    try:
        with Image.open(io.BytesIO(content), formats=PILLOW_FORMATS) as image:
            _check_size(image.width, image.height)
            if image.format in ("JPEG", "MPO"):
                _check_scans(content, image.width * image.height)
            full_size = image.size
            if shorter is not None:
                target_size = shorter * min(full_size) / max(1, min(box[2:])) if box else shorter
                image.draft(None, (math.ceil(target_size), math.ceil(target_size)))
            image.load()
            with contextlib.suppress(Exception):  # a damaged EXIF block does not make pixels unreadable
                ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
            if box:
                rgb = _crop_to_box(rgb, box, max(full_size) / max(rgb.size))
        return rgb if shorter is None else _resize(rgb, shorter, interpolation, squash)
    except Exception as error:  # Pillow raises exceptions of many types on damaged files
        raise _to_unreadable_error(error, content) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """An open image as upright RGB; it stays as it is."""
    _ignore_pillow_warnings()
    try:
        _check_size(image.width, image.height)
        image.load()
        upright = image
        with contextlib.suppress(Exception):  # a damaged EXIF block does not make pixels unreadable
            upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright)
    except Exception as error:
        raise _to_unreadable_error(error, b"") from error


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


def _ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings about metadata: under `-W error` they would make images unreadable.

    One lasting filter for Pillow's modules, since `warnings.catch_warnings` is not thread-safe.
    """
    warning_filter = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)
    if warning_filter not in warnings.filters:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _check_size(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UnreadableImageError(f"{width} x {height} pixels, more than the limit of {limit:,}")


def _check_scans(content: bytes, pixels: int) -> None:
    """Refuse JPEGs with too many scans: each one goes over all pixels, so that a few kilobytes can take minutes."""
    scans, limit = content.count(_SOS_MARKER), Image.MAX_IMAGE_PIXELS
    if limit is not None and scans * pixels > _MAX_SCANS * limit:
        raise UnreadableImageError(f"a JPEG that goes {scans:,} times over its {pixels:,} pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_gray_to_uint8(np.asarray(image), image.mode))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_to_uint8(gray: np.ndarray, mode: str) -> np.ndarray:
    """Scale grey values of 16 or 32 bits, (h, w), to uint8; Pillow's `convert` would clip them to white."""
    low, high = gray.min(), gray.max()
    if mode == "F":
        if not (low >= 0 and high <= 255):  # also true of NaN
            raise UnreadableImageError(
                f"floating-point values from {low:g} to {high:g}: only 0..1 and 0..255 have a known scale"
            )
        return np.rint(gray * 255 if high <= 1 else gray).astype(np.uint8)
    if low < 0 or high > 65535:
        raise UnreadableImageError(f"32-bit values from {low} to {high}: only 0..65535 has a known scale")
    return np.rint(gray / 257).astype(np.uint8)


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
        return UnreadableImageError(f"{number} pixels, more than the limit of {Image.MAX_IMAGE_PIXELS:,}")
    if isinstance(error, UnidentifiedImageError):
        signatures = (
            _UNREADABLE_SIGNATURES
            if not features.check("avif")
            else ((rb"....ftypavif", "damaged"), *_UNREADABLE_SIGNATURES)
        )
        reasons = (name for first, name in signatures if re.match(first, content[:512], re.DOTALL))
        return UnreadableImageError(next(reasons, "not a photo"))
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return UnreadableImageError("truncated")
    if isinstance(error, MemoryError):
        return UnreadableImageError("not enough memory to decode it")
    return UnreadableImageError(f"damaged: {error or type(error).__name__}")
