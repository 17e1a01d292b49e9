"""A photo -> a small JPEG inside the page itself, so that a page needs no other file."""

import base64
import io

from PIL import Image

from fieldmark.data.image import Unreadable, decode
from fieldmark.data.readers.files import Files

TILE = 240  # longest side in pixels: sharp at the 160 that a page shows


def tile(files: Files | None, path: str) -> str | None:
    """A data URI; None where the photo cannot be had."""
    try:
        picture = decode(files.contents(path), shorter=160) if files else None
    except (Unreadable, OSError):
        picture = None
    return None if picture is None else uri(picture)


def uri(picture: Image.Image, side: int = TILE) -> str:
    """The picture as a JPEG in a data URI, its longer side at most so many pixels."""
    picture.thumbnail((side, side))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
