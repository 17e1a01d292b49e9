"""table + what somebody decided about it (a split file, an edited decisions.csv) -> table to train on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Catalog, Photo, count, learnable, listing, printable
from fieldmark.data.readers import read, tables
from fieldmark.data.readers.files import Folder
from fieldmark.data.splits import read_split
from fieldmark.recipes.recipe import Recipe

COLUMNS = ("path", "label", "decision", "to", "finding", "detail")
"""Of decisions.csv; `decision` is empty (keep), exclude or relabel, `to` the class that a relabelled photo gets."""
_DECISIONS = ("", "keep", "exclude", "relabel")


def chosen(photos: str | Path, recipe: Recipe, boxes: bool = False) -> Catalog:
    """The photos that the recipe takes: grouped, cropped, split, excluded and relabelled as it says.

    With `boxes` those that are known stay, whether the recipe crops to them or not.
    """
    catalog = read(photos, group_by=recipe.group_by)
    if not (recipe.crop_boxes or boxes):
        catalog = replace(catalog, photos=tuple(replace(photo, box=None) for photo in catalog.photos))
    elif recipe.crop_boxes and not any(photo.box for photo in catalog.photos):
        raise FieldmarkError(f"--crop-boxes: the photos in {photos} come without boxes (a column `box` would say them)")
    if recipe.apply:
        catalog = decided(catalog, Path(recipe.apply))
    return resplit(catalog, Path(recipe.split_file)) if recipe.split_file else catalog


def decided(catalog: Catalog, file: Path) -> Catalog:
    """The catalog without what `file` excludes, and with the labels that it gives. No file of a photo is touched.

    Raises `FieldmarkError` where the file says what cannot be done.
    """
    name, excluded, labels = printable(str(file)), set[str](), dict[str, str]()
    known = {photo.path for photo in catalog.photos}
    for number, row in enumerate(tables.rows(Folder(file.parent), file.name), 1):
        path, decision, to = (str(row.get(column) or "") for column in ("path", "decision", "to"))
        decision = decision.strip().lower()
        where = f"{name}, decision {number}"
        if decision not in _DECISIONS:
            raise FieldmarkError(f"{where}: {printable(decision)!r} is none of exclude, relabel and keep (or nothing)")
        if decision and path not in known:
            raise FieldmarkError(f"{where}: {printable(path)} is not among the photos of {catalog.root}")
        if decision == "exclude":
            excluded.add(path)
        elif decision == "relabel":
            if not to:
                raise FieldmarkError(f"{where}: relabel {printable(path)} to what? Write the class under `to`")
            if labels.setdefault(path, to) != to:
                raise FieldmarkError(f"{where}: {printable(path)} cannot be both {printable(labels[path])} and {to}")
    photos = [
        replace(photo, label=labels.get(photo.path, photo.label))
        for photo in catalog.photos
        if photo.path not in excluded
    ]
    said = f"{name}: {count(len(excluded), 'photo')} excluded, {len(labels.keys() - excluded):,} relabelled"
    return _with(catalog, photos, [said])


def resplit(catalog: Catalog, file: Path) -> Catalog:
    """The photos that a split file names, on the sides and with the labels that it gives them."""
    name, rows = printable(str(file)), {row.path: row for row in read_split(file)}
    photos = [
        replace(photo, split=rows[photo.path].split, label=rows[photo.path].label or photo.label)
        for photo in catalog.photos
        if photo.path in rows
    ]
    if not photos:
        raise FieldmarkError(f"{name} names no photo of {catalog.root}: its paths must start there")
    left, gone = len(catalog.photos) - len(photos), len(rows) - len(photos)
    before = {photo.path: photo.label for photo in catalog.photos}
    changed = sum(photo.label != before[photo.path] for photo in photos)
    warnings = [f"{count(left, 'photo')} that {name} does not name left out"] if left else []
    warnings += [f"{count(gone, 'photo')} of {name} not found"] if gone else []
    warnings += [f"{count(changed, 'photo')} with the label of {name}, not of its folder"] if changed else []
    return _with(catalog, photos, warnings)


def blank(found: dict[str, Any], label: dict[str, str]) -> list[dict[str, Any]]:
    """The findings of `Audit.to_json` as rows of decisions.csv, every decision still open; `label` is path -> class."""
    rows = [("unreadable", photo["path"], photo["reason"], "") for photo in found["unreadable"]]
    for kind in ("conflicts", "leaks", "near_leaks", "duplicates", "near_duplicates"):
        rows += [(kind, path, listing(paths, 4), "") for paths in found[kind] for path in paths]
    rows += [("odd", photo["path"], f"{photo['kind']}: {photo['detail']}", "") for photo in found["odd"]]
    for photo in found["label_errors"] or []:
        rows.append(("label_errors", photo["path"], f"{photo['confidence']:.3f}", photo["suggested"]))
    columns = ("finding", "path", "detail", "to")
    listed = [dict(zip(columns, row, strict=True)) for row in rows]
    return [{"label": label[row["path"]], "decision": "", **row} for row in listed]


def _with(catalog: Catalog, photos: Sequence[Photo], warnings: list[str]) -> Catalog:
    known = learnable(photos)
    if len(known) < 2:
        raise FieldmarkError(f"{warnings[0] if warnings else catalog.root}: fewer than two classes are left")
    lost = sorted(set(catalog.classes) - known)
    warnings += [f"classes without photos to train on left out: {listing(lost)}"] if lost else []
    kept = tuple(photo for photo in photos if photo.label in known)
    return replace(catalog, photos=kept, classes=tuple(sorted(known)), warnings=(*catalog.warnings, *warnings))
