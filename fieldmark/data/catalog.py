"""The index of a dataset: path, label, split, group and box of each image."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fieldmark.core.text import printable, summarize_names
from fieldmark.data.image import Box
from fieldmark.data.split_names import class_key

if TYPE_CHECKING:
    from fieldmark.data.readers.files import FileTree

# HEIC and DICOM need an extra each; they are listed in any case, so that the audit reports them. Camera raw files are
# not, since many of them lie beside a JPEG of the same photo.
IMAGE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".heic", ".heif", ".hif", ".dcm", ".dicom"),
    )
)


@dataclass(frozen=True)
class Photo:
    """One image of a catalog.

    Attributes:
        path: below the catalog's root, with "/".
        split: train, val or test, if the dataset comes with a split.
        group: name of what it shares with other images (a patient, an object, a place).
        box: where on it the object is.
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
    """The images of a dataset, sorted by path, and its classes, sorted by name, each with at least one image.

    Undecodable bytes of names are kept as surrogates, so that `read_bytes` finds the file; show names by `printable`.

    Attributes:
        files: gives the bytes of the images.
        warnings: one line for each kind of file that was left out.
        manifest: the table that lists the images, if there is one beside them.
    """

    files: "FileTree" = field(compare=False)
    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    manifest: Path | None = None

    @property
    def root(self) -> Path:
        """The folder or archive that holds the images."""
        return self.files.root

    @property
    def source(self) -> Path:
        """What `read_catalog` was given: the manifest if there is one, else `root`."""
        return self.manifest or self.root

    def read_bytes(self, photo: Photo) -> bytes:
        """The bytes of the image's file; raises `UnreadableImageError`."""
        return self.files.read_bytes(photo.path)


def trainable_classes(photos: Iterable[Photo]) -> set[str]:
    """The classes with training images; all classes if the dataset has no training images at all."""
    photos = tuple(photos)
    labels = {photo.label for photo in photos if photo.split in (None, "train")}
    return labels or {photo.label for photo in photos}


def lost_class_warnings(lost: Iterable[str]) -> tuple[str, ...]:
    """One line if classes are left out because they have no training images."""
    return (
        (f"classes without photos to train on left out: {summarize_names(names)}",) if (names := sorted(lost)) else ()
    )


class MergedSpellings(NamedTuple):
    """Photos whose class is spelled in one way in all splits, and a line on each spelling that was changed."""

    photos: list[Photo]
    warnings: list[str]


def merge_spellings(photos: list[Photo]) -> MergedSpellings:
    """Give classes that other splits spell otherwise ("glass", "Glass") the spelling of the training images.

    Two spellings within one split are left as they are: they may be two classes.
    """
    splits_of: dict[str, set[str | None]] = defaultdict(set)
    for photo in photos:
        splits_of[photo.label].add(photo.split)
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in sorted(splits_of):
        spellings[class_key(label)].append(label)
    renamed: dict[str, str] = {}
    for labels in spellings.values():
        trained = [label for label in labels if "train" in splits_of[label]]
        splits = [split for label in labels for split in splits_of[label]]
        if len(labels) > 1 and len(trained) == 1 and len(splits) == len(set(splits)):
            renamed |= {label: trained[0] for label in labels if label != trained[0]}
    warnings = [
        f'class "{printable(label)}" of the {" and ".join(sorted(map(str, splits_of[label])))} images is taken as '
        f'"{printable(name)}" of the training images'
        for label, name in renamed.items()
    ]
    if not renamed:
        return MergedSpellings(photos, [])
    return MergedSpellings([replace(p, label=renamed.get(p.label, p.label)) for p in photos], warnings)


def similar_class_warnings(classes: Iterable[str]) -> Iterator[str]:
    """One line for each set of names that differ only in case, white space or Unicode form."""
    names_by_key = defaultdict(list)
    for name in sorted(classes):
        names_by_key[class_key(name)].append(f'"{printable(name)}"')
    for names in names_by_key.values():
        if len(names) > 1:
            yield f"classes {' and '.join(names)} differ only in case or white space: are they one class?"


def has_image_extension(name: str) -> bool:
    """Whether the file name ends in one of `IMAGE_EXTENSIONS`."""
    return "." in name and "." + name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
