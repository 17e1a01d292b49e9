"""Limits of decoding: how many pixels are held in memory, and how often a JPEG may go over them.

A file of a few kilobytes can claim a picture of gigabytes. What it claims is in its header, so that it is refused
before its pixels are decoded:

- At most 89,478,485 pixels are held at a time (Pillow's own limit: a quarter of a GiB of 24-bit pixels). A pixel takes
  up to 16 bytes while it is turned upright, converted and laid on white: at most 1.4 GB for each thread that decodes.
- A JPEG is decoded at a smaller scale where that is enough, and then only the pixels of that scale count: 108 or 200
  megapixels of a phone are 2 or 3. One whose coefficients have to be held as a whole (progressive) may have twice as
  many pixels as may be held: they take up to 8 bytes for each.
- The scans of a JPEG, each of which goes over all of its pixels, are at most 20 times that limit in total (1.8 billion
  pixels, some seconds): common ones have one, progressive ones up to 10.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

MAX_PIXELS_VARIABLE = "FIELDMARK_MAX_PIXELS"
"""The environment variable with another number of pixels."""
MAX_SCANS = 20
"""Scans of a JPEG with the largest number of pixels."""


class UnreadableImageError(Exception):
    """An image that cannot be read or decoded; the text is the reason ("truncated", "empty file")."""


def max_pixels() -> int | None:
    """Number of pixels that may be held: `$FIELDMARK_MAX_PIXELS`, or Pillow's `Image.MAX_IMAGE_PIXELS`.

    The variable sets Pillow's limit too, since some of its decoders look there.

    Raises:
        UnreadableImageError: the variable is no number of pixels.
    """
    value = os.environ.get(MAX_PIXELS_VARIABLE)
    if not value:
        return Image.MAX_IMAGE_PIXELS
    if not (number := value.replace("_", "")).isascii() or not number.isdecimal() or not int(number):
        raise UnreadableImageError(f"{MAX_PIXELS_VARIABLE} is {value!r}, but is a number of pixels, as 200000000")
    if int(number) != Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(number)
    return int(number)


@contextmanager
def max_pixels_set_to(number: int) -> Iterator[None]:
    """Let no more pixels be held than this, whatever `$FIELDMARK_MAX_PIXELS` says; the limit before comes back."""
    variable, before = os.environ.pop(MAX_PIXELS_VARIABLE, None), Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = number  # the decoders of Pillow look there
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
        if variable is not None:
            os.environ[MAX_PIXELS_VARIABLE] = variable


def check_pixels(width: int, height: int, multiple: int = 1) -> None:
    """Raises `UnreadableImageError` if an image has no pixels, or more than a multiple of those that may be held."""
    limit = None if (held := max_pixels()) is None else multiple * held
    if width < 1 or height < 1:
        raise UnreadableImageError(f"damaged: {width} x {height} pixels")
    if limit is not None and width * height > limit:
        raise UnreadableImageError(too_many_pixels(f"{width} x {height} pixels", limit))


def too_many_pixels(pixels: str, limit: int) -> str:
    """The reason for an image of so many pixels."""
    return f"{pixels}, more than the limit of {limit:,} ({MAX_PIXELS_VARIABLE} sets it)"


def check_scans(scans: int, width: int, height: int) -> None:
    """Raises `UnreadableImageError` if so many scans of a JPEG of this size would take too long."""
    limit = max_pixels()
    if limit is None or scans * width * height <= MAX_SCANS * limit:
        return
    if scans == 1:
        raise UnreadableImageError(too_many_pixels(f"{width} x {height} pixels", MAX_SCANS * limit))
    raise UnreadableImageError(
        f"a JPEG that goes {scans:,} times over its {width * height:,} pixels ({MAX_PIXELS_VARIABLE} sets the limit)"
    )


def ignore_library_warnings() -> None:
    """Ignore the libraries' warnings about metadata: under `-W error` they would make images unreadable.

    Lasting filters for the modules of Pillow and pydicom, since `warnings.catch_warnings` is not thread-safe.
    """
    for pattern in (r"PIL\.", r"pydicom\."):
        if ("ignore", None, UserWarning, re.compile(pattern), 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=UserWarning, module=pattern)
