"""PHOTOS -> how many there are of each class, what a batch is, and a page of some: as judged, and as trained on."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fieldmark.core.i18n import get_language
from fieldmark.core.progress import Reporter
from fieldmark.data.augment import build_transform, derive_seed
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.data.image import UnreadableImageError, center_crop, decode
from fieldmark.data.thumbnails import to_data_uri
from fieldmark.recipes.recipe import Recipe
from fieldmark.report.html import render
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe
from fieldmark.training.phases import train_crop_size

AUGMENTED_VIEWS = 2
"""So often each photo is shown as training varies it."""


def preview(photos: str | Path, recipe: Recipe, n_images: int, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Write look.html with `count` photos into the new folder `out`. -> what `look --json` prints.

    Raises FieldmarkError for what a training on these photos with this recipe would be refused for before it begins.
    """
    recipe = resolve_recipe(recipe, reporter.info)
    catalog = load_recipe_catalog(photos, recipe)
    with torch.device("meta"):
        eval_preprocessing = make_preprocessing(build_network(recipe, 2, weights=False), recipe)
    size = train_crop_size(recipe, eval_preprocessing["size"])
    class_counts = Counter(photo.label for photo in catalog.photos)
    sampled = enumerate(sample_images(catalog.photos, n_images, recipe.seed))
    rows = [_preview_image(catalog, photo, eval_preprocessing, size, recipe, number) for number, photo in sampled]
    result = {
        "classes": {name: class_counts[name] for name in catalog.classes},
        "photos": len(catalog.photos),
        "batch": [recipe.batch, recipe.channels, size, size],
        "judged": [recipe.channels, eval_preprocessing["size"], eval_preprocessing["size"]],
        "warnings": list(catalog.warnings),
        "preview": [{name: row[name] for name in ("path", "label", "error") if name in row} for row in rows],
    }
    out.mkdir(parents=True)
    file = out / "look.html"
    context = result | {"name": catalog.source.resolve().name, "shown": rows, "augment": recipe.augment}
    page = render("look.html.j2", context, get_language(recipe.lang))
    file.write_text(page, encoding="utf-8", errors="replace")
    return result | {"files": [str(file)]}


def sample_images(photos: tuple[Photo, ...], count: int, seed: int) -> list[Photo]:
    """So many photos, of as many classes as can be: drawn by the seed, class after class."""
    rng, by_class = random.Random(seed), defaultdict[str, list[Photo]](list)
    for photo in photos:
        by_class[photo.label].append(photo)
    class_samples = [rng.sample(members, min(count, len(members))) for members in by_class.values()]
    rng.shuffle(class_samples)
    interleaved = (pile[k] for k in range(count) for pile in class_samples if k < len(pile))
    return [photo for _, photo in zip(range(count), interleaved, strict=False)]


def format_summary(result: dict[str, Any]) -> Iterator[str]:
    """What a person reads of it."""
    for name, n in result["classes"].items():
        yield f"{n:8,}  {name}"
    yield f"{result['photos']:8,}  photos"
    batch_shape, eval_shape = (" x ".join(map(str, result[name])) for name in ("batch", "judged"))
    yield f"A batch while training: {batch_shape} (photos, channels, rows, columns) and {result['batch'][0]} labels"
    yield f"A photo when it is judged: {eval_shape}"
    yield from (f"{photo['path']}: {photo['error']}" for photo in result["preview"] if "error" in photo)


def _preview_image(
    catalog: Catalog, photo: Photo, eval_preprocessing: dict[str, Any], size: int, recipe: Recipe, index: int
) -> dict[str, Any]:
    """The photo as it is judged, and as training varies it: data URIs; or why it cannot be read."""
    row: dict[str, Any] = {"path": photo.path, "label": photo.label}
    try:
        image = decode(
            catalog.files.read_bytes(photo.path),
            eval_preprocessing["size"],
            eval_preprocessing["interpolation"],
            photo.box,
        )
    except (UnreadableImageError, OSError) as error:
        return row | {"error": str(error)}
    augmentation, pixels = (
        build_transform(recipe.augment, size, crop=1.0),
        torch.from_numpy(np.array(image)).permute(2, 0, 1),
    )
    views = [center_crop(image, eval_preprocessing["size"])]
    for k in range(AUGMENTED_VIEWS):
        torch.default_generator.manual_seed(derive_seed(recipe.seed, 1, k, index))
        views.append(augmentation(pixels).permute(1, 2, 0).numpy())
    mode = "L" if recipe.channels == 1 else "RGB"
    return row | {"pictures": [to_data_uri(Image.fromarray(view).convert(mode)) for view in views]}
