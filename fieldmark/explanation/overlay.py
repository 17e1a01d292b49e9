"""Drawing of maps over images, in two hues with a legend, for a file or a page; without torch."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fieldmark.core import io, runtime
from fieldmark.core.parallel import ordered_map
from fieldmark.core.text import safe_file_name
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.locate import ImageSource, find_images
from fieldmark.data.thumbnails import PAGE_THUMBNAIL_SIZE, to_data_uri
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction

POSITIVE_COLOUR, NEGATIVE_COLOUR = (232, 60, 0), (0, 92, 230)
"""Orange is evidence for the class, blue against it; distinguishable with red-green colour blindness as well."""
MAX_OPACITY = 0.7
"""Opacity of the strongest evidence."""
SCALE_QUANTILE = 0.98
"""Quantile of a map's magnitude that gets the full colour, so that one outlier does not fade all other positions."""
MIN_SIDE = 224
"""Shorter side of an overlay in pixels: smaller images are enlarged, or the legend could not be read."""


def robust_maximum(evidence: np.ndarray) -> float:
    """The magnitude that gets the full colour: a high quantile, or the maximum if that is 0."""
    magnitude = np.abs(evidence)
    return float(np.quantile(magnitude, SCALE_QUANTILE) or magnitude.max())


def upsample(evidence: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w), resized to float32 (height, width) by bicubic interpolation."""
    picture = Image.fromarray(np.asarray(evidence, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def overlay_heatmap(image: np.ndarray, evidence: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Blend the evidence (h, w) over the image, uint8 (H, W, 3).

    Evidence of magnitude `scale` (by default its `robust_maximum`) and above has the full colour; where it is 0 the
    image is unchanged.
    """
    scale = robust_maximum(evidence) if scale is None else scale
    if not scale:
        return image.copy()
    strength = np.clip(upsample(evidence, *image.shape[:2]) / scale, -1, 1)[..., None]
    hue = np.where(strength < 0, np.asarray(NEGATIVE_COLOUR, np.float32), np.asarray(POSITIVE_COLOUR, np.float32))
    return np.rint(image + MAX_OPACITY * np.abs(strength) * (hue - image)).astype(np.uint8)


def heatmap_layer(evidence: np.ndarray, side: int) -> Image.Image:
    """The colours of `overlay_heatmap` alone: RGBA of (side, side) pixels, transparent where the evidence is 0."""
    scale = robust_maximum(evidence)
    strength = np.clip(upsample(evidence, side, side) / scale, -1, 1) if scale else np.zeros((side, side), np.float32)
    hue = np.where(
        strength[..., None] < 0, np.asarray(NEGATIVE_COLOUR, np.uint8), np.asarray(POSITIVE_COLOUR, np.uint8)
    )
    cover = np.rint(255 * MAX_OPACITY * np.abs(strength)).astype(np.uint8)
    return Image.fromarray(np.concatenate((hue, cover[..., None]), -1))


def legend(width: int, scale: float, unit: str = "logits") -> np.ndarray:
    """A strip, uint8 (30, width, 3): the colours from -scale to +scale over grey, with numbers."""
    bar = overlay_heatmap(np.full((10, width, 3), 225, np.uint8), np.linspace(-1, 1, width)[None], 1.0)
    strip, font = Image.new("RGB", (width, 30), "white"), ImageFont.load_default(12)
    strip.paste(Image.fromarray(bar), (0, 2))
    draw = ImageDraw.Draw(strip)
    draw.text((2, 15), f"-{scale:.2g}", "black", font, anchor="la")
    draw.text((width / 2, 15), "0", "black", font, anchor="ma")
    draw.text((width - 2, 15), f"+{scale:.2g} {unit}".strip(), "black", font, anchor="ra")
    return np.asarray(strip)


def overlay_with_legend(
    image: np.ndarray, evidence: np.ndarray, unit: str = "logits", scale: float | None = None
) -> Image.Image:
    """`overlay_heatmap` with its `legend` below; it names no class, since the font has few scripts."""
    scale = robust_maximum(evidence) if scale is None else scale
    if (factor := MIN_SIDE / min(image.shape[:2])) > 1:
        height, width = (round(factor * side) for side in image.shape[:2])
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    rows = overlay_heatmap(image, evidence, scale), legend(image.shape[1], scale, unit)
    return Image.fromarray(np.concatenate(rows))


def overlay_data_uri(
    image: np.ndarray, evidence: np.ndarray, scale: float | None = None, side: int = PAGE_THUMBNAIL_SIZE
) -> str:
    """`overlay_heatmap` as a JPEG in a data URI, for a page; its longer side is at most `side` pixels."""
    return to_data_uri(Image.fromarray(overlay_heatmap(image, evidence, scale)), side)


def unique_stem(path: str, used_names: dict[str, int]) -> str:
    """A file name without extension for files about the image `path`: safe on every file system, and not yet used.

    `used_names` counts the images of each name and is updated. Names that differ in case alone count as equal.
    """
    stem = Path(path).name.rpartition(".")[0] or Path(path).name
    safe_stem = safe_file_name(stem, 50, "photo")
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
    io.require_new(out, "--heatmap")
    classifier.warn_about_crops()
    used_names = dict[str, int]()

    def predict_one(item: tuple[str, ImageSource]) -> tuple[Prediction, Image.Image | None]:
        path, source = item
        try:
            image = preprocess(source, classifier.info.preprocessing)
        except UnreadableImageError as error:
            return Prediction(path, error=str(error)), None
        outputs = classifier.infer(image)
        return classifier.to_prediction(path, outputs, top), overlay_with_legend(image, outputs["evidence"])

    sources = find_images(photos, classifier.allow_private_hosts)
    for prediction, picture in ordered_map(predict_one, sources, runtime.available_cpus()):
        if picture is None:
            yield prediction
            continue
        file = out / f"{unique_stem(prediction.path, used_names)}.png"
        out.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        yield replace(prediction, heatmap=str(file))
