"""The images of a teaching session: of labelled datasets, runs and folders without labels, under one kind of name."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.catalog import Catalog
from fieldmark.data.image import read_file
from fieldmark.data.locate import ContainedImage, ImageSource, UnreadableSource, find_images
from fieldmark.data.readers.files import Folder


@dataclass(frozen=True)
class TeachingImages:
    """Images by name, in the order of their names.

    Attributes:
        sources: name -> where the image is.
        labels: name -> class, of those that are labelled already.
        tests: names of those that belong to the test split of their dataset.
    """

    sources: Mapping[str, ImageSource]
    labels: Mapping[str, str]
    tests: frozenset[str] = frozenset()

    def read_bytes(self, name: str) -> bytes:
        """The bytes of an image's file; raises `UnreadableImageError`."""
        source = self.sources[name]
        if isinstance(source, bytes):
            return source
        return read_file(Path(source)) if isinstance(source, str) else source.read()

    def file_of(self, name: str) -> Path | None:
        """The file of an image; None if it lies in an archive."""
        source = self.sources[name]
        return Path(os.path.abspath(source)) if isinstance(source, str) else None

    def signature(self, name: str) -> tuple[int, int]:
        """Size and time of change of the image's file, or of its archive: others mean other content."""
        source = self.sources[name]
        if isinstance(source, ContainedImage):
            source = source.container
        file = source.catalog.root if isinstance(source, _CatalogImage) else source if isinstance(source, str) else ""
        try:
            status = os.stat(file)
        except (OSError, ValueError):
            return 0, 0
        return status.st_size, status.st_mtime_ns


def from_catalog(catalog: Catalog) -> TeachingImages:
    """The images of a dataset with their labels; names are paths below its root."""
    is_folder = isinstance(catalog.files, Folder)
    sources: dict[str, ImageSource] = {}
    for photo in catalog.photos:
        path = os.path.join(catalog.root, photo.path)
        sources[photo.path] = path if is_folder else _CatalogImage(catalog, photo.path)  # type: ignore[assignment]
    labels = {photo.path: photo.label for photo in catalog.photos}
    tests = frozenset(photo.path for photo in catalog.photos if photo.split == "test")
    return TeachingImages(sources, labels, tests)


@dataclass(frozen=True)
class _CatalogImage:
    """An image in an archive or a table of a dataset."""

    catalog: Catalog
    path: str

    def read(self) -> bytes:
        return self.catalog.files.read_bytes(self.path)


def from_folder(source: str | Path) -> TeachingImages:
    """The images of a folder or an archive, without labels; names are paths below it.

    Raises:
        FieldmarkError: there are none.
    """
    if not os.path.exists(source):
        raise FieldmarkError(f"{printable(str(source))} is missing: give the folder that holds the images")
    prefix = os.path.join(os.path.normpath(source), "")
    found = dict(_find(str(source), prefix))
    if not found:
        raise FieldmarkError(f"{printable(str(source))} has no images")
    return TeachingImages({name: found[name] for name in sorted(found)}, {})


def _find(source: str, prefix: str) -> Iterator[tuple[str, ImageSource]]:
    for name, image in find_images([os.path.normpath(source)]):
        if isinstance(image, UnreadableSource) and name == os.path.normpath(source):
            raise FieldmarkError(f"{printable(source)} {image.reason}")
        yield name.removeprefix(prefix).replace(os.sep, "/"), image


def merge(first: TeachingImages, other: TeachingImages, other_name: str) -> TeachingImages:
    """Both; names of `other` begin with `other_name`, which is made unlike all names of `first`."""
    tops = {name.partition("/")[0] for name in first.sources}
    prefix, number = other_name, 2
    while prefix in tops:
        prefix, number = f"{other_name}-{number}", number + 1
    return TeachingImages(
        {**first.sources, **{f"{prefix}/{name}": image for name, image in other.sources.items()}},
        {**first.labels, **{f"{prefix}/{name}": label for name, label in other.labels.items()}},
        first.tests | {f"{prefix}/{name}" for name in other.tests},
    )
