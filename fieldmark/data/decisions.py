"""table + what somebody decided about it (a split file, an edited decisions.csv) -> table to train on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo, trainable_classes
from fieldmark.data.readers import read_catalog, tables
from fieldmark.data.readers.files import Folder
from fieldmark.data.splits import read_split_file
from fieldmark.recipes.recipe import Recipe

DECISION_COLUMNS = ("path", "label", "decision", "to", "finding", "detail")
"""Of decisions.csv; `decision` is empty (keep), exclude or relabel, `to` the class that a relabelled photo gets."""
_DECISION_VALUES = ("", "keep", "exclude", "relabel")


def load_recipe_catalog(photos: str | Path, recipe: Recipe, keep_boxes: bool = False) -> Catalog:
    """The photos that the recipe takes: grouped, cropped, split, excluded and relabelled as it says.

    With `boxes` those that are known stay, whether the recipe crops to them or not.
    """
    catalog = read_catalog(photos, group_by=recipe.group_by)
    if not (recipe.crop_boxes or keep_boxes):
        catalog = replace(catalog, photos=tuple(replace(photo, box=None) for photo in catalog.photos))
    elif recipe.crop_boxes and not any(photo.box for photo in catalog.photos):
        raise FieldmarkError(f"--crop-boxes: the photos in {photos} come without boxes (a column `box` would say them)")
    if recipe.apply:
        catalog = apply_decisions(catalog, Path(recipe.apply))
    return apply_split_file(catalog, Path(recipe.split_file)) if recipe.split_file else catalog


def apply_decisions(catalog: Catalog, file: Path) -> Catalog:
    """The catalog without what `file` excludes, and with the labels that it gives. No file of a photo is touched.

    Raises `FieldmarkError` where the file says what cannot be done.
    """
    name, excluded, labels = printable(str(file)), set[str](), dict[str, str]()
    known_paths = {photo.path for photo in catalog.photos}
    for number, row in enumerate(tables.read_rows(Folder(file.parent), file.name), 1):
        path, decision, new_label = (str(row.get(column) or "") for column in ("path", "decision", "to"))
        decision = decision.strip().lower()
        where = f"{name}, decision {number}"
        if decision not in _DECISION_VALUES:
            raise FieldmarkError(f"{where}: {printable(decision)!r} is none of exclude, relabel and keep (or nothing)")
        if decision and path not in known_paths:
            raise FieldmarkError(f"{where}: {printable(path)} is not among the photos of {catalog.root}")
        if decision == "exclude":
            excluded.add(path)
        elif decision == "relabel":
            if not new_label:
                raise FieldmarkError(f"{where}: relabel {printable(path)} to what? Write the class under `to`")
            if labels.setdefault(path, new_label) != new_label:
                raise FieldmarkError(
                    f"{where}: {printable(path)} cannot be both {printable(labels[path])} and {new_label}"
                )
    photos = [
        replace(photo, label=labels.get(photo.path, photo.label))
        for photo in catalog.photos
        if photo.path not in excluded
    ]
    summary = f"{name}: {pluralize(len(excluded), 'photo')} excluded, {len(labels.keys() - excluded):,} relabelled"
    return _replace_images(catalog, photos, [summary])


def apply_split_file(catalog: Catalog, file: Path) -> Catalog:
    """The photos that a split file names, on the sides and with the labels that it gives them."""
    name, rows = printable(str(file)), {row.path: row for row in read_split_file(file)}
    photos = [
        replace(photo, split=rows[photo.path].split, label=rows[photo.path].label or photo.label)
        for photo in catalog.photos
        if photo.path in rows
    ]
    if not photos:
        raise FieldmarkError(f"{name} names no photo of {catalog.root}: its paths must start there")
    n_unlisted, n_missing = len(catalog.photos) - len(photos), len(rows) - len(photos)
    labels_before = {photo.path: photo.label for photo in catalog.photos}
    n_relabelled = sum(photo.label != labels_before[photo.path] for photo in photos)
    warnings = [f"{pluralize(n_unlisted, 'photo')} that {name} does not name left out"] if n_unlisted else []
    warnings += [f"{pluralize(n_missing, 'photo')} of {name} not found"] if n_missing else []
    warnings += (
        [f"{pluralize(n_relabelled, 'photo')} with the label of {name}, not of its folder"] if n_relabelled else []
    )
    return _replace_images(catalog, photos, warnings)


def _replace_images(catalog: Catalog, photos: Sequence[Photo], warnings: list[str]) -> Catalog:
    trainable = trainable_classes(photos)
    if len(trainable) < 2:
        raise FieldmarkError(f"{warnings[0] if warnings else catalog.root}: fewer than two classes are left")
    lost_classes = sorted(set(catalog.classes) - trainable)
    warnings += (
        [f"classes without photos to train on left out: {summarize_names(lost_classes)}"] if lost_classes else []
    )
    kept = tuple(photo for photo in photos if photo.label in trainable)
    return replace(catalog, photos=kept, classes=tuple(sorted(trainable)), warnings=(*catalog.warnings, *warnings))
