"""The table of photos: which there are, under which class, and what was said about each."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fieldmark.data.image import Box

if TYPE_CHECKING:
    from fieldmark.data.readers.files import Files

# HEIC is a photo that cannot be read here: listed, so that the audit can say so.
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".heic", ".heif"),
    )
)
SPLITS = {
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
class Catalog:
    """All photos, sorted by path; `classes` are sorted too, and each has at least one photo.

    Names keep undecodable bytes as surrogates, so that `contents` always finds them; print them by `printable`.
    """

    files: "Files" = field(compare=False)
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

    def contents(self, photo: Photo) -> bytes:
        """The file's bytes; raises `Unreadable`."""
        return self.files.contents(photo.path)


def learnable(photos: Iterable[Photo]) -> set[str]:
    """The classes that have photos to train on; all of them where there is nothing to train on but to evaluate."""
    photos = tuple(photos)
    trained = {photo.label for photo in photos if photo.split in (None, "train")}
    return trained or {photo.label for photo in photos}


def alike(classes: Iterable[str]) -> Iterator[str]:
    """A warning for every set of names that a person would take for one."""
    found = defaultdict(list)
    for name in sorted(classes):
        found["".join(unicodedata.normalize("NFKC", name).split()).casefold()].append(f'"{printable(name)}"')
    for names in found.values():
        if len(names) > 1:
            yield f"classes {' and '.join(names)} differ only in case or white space: are they one class?"


def is_photo(name: str) -> bool:
    """By its extension."""
    return "." in name and "." + name.rpartition(".")[2].lower() in EXTENSIONS


def printable(name: str) -> str:
    """A file or class name that any UTF-8 stream takes: undecodable bytes become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def count(n: int, noun: str) -> str:
    """1 photo, 2 photos, 2,527 photos."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listing(names: Collection[str], most: int = 5) -> str:
    """Names for a sentence: the first few, then how many more."""
    shown = ", ".join(printable(name) for name in islice(names, most))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
