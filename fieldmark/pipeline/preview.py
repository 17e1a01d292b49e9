"""Preview of a dataset as a recipe sees it: class counts, shapes, and images before and after augmentation."""

import random
from collections import Counter, defaultdict
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
from fieldmark.report.preview_page import write_preview_page
from fieldmark.report.results import Preview, PreviewImage
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe
from fieldmark.training.phases import train_crop_size

AUGMENTED_VIEWS = 2
"""Augmented views of each sample image."""


def preview(photos: str | Path, recipe: Recipe, n_images: int, out: Path, reporter: Reporter) -> Preview:
    """Write look.html with `n_images` sample images into the new folder `out`.

    Raises:
        FieldmarkError: a training on these images with this recipe would be refused.
    """
    recipe = resolve_recipe(recipe, reporter.info)
    catalog = load_recipe_catalog(photos, recipe)
    with torch.device("meta"):
        preprocessing = make_preprocessing(build_network(recipe, 2, weights=False), recipe)
    size, eval_size = train_crop_size(recipe, preprocessing["size"]), preprocessing["size"]
    class_counts = Counter(photo.label for photo in catalog.photos)
    samples = enumerate(sample_images(catalog.photos, n_images, recipe.seed))
    file = out / "look.html"
    result = Preview(
        name=catalog.source.resolve().name,
        classes={name: class_counts[name] for name in catalog.classes},
        batch=(recipe.batch, recipe.channels, size, size),
        evaluated=(recipe.channels, eval_size, eval_size),
        augment=recipe.augment,
        warnings=list(catalog.warnings),
        images=[_preview_image(catalog, photo, preprocessing, size, recipe, k) for k, photo in samples],
        files=[file],
    )
    out.mkdir(parents=True)
    write_preview_page(result, file, get_language(recipe.lang))
    return result


def sample_images(photos: tuple[Photo, ...], count: int, seed: int) -> list[Photo]:
    """A random sample of `count` images that covers as many classes as possible."""
    rng, by_class = random.Random(seed), defaultdict[str, list[Photo]](list)
    for photo in photos:
        by_class[photo.label].append(photo)
    class_samples = [rng.sample(members, min(count, len(members))) for members in by_class.values()]
    rng.shuffle(class_samples)
    interleaved = (pile[k] for k in range(count) for pile in class_samples if k < len(pile))
    return [photo for _, photo in zip(range(count), interleaved, strict=False)]


def _preview_image(
    catalog: Catalog, photo: Photo, preprocessing: dict[str, Any], size: int, recipe: Recipe, index: int
) -> PreviewImage:
    """The image as evaluated, and augmented with its own random numbers; or why it cannot be read."""
    try:
        content = catalog.files.read_bytes(photo.path)
        image = decode(content, preprocessing["size"], preprocessing["interpolation"], photo.box, squash=True)
    except (UnreadableImageError, OSError) as error:
        return PreviewImage(photo.path, photo.label, error=str(error))
    transform = build_transform(recipe.augment, size, crop=1.0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    views = [center_crop(image, preprocessing["size"])]
    for k in range(AUGMENTED_VIEWS):
        torch.default_generator.manual_seed(derive_seed(recipe.seed, 1, k, index))
        views.append(transform(pixels).permute(1, 2, 0).numpy())
    mode = "L" if recipe.channels == 1 else "RGB"
    pictures = [to_data_uri(Image.fromarray(view).convert(mode)) for view in views]
    return PreviewImage(photo.path, photo.label, pictures)
