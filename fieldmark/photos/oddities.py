"""bytes and pixels of photos -> which of them stand out, and what beside the picture gives a class away."""

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fieldmark.photos.decode import FORMATS

DARK, BRIGHT, BLANK = 18.0, 245.0, 3.0
"""Mean grey level, the same, and standard deviation of the grey levels (0..255) of a thumbnail."""
BLURRED = 0.05
"""Share of the median sharpness of all photos, below which a photo is called blurred."""
SMALL, LONG = 4, 2
"""So many times less than the median shorter side; longer than so many times its shorter side (the ends are cut)."""
GIVEN_AWAY, ELSEWHERE, LEAST = 0.95, 0.05, 10
"""A property gives a class away where this share of its photos have it, at most that share of all others, and so many
photos are concerned."""
_CAMERA = 0x0110  # the EXIF tag "Model"
_WITH_EXIF = frozenset(("JPEG", "MPO", "TIFF", "WEBP"))


class Facts(NamedTuple):
    """What is known of a photo beside its picture, and three measures of that."""

    size: tuple[int, int]  # width, height in its file
    mode: str  # Pillow's: RGB, L, ...
    format: str
    camera: str  # empty where it is not said
    brightness: float  # mean grey level, 0..255
    contrast: float  # standard deviation of the grey levels
    sharpness: float  # mean square of the Laplacian of the grey levels


class Odd(NamedTuple):
    """A photo that stands out; `kind` is dark, bright, blank, blurred, small or long."""

    path: str
    kind: str
    detail: str


class GiveAway(NamedTuple):
    """`share` of the photos of `label` have this `value`, and `elsewhere` of all others."""

    label: str
    what: str  # size, format, mode or camera
    value: str
    share: float
    elsewhere: float


def facts(content: bytes, pixels: np.ndarray, thumbnail: np.ndarray) -> Facts:
    """Of a file that can be decoded: its bytes, pixels uint8 (h, w, 3) and thumbnail uint8 (16, 16, 3)."""
    size, mode, kind, camera = (pixels.shape[1], pixels.shape[0]), "RGB", "", ""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        size, mode, kind = image.size, image.mode, image.format or ""
        if kind in _WITH_EXIF:
            camera = str(image.getexif().get(_CAMERA, "")).strip(" \0")
    small = _grey(thumbnail)
    return Facts(size, mode, kind, camera, float(small.mean()), float(small.std()), _sharpness(pixels))


def odd(paths: Sequence[str], known: Sequence[Facts]) -> Iterator[Odd]:
    """The photos that stand out, in order; one may do so in several ways."""
    if not paths:
        return
    sharp = BLURRED * float(np.median([fact.sharpness for fact in known]))
    small = float(np.median([min(fact.size) for fact in known])) / SMALL
    for path, fact in zip(paths, known, strict=True):
        shorter, longer = sorted(fact.size)
        said = f"{fact.size[0]} x {fact.size[1]} pixels"
        if fact.contrast < BLANK:
            yield Odd(path, "blank", f"grey levels vary by {fact.contrast:.1f} of 255")
        elif fact.brightness < DARK:
            yield Odd(path, "dark", f"mean grey level {fact.brightness:.0f} of 255")
        elif fact.brightness > BRIGHT:
            yield Odd(path, "bright", f"mean grey level {fact.brightness:.0f} of 255")
        elif fact.sharpness < sharp:
            yield Odd(path, "blurred", f"{fact.sharpness / sharp * BLURRED:.1%} of the usual sharpness")
        if shorter < small:
            yield Odd(path, "small", said)
        if longer > LONG * shorter:
            yield Odd(path, "long", f"{said}: only its middle is looked at")


def giveaways(labels: Sequence[str], known: Sequence[Facts]) -> Iterator[GiveAway]:
    """What nearly all photos of a class have and hardly any other: a network may learn that in place of the picture."""
    of_class = Counter(labels)
    for what in ("size", "format", "mode", "camera"):
        values = [_shown(getattr(fact, what)) for fact in known]
        in_all, in_class = Counter(values), defaultdict[str, Counter[str]](Counter)
        for label, value in zip(labels, values, strict=True):
            in_class[label][value] += 1
        for label, n in sorted(of_class.items()):
            value, most = in_class[label].most_common(1)[0]
            others = len(labels) - n
            share, elsewhere = most / n, (in_all[value] - most) / max(1, others)
            if value and most >= LEAST and others >= LEAST and share >= GIVEN_AWAY and elsewhere <= ELSEWHERE:
                yield GiveAway(label, what, value, share, elsewhere)


def _shown(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> float32 (h, w): the luma of ITU-R BT.601."""
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def _sharpness(pixels: np.ndarray) -> float:
    """The mean square of the discrete Laplacian (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield
    microscopy", call its variance a measure of focus)."""
    if min(pixels.shape[:2]) < 3:
        return 0.0
    grey = _grey(pixels)
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.square(inner).mean())
