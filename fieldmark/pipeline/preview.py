"""PHOTOS -> how many there are of each class, what a batch is, and a page of some: as judged, and as trained on."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fieldmark.core.i18n import language
from fieldmark.core.progress import Reporter
from fieldmark.data.augment import seed_of, transform
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.decisions import chosen
from fieldmark.data.image import Unreadable, centre, decode
from fieldmark.data.thumbnails import uri
from fieldmark.recipes.recipe import Recipe
from fieldmark.report.html import render
from fieldmark.training.model_factory import named, network_of, preprocessing
from fieldmark.training.phases import training_size

LOOKS = 2
"""So often each photo is shown as training varies it."""


def look(photos: str | Path, recipe: Recipe, count: int, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Write look.html with `count` photos into the new folder `out`. -> what `look --json` prints.

    Raises FieldmarkError for what a training on these photos with this recipe would be refused for before it begins.
    """
    recipe = named(recipe, reporter.say)
    catalog = chosen(photos, recipe)
    with torch.device("meta"):
        judging = preprocessing(network_of(recipe, 2, weights=False), recipe)
    size = training_size(recipe, judging["size"])
    counted = Counter(photo.label for photo in catalog.photos)
    chosen_ones = enumerate(some(catalog.photos, count, recipe.seed))
    shown = [_seen(catalog, photo, judging, size, recipe, number) for number, photo in chosen_ones]
    found = {
        "classes": {name: counted[name] for name in catalog.classes},
        "photos": len(catalog.photos),
        "batch": [recipe.batch, recipe.channels, size, size],
        "judged": [recipe.channels, judging["size"], judging["size"]],
        "warnings": list(catalog.warnings),
        "preview": [{name: row[name] for name in ("path", "label", "error") if name in row} for row in shown],
    }
    out.mkdir(parents=True)
    file = out / "look.html"
    facts = found | {"name": catalog.source.resolve().name, "shown": shown, "augment": recipe.augment}
    page = render("look.html.j2", facts, language(recipe.lang))
    file.write_text(page, encoding="utf-8", errors="replace")
    return found | {"files": [str(file)]}


def some(photos: tuple[Photo, ...], count: int, seed: int) -> list[Photo]:
    """So many photos, of as many classes as can be: drawn by the seed, class after class."""
    draw, of = random.Random(seed), defaultdict[str, list[Photo]](list)
    for photo in photos:
        of[photo.label].append(photo)
    piles = [draw.sample(own, min(count, len(own))) for own in of.values()]
    draw.shuffle(piles)
    rounds = (pile[k] for k in range(count) for pile in piles if k < len(pile))
    return [photo for _, photo in zip(range(count), rounds, strict=False)]


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What a person reads of it."""
    for name, n in found["classes"].items():
        yield f"{n:8,}  {name}"
    yield f"{found['photos']:8,}  photos"
    batch, judged = (" x ".join(map(str, found[name])) for name in ("batch", "judged"))
    yield f"A batch while training: {batch} (photos, channels, rows, columns) and {found['batch'][0]} labels"
    yield f"A photo when it is judged: {judged}"
    yield from (f"{photo['path']}: {photo['error']}" for photo in found["preview"] if "error" in photo)


def _seen(
    catalog: Catalog, photo: Photo, judging: dict[str, Any], size: int, recipe: Recipe, number: int
) -> dict[str, Any]:
    """The photo as it is judged, and as training varies it: data URIs; or why it cannot be read."""
    row: dict[str, Any] = {"path": photo.path, "label": photo.label}
    try:
        whole = decode(catalog.files.contents(photo.path), judging["size"], judging["interpolation"], photo.box)
    except (Unreadable, OSError) as problem:
        return row | {"error": str(problem)}
    vary, pixels = transform(recipe.augment, size, crop=1.0), torch.from_numpy(np.array(whole)).permute(2, 0, 1)
    pictures = [centre(whole, judging["size"])]
    for k in range(LOOKS):
        torch.default_generator.manual_seed(seed_of(recipe.seed, 1, k, number))
        pictures.append(vary(pixels).permute(1, 2, 0).numpy())
    mode = "L" if recipe.channels == 1 else "RGB"
    return row | {"pictures": [uri(Image.fromarray(one).convert(mode)) for one in pictures]}
