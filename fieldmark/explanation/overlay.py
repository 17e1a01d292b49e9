"""Evidence -> a picture of it: laid over the photo in two hues, with a legend, for a file or a page; without torch."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.locate import ImageSource, find_images
from fieldmark.data.thumbnails import PAGE_THUMBNAIL_SIZE, to_data_uri
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction

POSITIVE_COLOUR, NEGATIVE_COLOUR = (232, 60, 0), (0, 92, 230)
"""Orange speaks for the class, blue against it: told apart by those too who confuse red and green."""
CSS_COLOURS = {"for": f"rgb{POSITIVE_COLOUR}", "against": f"rgb{NEGATIVE_COLOUR}"}
"""The same for pages."""
MAX_OPACITY = 0.7
"""So much of the photo the strongest evidence covers."""
SCALE_QUANTILE = 0.98
"""The quantile of a map's strength that gets the full colour, so that one odd position does not pale all others."""
MIN_SIDE = 224
"""Pixels of a picture's shorter side: smaller photos are drawn larger, or nothing could be seen and read."""


def robust_maximum(evidence: np.ndarray) -> float:
    """The robust maximum of a map's strength, which gets the full colour; 0 for a map that says nothing."""
    strength = np.abs(evidence)
    return float(np.quantile(strength, SCALE_QUANTILE) or strength.max())


def upsample(evidence: np.ndarray, height: int, width: int) -> np.ndarray:
    """Any map (h, w) -> float32 (height, width), bicubic."""
    picture = Image.fromarray(np.asarray(evidence, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def overlay_heatmap(photo: np.ndarray, evidence: np.ndarray, scale: float | None = None) -> np.ndarray:
    """The photo, uint8 (H, W, 3), with the evidence (h, w) over it: the stronger, the less of the photo is left.

    Evidence of `scale` (by default its own `strongest`) and more has the full colour, for or against; where it is
    nothing the photo stays as it is, to the bit.
    """
    scale = robust_maximum(evidence) if scale is None else scale
    if not scale:
        return photo.copy()
    strength = np.clip(upsample(evidence, *photo.shape[:2]) / scale, -1, 1)[..., None]
    hue = np.where(strength < 0, np.asarray(NEGATIVE_COLOUR, np.float32), np.asarray(POSITIVE_COLOUR, np.float32))
    return np.rint(photo + MAX_OPACITY * np.abs(strength) * (hue - photo)).astype(np.uint8)


def heatmap_layer(evidence: np.ndarray, side: int) -> Image.Image:
    """What `overlay` lays over a photo, by itself: RGBA of (side, side) pixels, transparent where it says nothing."""
    scale = robust_maximum(evidence)
    strength = np.clip(upsample(evidence, side, side) / scale, -1, 1) if scale else np.zeros((side, side), np.float32)
    hue = np.where(
        strength[..., None] < 0, np.asarray(NEGATIVE_COLOUR, np.uint8), np.asarray(POSITIVE_COLOUR, np.uint8)
    )
    cover = np.rint(255 * MAX_OPACITY * np.abs(strength)).astype(np.uint8)
    return Image.fromarray(np.concatenate((hue, cover[..., None]), -1))


def legend(width: int, scale: float, unit: str = "logits") -> np.ndarray:
    """A strip uint8 (h, width, 3): the colours from -scale to +scale over grey, with numbers."""
    bar = overlay_heatmap(np.full((10, width, 3), 225, np.uint8), np.linspace(-1, 1, width)[None], 1.0)
    strip, font = Image.new("RGB", (width, 30), "white"), ImageFont.load_default(12)
    strip.paste(Image.fromarray(bar), (0, 2))
    draw = ImageDraw.Draw(strip)
    draw.text((2, 15), f"-{scale:.2g}", "black", font, anchor="la")
    draw.text((width / 2, 15), "0", "black", font, anchor="ma")
    draw.text((width - 2, 15), f"+{scale:.2g} {unit}".strip(), "black", font, anchor="ra")
    return np.asarray(strip)


def overlay_with_legend(
    photo: np.ndarray, evidence: np.ndarray, unit: str = "logits", scale: float | None = None
) -> Image.Image:
    """`overlay` with its `legend` below; no class is named in it, since the font knows few scripts."""
    scale = robust_maximum(evidence) if scale is None else scale
    if (larger := MIN_SIDE / min(photo.shape[:2])) > 1:
        height, width = (round(larger * side) for side in photo.shape[:2])
        photo = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(
        np.concatenate((overlay_heatmap(photo, evidence, scale), legend(photo.shape[1], scale, unit)))
    )


def overlay_data_uri(
    photo: np.ndarray, evidence: np.ndarray, scale: float | None = None, side: int = PAGE_THUMBNAIL_SIZE
) -> str:
    """`overlay` as a small JPEG in a data URI, for a page; its longer side is at most so many pixels."""
    return to_data_uri(Image.fromarray(overlay_heatmap(photo, evidence, scale)), side)


def unique_stem(path: str, used_names: dict[str, int]) -> str:
    """A name for files about the photo `path`, without an ending: one part, safe anywhere, and none of those `taken`.

    It keeps the letters and digits of the photo's own name, of any script. `taken` holds for each name the number that
    the next photo of that name gets.
    """
    stem = Path(path).name.rpartition(".")[0] or Path(path).name
    safe_stem = re.sub(r"\W+", "-", unicodedata.normalize("NFC", stem))[:50].strip("-_") or "photo"
    name, plain = safe_stem, safe_stem.casefold()
    while name.casefold() in used_names:
        used_names[plain] += 1
        name = f"{safe_stem}-{used_names[plain]}"
    used_names[name.casefold()] = 1
    return name


def predict_with_heatmaps(
    classifier: Classifier, photos: Iterable[str | Path | bytes], out: Path, top: int = 5
) -> Iterator[Prediction]:
    """As `Classifier.stream`, each prediction with `heatmap`: the file in the new folder `out` with its class evidence.

    Raises FieldmarkError where the folder exists.
    """
    if out.exists():
        raise FieldmarkError(f"{out} exists: give the heat maps another folder")
    used_names = dict[str, int]()

    def predict_one(item: tuple[str, ImageSource]) -> tuple[Prediction, Image.Image | None]:
        path, source = item
        try:
            image = preprocess(source, classifier.info["preprocessing"])
        except UnreadableImageError as error:
            return Prediction(path, error=str(error)), None
        outputs = classifier.infer(image)
        return classifier.to_prediction(path, outputs, top), overlay_with_legend(image, outputs["evidence"])

    for prediction, picture in ordered_map(predict_one, find_images(photos), runtime.available_cpus()):
        if picture is None:
            yield prediction
            continue
        file = out / f"{unique_stem(prediction.path, used_names)}.png"
        out.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        yield replace(prediction, heatmap=str(file))
