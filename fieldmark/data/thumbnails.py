"""Thumbnails as data URIs, so that a page needs no other file."""

import base64
import io

from PIL import Image

from fieldmark.data.image import UnreadableImageError, decode, read_header
from fieldmark.data.readers.files import FileTree

PAGE_THUMBNAIL_SIZE = 240
"""Longer side in pixels: sharp at the 160 that a page shows."""


def thumbnail_uri(files: FileTree | None, path: str) -> str | None:
    """The data URI of an image's thumbnail; None if the image cannot be read."""
    try:
        image = decode(files.read_bytes(path), shorter=160) if files else None
    except (UnreadableImageError, OSError):
        image = None
    return None if image is None else to_data_uri(image)


def to_data_uri(image: Image.Image, max_size: int = PAGE_THUMBNAIL_SIZE) -> str:
    """The image as a JPEG in a data URI, its longer side at most `max_size` pixels."""
    return f"data:image/jpeg;base64,{base64.b64encode(_encode(image, max_size, 80)).decode()}"


def to_jpeg(content: bytes, max_size: int) -> bytes:
    """The bytes of an image's file -> those of a JPEG, its longer side at most `max_size` pixels.

    Raises:
        UnreadableImageError: the image cannot be decoded.
    """
    width, height = read_header(content).size
    shorter, longer = sorted((max(width, 1), max(height, 1)))
    # Larger ones are decoded at a smaller scale. Of long ones `decode` would keep the middle alone.
    is_large = longer > 2 * max_size and longer <= 2 * shorter
    return _encode(decode(content, round(max_size * shorter / longer) if is_large else None), max_size, 85)


def _encode(image: Image.Image, max_size: int, quality: int) -> bytes:
    image.thumbnail((max_size, max_size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
