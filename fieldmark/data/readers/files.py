"""where photos lie -> their names and bytes; here a folder of the disk, in archives.py zip and tar."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data import image

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
FolderListing = tuple[list[str], list[str]]
"""The names of a folder's subfolders and of its files, sorted, without hidden ones and litter."""


class FileTree(Protocol):
    """Where photos lie; paths are below `root`, with "/"."""

    root: Path

    def list_folder(self, folder: str = "") -> FolderListing:
        """What is in a folder."""
        ...

    def walk(self, folder: str = "") -> Iterator[str]:
        """The paths of all files in a folder, however deep."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """A file's bytes; raises `Unreadable`. Safe in threads."""
        ...


class Folder:
    """A folder of the disk; links are followed, except in circles."""

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


def join_path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def is_ignored(name: str) -> bool:
    """Hidden files and what operating systems leave behind."""
    return name.startswith(".") or name.lower() in _IGNORED_NAMES
