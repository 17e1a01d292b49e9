"""Thumbnails as data URIs, so that a page needs no other file."""

import base64
import io

from PIL import Image

from fieldmark.data.image import UnreadableImageError, decode
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
    image.thumbnail((max_size, max_size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
