"""bytes and pixels of photos -> which of them stand out, and what beside the picture gives a class away."""

import contextlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fieldmark.audit.report import Outlier, Shortcut
from fieldmark.data.image import PILLOW_FORMATS

DARK_MEAN, BRIGHT_MEAN, BLANK_STD = 18.0, 245.0, 3.0
"""Mean grey level, the same, and standard deviation of the grey levels (0..255) of a thumbnail."""
MIN_SHARPNESS = 0.6
"""Sharpness below which a photo is called blurred: of 300 photos each of TrashNet and birds100 none or nearly none, and
nearly all once a Gaussian of two pixels has passed over them (docs/performance.md)."""
MAX_UPSCALE = 1.3
"""A photo that is decoded so much larger than it is has no sharpness to judge."""
SMALL_FACTOR, MAX_ASPECT_RATIO = 4, 2
"""So many times less than the median shorter side; longer than so many times its shorter side (the ends are cut)."""
SHORTCUT_SHARE, SHORTCUT_MAX_ELSEWHERE, SHORTCUT_MIN_IMAGES = 0.95, 0.05, 10
"""A property gives a class away where this share of its photos have it, at most that share of all others, and so many
photos are concerned."""
_NOISE_FLOOR = 2.0  # grey levels: edges below this are noise
_EXIF_MODEL = 0x0110  # the EXIF tag "Model"
_EXIF_FORMATS = frozenset(("JPEG", "MPO", "TIFF", "WEBP"))


class ImageStats(NamedTuple):
    """What is known of a photo beside its picture, and three measures of that."""

    size: tuple[int, int]  # width, height in its file
    mode: str  # Pillow's: RGB, L, ...
    format: str
    camera: str  # empty where it is not said
    brightness: float  # mean grey level, 0..255
    contrast: float  # standard deviation of the grey levels
    sharpness: float  # how steep its steepest edges are, per pixel; infinite where it was enlarged


def image_stats(content: bytes, pixels: np.ndarray, thumbnail: np.ndarray) -> ImageStats:
    """Of a file that can be decoded: its bytes, pixels uint8 (h, w, 3) and thumbnail uint8 (16, 16, 3)."""
    size, mode, kind, camera = (pixels.shape[1], pixels.shape[0]), "RGB", "", ""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=PILLOW_FORMATS) as image:
        size, mode, kind = image.size, image.mode, image.format or ""
        if kind in _EXIF_FORMATS:
            camera = str(image.getexif().get(_EXIF_MODEL, "")).strip(" \0")
    small = _grey(thumbnail)
    sharp = _sharpness(pixels) if min(pixels.shape[:2]) <= MAX_UPSCALE * min(size) else math.inf
    return ImageStats(size, mode, kind, camera, float(small.mean()), float(small.std()), sharp)


def find_outliers(paths: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Outlier]:
    """The photos that stand out, in order; one may do so in several ways."""
    if not paths:
        return
    small = float(np.median([min(fact.size) for fact in stats])) / SMALL_FACTOR
    for path, fact in zip(paths, stats, strict=True):
        shorter, longer = sorted(fact.size)
        dimensions = f"{fact.size[0]} x {fact.size[1]} pixels"
        if fact.contrast < BLANK_STD:
            yield Outlier(path, "blank", f"grey levels vary by {fact.contrast:.1f} of 255")
        elif fact.brightness < DARK_MEAN:
            yield Outlier(path, "dark", f"mean grey level {fact.brightness:.0f} of 255")
        elif fact.brightness > BRIGHT_MEAN:
            yield Outlier(path, "bright", f"mean grey level {fact.brightness:.0f} of 255")
        elif fact.sharpness < MIN_SHARPNESS:
            yield Outlier(path, "blurred", "no sharp edge in it")
        if shorter < small:
            yield Outlier(path, "small", dimensions)
        if longer > MAX_ASPECT_RATIO * shorter:
            yield Outlier(path, "long", f"{dimensions}: only its middle is looked at")


def find_shortcuts(labels: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Shortcut]:
    """What nearly all photos of a class have and hardly any other: a network may learn that in place of the picture."""
    of_class = Counter(labels)
    for attribute in ("size", "format", "mode", "camera"):
        values = [_format_value(getattr(fact, attribute)) for fact in stats]
        in_all, in_class = Counter(values), defaultdict[str, Counter[str]](Counter)
        for label, value in zip(labels, values, strict=True):
            in_class[label][value] += 1
        for label, n in sorted(of_class.items()):
            value, most = in_class[label].most_common(1)[0]
            others = len(labels) - n
            share, elsewhere = most / n, (in_all[value] - most) / max(1, others)
            if (
                value
                and most >= SHORTCUT_MIN_IMAGES
                and others >= SHORTCUT_MIN_IMAGES
                and share >= SHORTCUT_SHARE
                and elsewhere <= SHORTCUT_MAX_ELSEWHERE
            ):
                yield Shortcut(label, attribute, value, share, elsewhere)


def _format_value(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> float32 (h, w): the luma of ITU-R BT.601."""
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def _sharpness(pixels: np.ndarray) -> float:
    """How steep the steepest edges are: the 99.8 % quantile of the Laplacian over that of the gradient.

    Both grow with the contrast of an edge; their ratio falls as the edge spreads over more pixels.
    """
    if min(pixels.shape[:2]) < 8:
        return math.inf
    grey = _grey(pixels)
    inner, left, right, up, down = grey[1:-1, 1:-1], grey[1:-1, :-2], grey[1:-1, 2:], grey[:-2, 1:-1], grey[2:, 1:-1]
    laplacian = np.abs(4 * inner - left - right - up - down)
    gradient = np.maximum(np.abs(right - left), np.abs(down - up)) / 2
    steepest, strongest = (_upper_quantile(part) for part in (laplacian, gradient))
    return steepest / (strongest + _NOISE_FLOOR)


def _upper_quantile(values: np.ndarray) -> float:
    """The 99.8 % quantile, of every second row."""
    some = values[::2].ravel()
    return float(np.partition(some, int(0.998 * some.size))[int(0.998 * some.size)])
