"""The table of photos: which there are, under which class, and what was said about each."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fieldmark.core.text import printable
from fieldmark.data.image import Box

if TYPE_CHECKING:
    from fieldmark.data.readers.files import FileTree

# HEIC is a photo that cannot be read here: listed, so that the audit can say so.
IMAGE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".heic", ".heif"),
    )
)
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the sides of a split -> what we call them."""


@dataclass(frozen=True)
class Photo:
    """One photo: `path` below the catalog's root, with "/"; `split` is train, val or test where it is given.

    `group` names what it shares with others (a patient, an object, a place), `box` says where on it the thing is.
    """

    path: str
    label: str
    split: str | None = None
    group: str | None = None
    box: Box | None = None


@dataclass(frozen=True)
class UnreadableFile:
    """A file that cannot be read or decoded, and the reason as text for people."""

    path: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return {"path": self.path, "reason": self.reason}


@dataclass(frozen=True)
class Catalog:
    """All photos, sorted by path; `classes` are sorted too, and each has at least one photo.

    Names keep undecodable bytes as surrogates, so that `contents` always finds them; print them by `printable`.
    """

    files: "FileTree" = field(compare=False)
    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    manifest: Path | None = None

    @property
    def root(self) -> Path:
        """The folder or archive in which the photos lie."""
        return self.files.root

    @property
    def source(self) -> Path:
        """What `read` was given: the manifest, where there is one beside them."""
        return self.manifest or self.root

    def read_bytes(self, photo: Photo) -> bytes:
        """The file's bytes; raises `Unreadable`."""
        return self.files.read_bytes(photo.path)


def trainable_classes(photos: Iterable[Photo]) -> set[str]:
    """The classes that have photos to train on; all of them where there is nothing to train on but to evaluate."""
    photos = tuple(photos)
    labels = {photo.label for photo in photos if photo.split in (None, "train")}
    return labels or {photo.label for photo in photos}


def similar_class_warnings(classes: Iterable[str]) -> Iterator[str]:
    """A warning for every set of names that a person would take for one."""
    names_by_key = defaultdict(list)
    for name in sorted(classes):
        names_by_key["".join(unicodedata.normalize("NFKC", name).split()).casefold()].append(f'"{printable(name)}"')
    for names in names_by_key.values():
        if len(names) > 1:
            yield f"classes {' and '.join(names)} differ only in case or white space: are they one class?"


def has_image_extension(name: str) -> bool:
    """By its extension."""
    return "." in name and "." + name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
