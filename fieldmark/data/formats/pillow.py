"""Pillow's decoders, without its check of the size at opening: a JPEG decoded at a smaller scale may be larger."""

import contextlib
import io
import math
import struct

from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError

from fieldmark.data.formats import jpeg, limits, signatures, tiff
from fieldmark.data.formats.limits import UnreadableImageError

# Tried in this order. Left out are EPS, for which Pillow runs Ghostscript, and formats without a signature (TGA, ...),
# which would accept any file.
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")


def open_with_pillow(content: bytes) -> ImageFile.ImageFile:
    """The opened image, of which only the header is read; the first one of several.

    Raises:
        UnidentifiedImageError: it is in none of `PILLOW_FORMATS`, or damaged in its header. Others of Pillow's too.
    """
    if signatures.is_jpeg(content):
        jpeg.check_header(content)
    for name in PILLOW_FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        if name == "JPEG":  # not its factory, which looks for the further images of an MPO
            factory = JpegImagePlugin.JpegImageFile
        try:
            accepted = not accept or accept(content[:16])
            if accepted and not isinstance(accepted, str):  # a text says what Pillow was built without
                return factory(io.BytesIO(content), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise UnidentifiedImageError("cannot identify image file")


def load_with_pillow(
    content: bytes, shorter: int | None, box_side: float | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The image, upright, and its size in the file.

    Args:
        content: the bytes of the file.
        shorter: the pixels that are needed of the shorter side: a JPEG is decoded no larger than that needs.
        box_side: they are needed of a part of the image, whose shorter side has so many pixels of the file.

    Raises:
        UnreadableImageError: it is too large, or of a kind that Pillow does not read right. Pillow's errors too.
    """
    if signatures.is_raw(content):
        raise UnreadableImageError(signatures.describe_unidentified(content))
    layout, content = tiff.inspect(content) if signatures.is_tiff(content) else (None, content)
    with _open_page(content, layout) as image:
        full_size = image.size
        if image.format == "JPEG":
            jpeg.check_cost(content, *full_size, is_buffered=jpeg.check_header(content))
            if shorter is not None:
                needed = math.ceil(shorter * min(full_size) / max(1, box_side) if box_side else shorter)
                image.draft(None, (needed, needed))
        limits.check_pixels(*image.size)
        image.load()
        with contextlib.suppress(Exception):  # a damaged EXIF block does not make pixels unreadable
            ImageOps.exif_transpose(image, in_place=True)
    return (tiff.repair(image, layout) if layout else image), full_size


def _open_page(content: bytes, layout: tiff.TiffLayout | None) -> ImageFile.ImageFile:
    """The opened image, at the page of the layout."""
    try:
        image = open_with_pillow(content)
        if layout and layout.page:
            image.seek(layout.page)
    except (UnidentifiedImageError, SyntaxError):
        if layout is None:
            raise
        raise UnreadableImageError(layout.refusal()) from None
    return image
