"""Whatever holds labelled photos -> table of photos: folders, archives, manifests and the formats of published sets."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Catalog, Photo, alike, count, learnable, listing, printable
from fieldmark.data.readers import arrays, cub, folders, huggingface, tables, webdataset
from fieldmark.data.readers.archives import opened
from fieldmark.data.readers.files import TABLES, Files, Folder
from fieldmark.data.readers.folders import Listed

_FORMATS: tuple[Callable[[Files], Listed | None], ...] = (
    arrays.listed,
    cub.listed,
    webdataset.listed,
    huggingface.listed,
)


def read(source: str | Path, least: int = 2, group_by: str | None = None) -> Catalog:
    """The photos of a folder, a zip or a tar, or of a manifest.

    In a folder or an archive may lie class folders; train/, val/ (valid/) and test/ of such; a manifest (tables.py);
    MNIST's or CIFAR's binary files; CUB-200-2011; a Hugging Face `datasets` folder; WebDataset shards. `group_by` is a
    column of the manifest, or a regular expression on the path: its first group, or all that it matches, names the
    photo's group. Decodes nothing and changes nothing. Raises `FieldmarkError` where fewer than `least` classes with
    photos can be found (two to learn, one to be evaluated), and for what is damaged or could do harm.
    """
    path = Path(source)
    if path.suffix.lower() in TABLES and path.is_file():
        found = tables.listed(Folder(path.parent), path.name, group_by)
        return replace(_catalog(found, least, group_by), manifest=path)
    files = opened(path)
    found = next((listed for format in _FORMATS if (listed := format(files))), None)
    if found is None:
        found = tables.beside(files, group_by) or folders.listed(files)
    return _catalog(found, least, group_by)


def _catalog(found: Listed, least: int, group_by: str | None) -> Catalog:
    labels = {photo.label for photo in found.photos}
    known = learnable(found.photos)
    if len(known) < least:
        raise folders.too_few(found.files, found.photos)
    lost = [f"classes without photos to train on left out: {listing(sorted(labels - known))}"] if labels - known else []
    photos, alone = found.photos, list[str]()
    if group_by and not any(photo.group is not None for photo in photos):
        photos = _grouped(photos, group_by)
        without = sum(photo.group is None for photo in photos)
        alone = [f"{count(without, 'photo')} in which --group-by finds no group"] if without else []
    kept = sorted((photo for photo in photos if photo.label in known), key=lambda photo: photo.path)
    warnings = (*found.warnings, *lost, *alone, *alike(known))
    return Catalog(found.files, tuple(kept), tuple(sorted(known)), warnings)


def _grouped(photos: list[Photo], pattern: str) -> list[Photo]:
    """Photos with the groups that a regular expression finds in their paths; where it finds nothing is none."""
    try:
        matches = [re.search(pattern, photo.path) for photo in photos]
    except re.error as error:
        raise FieldmarkError(f"--group-by {pattern} is no column and no regular expression ({error})") from None
    if not any(matches):
        shown = printable(photos[0].path)
        raise FieldmarkError(f"--group-by {pattern} is no column, and matches no path (as {shown}): check the pattern")
    return [
        replace(photo, group=match[1 if match.re.groups else 0]) if match else photo
        for photo, match in zip(photos, matches, strict=True)
    ]
