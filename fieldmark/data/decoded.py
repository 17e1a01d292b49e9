"""Decoded images with the hash and the thumbnail by which near-duplicates are found."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fieldmark.data.image import Box

THUMBNAIL_SIDE = 16
"""Width and height of a thumbnail, in pixels."""


@dataclass(frozen=True)
class DecodedImage:
    """An image that could be decoded.

    Attributes:
        sha256: `content_hash` of its file, in hexadecimal.
        pixels: uint8 (h, w, 3).
        dhash: `dhash` of the pixels.
        thumbnail: uint8 (16, 16, 3).
    """

    sha256: str
    pixels: np.ndarray
    dhash: tuple[int, int]
    thumbnail: np.ndarray

    @classmethod
    def from_image(cls, image: Image.Image, sha256: str) -> "DecodedImage":
        """Hash and thumbnail of an RGB image."""
        return cls(sha256, np.asarray(image), dhash(image), thumbnail(image))


def content_hash(content: bytes, box: Box | None = None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; with a box, of the bytes and the box."""
    digest = hashlib.sha256(content)
    if box:
        digest.update(repr(box).encode())
    return digest.hexdigest()


def dhash(image: Image.Image) -> tuple[int, int]:
    """The 64-bit difference hash of an RGB image, and that of its mirror image.

    A bit is set where a pixel of the grey 9 x 8 thumbnail is darker than its right neighbour (N. Krawetz, "Kind of
    Like That", 2013).
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    plain, mirrored = (np.packbits(view[:, 1:] > view[:, :-1]).tobytes() for view in (grey, grey[:, ::-1]))
    return int.from_bytes(plain, "big"), int.from_bytes(mirrored, "big")


def thumbnail(image: Image.Image) -> np.ndarray:
    """The mean colours of a 16 x 16 grid over an RGB image, uint8 (16, 16, 3)."""
    return np.asarray(image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX))
