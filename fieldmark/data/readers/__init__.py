"""Readers of labelled images: folders, archives, manifests and the formats of published datasets.

A new format is a module with `list_images(files)` and a row in `_FORMAT_READERS`.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import (
    Catalog,
    Photo,
    lost_class_warnings,
    merge_spellings,
    similar_class_warnings,
    trainable_classes,
)
from fieldmark.data.readers import arrays, cub, folders, huggingface, tables, webdataset
from fieldmark.data.readers.archives import open_container
from fieldmark.data.readers.files import MANIFEST_SUFFIXES, FileTree, Folder, ReaderResult

# Each returns None if the files are in another format. Manifests and class folders are tried last.
_FORMAT_READERS: tuple[Callable[[FileTree], ReaderResult | None], ...] = (
    arrays.list_images,
    cub.list_images,
    webdataset.list_images,
    huggingface.list_images,
)


def read_catalog(source: str | Path, min_classes: int = 2, group_by: str | None = None) -> Catalog:
    """The images of a folder, a zip, a tar or a manifest. Decodes no image and changes no file.

    A folder or an archive holds class folders; train/, val/ (valid/) and test/ with class folders; a manifest
    (tables.py); MNIST's or CIFAR's binary files; CUB-200-2011; a Hugging Face `datasets` folder; or WebDataset shards.

    Args:
        min_classes: two to train, one to evaluate.
        group_by: a column of the manifest, or a regular expression on the path, of which the first group (or else the
            whole match) names the image's group.

    Raises:
        FieldmarkError: there are fewer classes with images, or the files are damaged or unsafe.
    """
    path = Path(source)
    if path.suffix.lower() in (*MANIFEST_SUFFIXES, ".txt") and path.is_file():
        result = tables.read_manifest(Folder(path.parent), path.name, group_by)
        return replace(_build_catalog(result, min_classes, group_by), manifest=path)
    files = open_container(path)
    result = next((listed for format in _FORMAT_READERS if (listed := format(files))), None)
    if result is None:
        result = tables.find_manifests(files, group_by) or _read_folders(files, min_classes, group_by)
    return _build_catalog(result, min_classes, group_by)


def _read_folders(files: FileTree, min_classes: int, group_by: str | None) -> ReaderResult:
    """The images of the class folders; where the folders give no classes, those of a table beside them."""
    try:
        result = folders.list_images(files, min_classes)
    except FieldmarkError:
        if table := tables.find_label_tables(files, group_by):
            return table
        raise
    if len(trainable_classes(result.photos)) < max(2, min_classes):
        return tables.find_label_tables(files, group_by) or result
    return result


def _build_catalog(result: ReaderResult, min_classes: int, group_by: str | None) -> Catalog:
    spellings = merge_spellings(result.photos)
    labels = {photo.label for photo in spellings.photos}
    trainable = trainable_classes(spellings.photos)
    if len(trainable) < min_classes:
        raise folders.too_few_classes_error(result.files, spellings.photos)
    photos, ungrouped_warnings = spellings.photos, list[str]()
    if group_by and not any(photo.group is not None for photo in photos):
        photos = _group_by_pattern(photos, group_by)
        n_ungrouped = sum(photo.group is None for photo in photos)
        ungrouped_warnings = (
            [f"{pluralize(n_ungrouped, 'photo')} not matched by --group-by: each is its own group"]
            if n_ungrouped
            else []
        )
    kept = sorted((photo for photo in photos if photo.label in trainable), key=lambda photo: photo.path)
    warnings = (
        *filter(None, [result.files.note]),
        *result.warnings,
        *spellings.warnings,
        *lost_class_warnings(labels - trainable),
        *ungrouped_warnings,
        *similar_class_warnings(trainable),
    )
    return Catalog(result.files, tuple(kept), tuple(sorted(trainable)), warnings)


def _group_by_pattern(photos: list[Photo], pattern: str) -> list[Photo]:
    """The images with the groups that a regular expression finds in their paths; None where it does not match."""
    try:
        matches = [re.search(pattern, photo.path) for photo in photos]
    except re.error as error:
        raise FieldmarkError(f"--group-by {pattern} is no column and no regular expression ({error})") from None
    if not any(matches):
        example_path = printable(photos[0].path)
        raise FieldmarkError(
            f"--group-by {pattern} is no column, and matches no path (as {example_path}): check the pattern"
        )
    return [
        replace(photo, group=match[1 if match.re.groups else 0]) if match else photo
        for photo, match in zip(photos, matches, strict=True)
    ]
