"""Evidence -> a picture of it: laid over the photo in two hues, with a legend, for a file or a page; without torch."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import Unreadable, prepare
from fieldmark.data.locate import Source, each
from fieldmark.data.thumbnails import TILE, uri
from fieldmark.inference.classifier import Classifier, ahead
from fieldmark.inference.writers import Answer

FOR, AGAINST = (232, 60, 0), (0, 92, 230)
"""Orange speaks for the class, blue against it: told apart by those too who confuse red and green."""
COLOURS = {"for": f"rgb{FOR}", "against": f"rgb{AGAINST}"}
"""The same for pages."""
MOST = 0.7
"""So much of the photo the strongest evidence covers."""
SHARE = 0.98
"""The quantile of a map's strength that gets the full colour, so that one odd position does not pale all others."""
LEAST = 224
"""Pixels of a picture's shorter side: smaller photos are drawn larger, or nothing could be seen and read."""


def strongest(evidence: np.ndarray) -> float:
    """The robust maximum of a map's strength, which gets the full colour; 0 for a map that says nothing."""
    strength = np.abs(evidence)
    return float(np.quantile(strength, SHARE) or strength.max())


def upsampled(evidence: np.ndarray, height: int, width: int) -> np.ndarray:
    """Any map (h, w) -> float32 (height, width), bicubic."""
    picture = Image.fromarray(np.asarray(evidence, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def overlay(photo: np.ndarray, evidence: np.ndarray, scale: float | None = None) -> np.ndarray:
    """The photo, uint8 (H, W, 3), with the evidence (h, w) over it: the stronger, the less of the photo is left.

    Evidence of `scale` (by default its own `strongest`) and more has the full colour, for or against; where it is
    nothing the photo stays as it is, to the bit.
    """
    scale = strongest(evidence) if scale is None else scale
    if not scale:
        return photo.copy()
    strength = np.clip(upsampled(evidence, *photo.shape[:2]) / scale, -1, 1)[..., None]
    hue = np.where(strength < 0, np.asarray(AGAINST, np.float32), np.asarray(FOR, np.float32))
    return np.rint(photo + MOST * np.abs(strength) * (hue - photo)).astype(np.uint8)


def layer(evidence: np.ndarray, side: int) -> Image.Image:
    """What `overlay` lays over a photo, by itself: RGBA of (side, side) pixels, transparent where it says nothing."""
    scale = strongest(evidence)
    strength = np.clip(upsampled(evidence, side, side) / scale, -1, 1) if scale else np.zeros((side, side), np.float32)
    hue = np.where(strength[..., None] < 0, np.asarray(AGAINST, np.uint8), np.asarray(FOR, np.uint8))
    cover = np.rint(255 * MOST * np.abs(strength)).astype(np.uint8)
    return Image.fromarray(np.concatenate((hue, cover[..., None]), -1))


def legend(width: int, scale: float, unit: str = "logits") -> np.ndarray:
    """A strip uint8 (h, width, 3): the colours from -scale to +scale over grey, with numbers."""
    bar = overlay(np.full((10, width, 3), 225, np.uint8), np.linspace(-1, 1, width)[None], 1.0)
    strip, font = Image.new("RGB", (width, 30), "white"), ImageFont.load_default(12)
    strip.paste(Image.fromarray(bar), (0, 2))
    drawn = ImageDraw.Draw(strip)
    drawn.text((2, 15), f"-{scale:.2g}", "black", font, anchor="la")
    drawn.text((width / 2, 15), "0", "black", font, anchor="ma")
    drawn.text((width - 2, 15), f"+{scale:.2g} {unit}".strip(), "black", font, anchor="ra")
    return np.asarray(strip)


def drawn(photo: np.ndarray, evidence: np.ndarray, unit: str = "logits", scale: float | None = None) -> Image.Image:
    """`overlay` with its `legend` below; no class is named in it, since the font knows few scripts."""
    scale = strongest(evidence) if scale is None else scale
    if (larger := LEAST / min(photo.shape[:2])) > 1:
        height, width = (round(larger * side) for side in photo.shape[:2])
        photo = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.concatenate((overlay(photo, evidence, scale), legend(photo.shape[1], scale, unit))))


def tile(photo: np.ndarray, evidence: np.ndarray, scale: float | None = None, side: int = TILE) -> str:
    """`overlay` as a small JPEG in a data URI, for a page; its longer side is at most so many pixels."""
    return uri(Image.fromarray(overlay(photo, evidence, scale)), side)


def file_name(path: str, taken: dict[str, int]) -> str:
    """A name for files about the photo `path`, without an ending: one part, safe anywhere, and none of those `taken`.

    It keeps the letters and digits of the photo's own name, of any script. `taken` holds for each name the number that
    the next photo of that name gets.
    """
    stem = Path(path).name.rpartition(".")[0] or Path(path).name
    kept = re.sub(r"\W+", "-", unicodedata.normalize("NFC", stem))[:50].strip("-_") or "photo"
    name, plain = kept, kept.casefold()
    while name.casefold() in taken:
        taken[plain] += 1
        name = f"{kept}-{taken[plain]}"
    taken[name.casefold()] = 1
    return name


def answers(classifier: Classifier, photos: Iterable[str | Path | bytes], out: Path, top: int = 5) -> Iterator[Answer]:
    """As `Classifier.stream`, each answer with `heatmap`: the file in the new folder `out` that shows its evidence.

    Raises FieldmarkError where the folder exists.
    """
    if out.exists():
        raise FieldmarkError(f"{out} exists: give the heat maps another folder")
    taken = dict[str, int]()

    def shown(source: Source) -> tuple[Image.Image, Answer]:
        photo = prepare(source, classifier.info["preprocessing"])
        found = classifier.judge(photo)
        return drawn(photo, found["evidence"]), classifier.told("", found, top)

    for path, found in ahead(each(photos), shown, runtime.cores()):
        if isinstance(found, Unreadable):
            yield {"path": path, "error": str(found)}
            continue
        picture, answer = found
        file = out / f"{file_name(path, taken)}.png"
        out.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        yield answer | {"path": path, "heatmap": str(file)}
