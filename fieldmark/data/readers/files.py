"""File trees: names and bytes of the files in a folder, an archive or a table; and what a reader returns."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data import image
from fieldmark.data.catalog import Photo, has_image_extension
from fieldmark.data.formats.signatures import SIGNATURE_BYTES, looks_like_image
from fieldmark.data.image import UnreadableImageError

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_SNIFFED = 64
"""Files without a known extension that are looked into before a folder counts as one without images."""
_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
FolderListing = tuple[list[str], list[str]]
"""The names of a folder's subfolders and of its files, sorted, without those that `is_ignored`."""


class FileTree(Protocol):
    """Files below `root`; paths are written with "/".

    Attributes:
        note: a line for people on how the names were read, if that is not obvious.
    """

    root: Path
    note: str

    def list_folder(self, folder: str = "") -> FolderListing:
        """The content of a folder."""
        ...

    def walk(self, folder: str = "") -> Iterator[str]:
        """The paths of all files in a folder and in its subfolders."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """A file's bytes; raises `UnreadableImageError`. Safe in threads."""
        ...


class ReaderResult(NamedTuple):
    """What a reader returns.

    Attributes:
        files: gives the bytes of the images.
        warnings: one line for each kind of file that was left out.
    """

    files: FileTree
    photos: list[Photo]
    warnings: list[str]


class VirtualTree:
    """A file tree of one level of folders, which are shards or tables; a subclass says what is in each."""

    note = ""

    def __init__(self, root: Path, folders: Iterable[str]) -> None:
        self.root, self.folders = root, list(folders)

    def file_names(self, folder: str) -> Iterable[str]:
        """The names of the files in a folder."""
        raise NotImplementedError

    def list_folder(self, folder: str = "") -> FolderListing:
        if not folder:
            return sorted(self.folders), []
        return [], sorted(self.file_names(folder)) if folder in self.folders else []

    def walk(self, folder: str = "") -> Iterator[str]:
        for name in self.folders:
            if folder in ("", name):
                yield from (f"{name}/{file}" for file in self.file_names(name))


class Folder:
    """A folder on the disk; links are followed, except in circles."""

    note = ""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list_folder(self, folder: str = "") -> FolderListing:
        path = self.root / folder
        name = printable(str(path))
        try:
            with os.scandir(path) as entries:
                entries_found = sorted(
                    (entry.name, _is_folder(entry)) for entry in entries if not is_ignored(entry.name)
                )
        except FileNotFoundError:
            raise FieldmarkError(f"{name}: no such folder; give the folder that holds the photos") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FieldmarkError(f"{name} cannot be read ({reason}); check the path and its access") from error
        return [name for name, inner in entries_found if inner], [name for name, inner in entries_found if not inner]

    def walk(self, folder: str = "", ancestors: frozenset[str] = frozenset()) -> Iterator[str]:
        real = os.path.realpath(self.root / folder)
        if real in ancestors:
            return
        folders, files = self.list_folder(folder)
        yield from (join_path(folder, name) for name in files)
        for name in folders:
            yield from self.walk(join_path(folder, name), ancestors | {real})

    def read_bytes(self, path: str) -> bytes:
        return image.read_file(self.root / path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where nobody may look
        return False


def read_required(files: FileTree, name: str) -> bytes:
    """The bytes of a file that a dataset cannot be read without.

    Raises:
        FieldmarkError: the file cannot be read.
    """
    try:
        return files.read_bytes(name)
    except UnreadableImageError as error:
        raise FieldmarkError(f"{name} in {printable(str(files.root))} cannot be read ({error})") from None


def select_images(files: FileTree, paths: list[str]) -> list[str]:
    """The images among the files of a folder: by their extensions, or, where none has one, by their first bytes.

    A folder whose first `MAX_SNIFFED` files are no images has none.
    """
    if named := [path for path in paths if has_image_extension(path)]:
        return named
    if not any(_is_image(files, path) for path in paths[:MAX_SNIFFED]):
        return []
    return [path for path in paths if _is_image(files, path)]


def _is_image(files: FileTree, path: str) -> bool:
    try:
        if isinstance(files, Folder):
            if not (files.root / path).is_file():  # a named pipe would block forever
                return False
            with (files.root / path).open("rb") as file:
                return looks_like_image(file.read(SIGNATURE_BYTES))
        return looks_like_image(files.read_bytes(path)[:SIGNATURE_BYTES])
    except (OSError, ValueError, UnreadableImageError):
        return False


def join_path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def is_ignored(name: str) -> bool:
    """Whether it is a hidden file, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in _IGNORED_NAMES
