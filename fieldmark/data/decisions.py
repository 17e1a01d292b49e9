"""The catalog that a recipe selects: grouped, cropped, and changed by an edited decisions.csv and a split file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo, lost_class_warnings, trainable_classes
from fieldmark.data.readers import read_catalog, tables
from fieldmark.data.splits import parse_split_rows
from fieldmark.recipes.recipe import Recipe

DECISION_COLUMNS = ("path", "label", "decision", "to", "finding", "detail")
"""Columns of decisions.csv: `decision` is empty (keep), exclude or relabel, `to` the new class if relabelled."""
_ACTIONS = ("", "keep", "exclude", "relabel")


def load_recipe_catalog(photos: str | Path, recipe: Recipe, keep_boxes: bool = False) -> Catalog:
    """The images with the recipe's `group_by`, `crop_boxes`, `apply` and `split_file` applied.

    With `keep_boxes` boxes are kept whether the recipe crops to them or not.

    Raises:
        FieldmarkError: the images or a file cannot be read, or there are no boxes to crop to.
    """
    catalog = read_catalog(photos, group_by=recipe.group_by)
    if not (recipe.crop_boxes or keep_boxes):
        catalog = replace(catalog, photos=tuple(replace(photo, box=None) for photo in catalog.photos))
    elif recipe.crop_boxes and not any(photo.box for photo in catalog.photos):
        raise FieldmarkError(
            f"--crop-boxes: the photos in {photos} come without boxes (add a column `box` to the manifest)"
        )
    if recipe.apply:
        catalog = apply_decisions(catalog, Path(recipe.apply))
    return apply_split_file(catalog, Path(recipe.split_file)) if recipe.split_file else catalog


def apply_decisions(catalog: Catalog, file: Path) -> Catalog:
    """The catalog without the excluded images, and with the new labels. No file is changed.

    Raises:
        FieldmarkError: a row is invalid, names an unknown image, or contradicts another one.
    """
    name, excluded, labels = printable(str(file)), set[str](), dict[str, str]()
    known_paths = {photo.path for photo in catalog.photos}
    table = tables.read_table_file(file)
    if table.rows and not {"path", "decision"} <= table.rows[0].keys():
        columns = summarize_names(sorted(map(printable, table.rows[0])))
        raise FieldmarkError(f"{name} has the columns {columns}; decisions need path and decision")
    for number, row in enumerate(table.rows, 1):
        try:
            decision = _parse_decision(row, table, known_paths, catalog.classes)
            if decision.action and decision.path not in known_paths:
                raise ValueError(f"{printable(decision.path)} is not among the photos of {catalog.root}")
            if decision.action == "exclude":
                excluded.add(decision.path)
            elif decision.action == "relabel":
                label = labels.setdefault(decision.path, decision.new_label)
                if label != decision.new_label:
                    raise ValueError(
                        f"{printable(decision.path)} cannot be both {printable(label)} and {decision.new_label}"
                    )
        except ValueError as error:
            raise FieldmarkError(f"{name}, decision {number}: {error}") from None
    photos = [
        replace(photo, label=labels.get(photo.path, photo.label))
        for photo in catalog.photos
        if photo.path not in excluded
    ]
    summary = f"{name}: {pluralize(len(excluded), 'photo')} excluded, {len(labels.keys() - excluded):,} relabelled"
    return _replace_images(catalog, photos, [*(f"{name}: {note}" for note in table.notes), summary])


class _Decision(NamedTuple):
    path: str
    action: str  # one of _ACTIONS
    new_label: str


def _parse_decision(row: dict[str, Any], table: tables.Table, paths: set[str], classes: Sequence[str]) -> _Decision:
    path, action, new_label = (str(row.get(column) or "") for column in ("path", "decision", "to"))
    path = table.name_on_disk(path, paths.__contains__)
    new_label = table.name_on_disk(new_label, classes.__contains__)
    action = action.strip().lower()
    if action not in _ACTIONS:
        raise ValueError(f"{printable(action)!r} is none of exclude, relabel and keep (or nothing)")
    if action == "relabel" and not new_label:
        raise ValueError(f"relabel {printable(path)} to what? Write the class under `to`")
    return _Decision(path, action, new_label)


def apply_split_file(catalog: Catalog, file: Path) -> Catalog:
    """The images that a split file lists, with its splits and labels."""
    name, (rows, notes) = printable(str(file)), _read_split_rows(catalog, file)
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
    warnings = [f"{name}: {note}" for note in notes]
    warnings += [f"{pluralize(n_unlisted, 'photo')} not listed in {name} left out"] if n_unlisted else []
    warnings += [f"{pluralize(n_missing, 'photo')} of {name} not found"] if n_missing else []
    warnings += (
        [f"{pluralize(n_relabelled, 'photo')} with the label of {name}, not of its folder"] if n_relabelled else []
    )
    return _replace_images(catalog, photos, warnings)


def _read_split_rows(catalog: Catalog, file: Path) -> tuple[dict[str, Photo], tuple[str, ...]]:
    """The rows of a split file by path, and lines on how it was read: a spreadsheet may have saved it otherwise."""
    table, paths = tables.read_table_file(file), {photo.path for photo in catalog.photos}
    rows = parse_split_rows(file, table.rows)
    renamed = (
        replace(
            row,
            path=table.name_on_disk(row.path, paths.__contains__),
            label=table.name_on_disk(row.label, catalog.classes.__contains__),
        )
        for row in rows
    )
    return {row.path: row for row in renamed}, table.notes


def _replace_images(catalog: Catalog, photos: Sequence[Photo], warnings: list[str]) -> Catalog:
    trainable = trainable_classes(photos)
    if len(trainable) < 2:
        raise FieldmarkError(f"{warnings[0] if warnings else catalog.root}: fewer than two classes are left")
    warnings += lost_class_warnings(set(catalog.classes) - trainable)
    kept = tuple(photo for photo in photos if photo.label in trainable)
    return replace(catalog, photos=kept, classes=tuple(sorted(trainable)), warnings=(*catalog.warnings, *warnings))
