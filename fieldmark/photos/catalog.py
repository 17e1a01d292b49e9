"""folder -> table of photos: which there are, and under which class and which given split they lie."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fieldmark.errors import FieldmarkError

# HEIC is a photo that cannot be read here: listed, so that the audit can say so.
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".heic", ".heif"),
    )
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_LAYOUT = "put the photos of each class into a folder named after it, as in {folder}/cat/1.jpg and {folder}/dog/2.jpg"


@dataclass(frozen=True)
class Photo:
    """One file: `path` below the catalog's root, with "/"; `split` is train, val or test where the folders give it."""

    path: str
    label: str
    split: str | None = None


@dataclass(frozen=True)
class Catalog:
    """All photos of a folder, sorted by path; `classes` are sorted too, and each has at least one photo.

    Names keep undecodable bytes as surrogates, so that `root / photo.path` always opens; print them by `printable`.
    """

    root: Path
    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def read(folder: str | Path, least: int = 2) -> Catalog:
    """The photos of class folders, or of train/, val/ (valid/) and test/ folders that hold class folders.

    Decodes nothing and changes nothing. A class is a folder with photos in it, however deep they lie; hidden files
    and the litter of operating systems are passed over in silence. Raises `FieldmarkError` where fewer
    than `least` classes with photos can be found: two to learn, one to be evaluated.
    """
    root = Path(folder)
    folders, files = _entries(root)
    if not folders:
        raise FieldmarkError(_no_classes(root, files))
    splits = _given_splits(root, folders)
    beside = [name for name in folders if name not in splits] if splits else []
    loose = [root / name for name in files]
    photos: list[Photo] = []
    empty: set[str] = set()
    for top, split in [(root / name, split) for name, split in splits.items()] or [(root, None)]:
        labels, files = _entries(top)
        loose += [top / name for name in files if splits]
        for label in labels:
            found = list(_files(top / label))
            inside = [Photo(path.relative_to(root).as_posix(), label, split) for path in found if _is_photo(path)]
            photos += inside
            loose += [path for path in found if not _is_photo(path)]
            if not inside and split in (None, "train"):
                empty.add(label)

    labels = {photo.label for photo in photos}
    known = learnable(photos)
    if len(known) < least:
        raise FieldmarkError(_too_few(root, known))
    astray = sum(map(_is_photo, loose))
    others = sorted(path.name for path in loose if not _is_photo(path))
    warnings = (
        astray and f"{count(astray, 'photo')} outside the class folders left out",
        others and f"{count(len(others), 'file')} without a photo's extension left out: {listing(others)}",
        beside and f"folders beside those of the splits left out: {listing(beside)}",
        empty - labels and f"class folders without photos left out: {listing(sorted(empty - labels))}",
        labels - known and f"classes without photos to train on left out: {listing(sorted(labels - known))}",
        *_alike(known),
    )
    kept = sorted((photo for photo in photos if photo.label in known), key=lambda photo: photo.path)
    return Catalog(root, tuple(kept), tuple(sorted(known)), tuple(text for text in warnings if isinstance(text, str)))


def learnable(photos: Iterable[Photo]) -> set[str]:
    """The classes that have photos to train on; all of them where there is nothing to train on but to evaluate."""
    photos = tuple(photos)
    trained = {photo.label for photo in photos if photo.split in (None, "train")}
    return trained or {photo.label for photo in photos}


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


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of a folder's subfolders and of its files, sorted, without hidden ones and litter."""
    name = printable(str(folder))
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not _is_litter(entry.name))
    except FileNotFoundError:
        raise FieldmarkError(f"{name}: no such folder; give the folder that holds the photos") from None
    except NotADirectoryError:
        raise FieldmarkError(f"{name} is a file; give the folder of photos (unpack an archive first)") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FieldmarkError(f"{name} cannot be read ({reason}); check the path and its access") from error
    return [name for name, folder in found if folder], [name for name, folder in found if not folder]


def _files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below a folder; links are followed, except in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    folders, files = _entries(folder)
    yield from (folder / name for name in files)
    for name in folders:
        yield from _files(folder / name, above | {real})


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _given_splits(root: Path, folders: list[str]) -> dict[str, str]:
    """Folder name -> split; empty where the folders are classes (one of vehicles may well be called "train")."""
    named = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    meant = len(set(named.values())) > 1 or len(named) == len(folders)
    return named if meant and any(_entries(root / name)[0] for name in named) else {}


def _no_classes(root: Path, files: list[str]) -> str:
    name = printable(str(root))
    found = "photos but no class folders" if any(_is_photo(root / file) for file in files) else "no photos"
    return f"{name} holds {found}: " + _LAYOUT.format(folder=name)


def _too_few(root: Path, known: set[str]) -> str:
    name = printable(str(root))
    if not known:
        return f"{name} holds folders without photos: " + _LAYOUT.format(folder=name)
    (only,) = known
    if (root / only).is_dir() and len(_entries(root / only)[0]) > 1:
        inner = printable(str(root / only))
        return f"{name} holds photos in one folder only: give {inner} if the folders in it are the classes"
    found = f"photos of one class only ({printable(only)}), and a classifier needs two: "
    return f"{name} holds {found}" + _LAYOUT.format(folder=name)


def _alike(classes: set[str]) -> Iterator[str]:
    """A warning for every set of names that a person would take for one."""
    alike = defaultdict(list)
    for name in sorted(classes):
        alike["".join(unicodedata.normalize("NFKC", name).split()).casefold()].append(f'"{printable(name)}"')
    for names in alike.values():
        if len(names) > 1:
            yield f"classes {' and '.join(names)} differ only in case or white space: are they one class?"
