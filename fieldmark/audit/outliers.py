"""Statistics of each image file, and outliers by them: dark, blurred, small, ...

An image is compared with its own set: where all are dark or soft, that is the camera, and none is an outlier.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fieldmark.audit.file_header import read_file_header
from fieldmark.audit.report import Outlier

DARK_MEAN = 18.0
"""Mean grey level of a thumbnail, 0..255, below which an image is dark."""
BRIGHT_MEAN = 245.0
"""Mean grey level above which an image is bright."""
BLANK_STD = 3.0
"""Standard deviation of the grey levels below which an image is blank."""
MIN_SHARPNESS = 0.6
"""Sharpness below which an image is blurred: hardly any of 300 images each of TrashNet and birds100, and nearly all
after a Gaussian blur of two pixels (docs/lab/audit.md)."""
MAX_UPSCALE = 1.3
"""Enlargement at decoding beyond which sharpness is not measured."""
MAX_Z_SCORE = 3.5
"""Modified z-score beyond which a measurement is unusual in its set (Iglewicz & Hoaglin 1993)."""
SMALL_FACTOR = 4
"""An image is small if its shorter side is this many times less than the median."""
MAX_ASPECT_RATIO = 2
"""An image is long beyond this ratio of its sides; the ends are cut off at decoding."""
MAX_BORDER_STD = 3.0
"""Standard deviation of the colours of the outermost pixels up to which a border is uniform: JPEG leaves this much."""
_MAD_TO_STD = 1.4826  # of a normal distribution
_LEAST_MEASURE = 1e-3  # has a logarithm
_NOISE_FLOOR = 2.0  # grey levels: edges below this are noise


class ImageStats(NamedTuple):
    """Metadata of an image file, as in `FileHeader`, and measurements of its pixels.

    Attributes:
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        sharpness: `_sharpness`; infinite if the image was enlarged at decoding.
        border: mean grey level of the outermost pixels if they are of one colour, else -1.
    """

    size: tuple[int, int]
    mode: str
    format: str
    camera: str
    brightness: float
    contrast: float
    sharpness: float
    quality: int = 0
    is_progressive: bool = False
    has_exif: bool = False
    has_icc: bool = False
    dpi: float = 0.0
    border: float = -1.0


def image_stats(content: bytes, pixels: np.ndarray, thumbnail: np.ndarray) -> ImageStats:
    """The statistics of a file's bytes, its pixels uint8 (h, w, 3) and its thumbnail uint8 (16, 16, 3)."""
    header = read_file_header(content, (pixels.shape[1], pixels.shape[0]))
    small = _grey(thumbnail)
    sharp = _sharpness(pixels) if min(pixels.shape[:2]) <= MAX_UPSCALE * min(header.size) else math.inf
    brightness, contrast = float(small.mean()), float(small.std())
    return ImageStats(*header[:4], brightness, contrast, sharp, *header[4:], _border(pixels))


def _border(pixels: np.ndarray) -> float:
    """The mean grey level of the outermost pixels if they are of one colour, else -1."""
    ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return round(float(_grey(ring).mean()), 1) if (ring.std(0) <= MAX_BORDER_STD).all() else -1.0


def find_outliers(paths: Sequence[str], stats: Sequence[ImageStats]) -> Iterator[Outlier]:
    """The outliers, in the order of `paths`; an image may be one in several ways.

    A dark, bright, blank or blurred image is so by the constants above, and unusually so in this set.
    """
    if not paths:
        return
    small = float(np.median([min(image.size) for image in stats])) / SMALL_FACTOR
    dark = min(DARK_MEAN, _lower_fence([image.brightness for image in stats]))
    bright = 255 - min(255 - BRIGHT_MEAN, _lower_fence([255 - image.brightness for image in stats]))
    blank = min(BLANK_STD, _lower_fence([image.contrast for image in stats]))
    blurred = min(MIN_SHARPNESS, _lower_fence([image.sharpness for image in stats]))
    for path, image in zip(paths, stats, strict=True):
        shorter, longer = sorted(image.size)
        dimensions = f"{image.size[0]} x {image.size[1]} pixels"
        if image.contrast < blank:
            yield Outlier(path, "blank", f"grey levels vary by {image.contrast:.1f} of 255")
        elif image.brightness < dark:
            yield Outlier(path, "dark", f"mean grey level {image.brightness:.0f} of 255")
        elif image.brightness > bright:
            yield Outlier(path, "bright", f"mean grey level {image.brightness:.0f} of 255")
        elif image.sharpness < blurred:
            yield Outlier(path, "blurred", "no sharp edges")
        if shorter < small:
            yield Outlier(path, "small", dimensions)
        if longer > MAX_ASPECT_RATIO * shorter:
            yield Outlier(path, "long", f"{dimensions}: only the middle is used")


def _lower_fence(values: Sequence[float]) -> float:
    """The value below which one is unusual among these: a modified z-score of -`MAX_Z_SCORE`, on a log scale.

    Infinite values are left out; the fence is infinite without others.
    """
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return math.inf
    logs = np.log(np.maximum(finite, _LEAST_MEASURE))
    median = np.median(logs)
    return float(np.exp(median - MAX_Z_SCORE * _MAD_TO_STD * np.median(np.abs(logs - median))))


def _grey(pixels: np.ndarray) -> np.ndarray:
    """The luma of ITU-R BT.601, float32 (h, w), which Pillow's convert("L") would round."""
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def _sharpness(pixels: np.ndarray) -> float:
    """Steepness of the steepest edges: the 99.8 % quantile of the Laplacian over that of the gradient.

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
    """The 99.8 % quantile of every second row."""
    some = values[::2].ravel()
    return float(np.partition(some, int(0.998 * some.size))[int(0.998 * some.size)])
