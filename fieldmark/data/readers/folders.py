"""class folders, or train/, val/ and test/ of them -> table of photos."""

from collections.abc import Iterator
from typing import NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import SPLITS, Photo, count, is_photo, learnable, listing, printable
from fieldmark.data.readers.files import Files, within

_LAYOUT = "put the photos of each class into a folder named after it, as in {folder}/cat/1.jpg and {folder}/dog/2.jpg"


class Listed(NamedTuple):
    """What a reader found: the photos, where their bytes are, and what somebody should know."""

    files: Files
    photos: list[Photo]
    warnings: list[str]


def listed(files: Files) -> Listed:
    """The photos of class folders; a class is a folder with photos in it, however deep they lie.

    Hidden files and the litter of operating systems are passed over in silence; all else that is left out is said.
    """
    folders, top = files.entries()
    if not folders:
        raise FieldmarkError(_no_classes(files, top))
    splits = _given_splits(files, folders)
    beside = [name for name in folders if name not in splits] if splits else []
    loose, photos, empty = list(top), list[Photo](), set[str]()
    for folder, split in splits.items() or [("", None)]:
        labels, strays = files.entries(folder)
        loose += strays if splits else []
        for label in labels:
            found = list(files.below(within(folder, label)))
            inside = [Photo(path, label, split) for path in found if is_photo(path)]
            photos += inside
            loose += [path for path in found if not is_photo(path)]
            if not inside and split in (None, "train"):
                empty.add(label)
    empty -= {photo.label for photo in photos}
    return Listed(files, photos, list(_left_out(loose, beside, sorted(empty))))


def too_few(files: Files, photos: list[Photo]) -> FieldmarkError:
    """Why these are not enough classes, and what to do about it."""
    name, known = printable(str(files.root)), learnable(photos)
    if not known:
        return FieldmarkError(f"{name} holds folders without photos: " + _LAYOUT.format(folder=name))
    (only,) = known
    inner = files.entries(only)[0] if only in files.entries()[0] else []
    if len(inner) > 1:
        inside = printable(str(files.root / only))
        return FieldmarkError(
            f"{name} holds photos in one folder only: give {inside} if the folders in it are the classes"
        )
    found = f"photos of one class only ({printable(only)}), and a classifier needs two: "
    return FieldmarkError(f"{name} holds {found}" + _LAYOUT.format(folder=name))


def _left_out(loose: list[str], beside: list[str], empty: list[str]) -> Iterator[str]:
    others = sorted(path.rpartition("/")[2] for path in loose if not is_photo(path))
    if astray := len(loose) - len(others):
        yield f"{count(astray, 'photo')} outside the class folders left out"
    if others:
        yield f"{count(len(others), 'file')} without a photo's extension left out: {listing(others)}"
    if beside:
        yield f"folders beside those of the splits left out: {listing(beside)}"
    if empty:
        yield f"class folders without photos left out: {listing(empty)}"


def _given_splits(files: Files, folders: list[str]) -> dict[str, str]:
    """Folder name -> split; empty where the folders are classes (one of vehicles may well be called "train")."""
    named = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    meant = len(set(named.values())) > 1 or len(named) == len(folders)
    return named if meant and any(files.entries(name)[0] for name in named) else {}


def _no_classes(files: Files, top: list[str]) -> str:
    name = printable(str(files.root))
    found = "photos but no class folders" if any(map(is_photo, top)) else "no photos"
    return f"{name} holds {found}: " + _LAYOUT.format(folder=name)
