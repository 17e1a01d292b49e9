"""where photos lie -> their names and bytes; here a folder of the disk, in archives.py zip and tar."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fieldmark.core.errors import FieldmarkError
from fieldmark.data import image
from fieldmark.data.catalog import printable

TABLES = (".csv", ".jsonl", ".parquet")
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
Names = tuple[list[str], list[str]]
"""The names of a folder's subfolders and of its files, sorted, without hidden ones and litter."""


class Files(Protocol):
    """Where photos lie; paths are below `root`, with "/"."""

    root: Path

    def entries(self, folder: str = "") -> Names:
        """What is in a folder."""
        ...

    def below(self, folder: str = "") -> Iterator[str]:
        """The paths of all files in a folder, however deep."""
        ...

    def contents(self, path: str) -> bytes:
        """A file's bytes; raises `Unreadable`. Safe in threads."""
        ...


class Folder:
    """A folder of the disk; links are followed, except in circles."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, folder: str = "") -> Names:
        path = self.root / folder
        name = printable(str(path))
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.name, _is_folder(entry)) for entry in entries if not is_litter(entry.name))
        except FileNotFoundError:
            raise FieldmarkError(f"{name}: no such folder; give the folder that holds the photos") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FieldmarkError(f"{name} cannot be read ({reason}); check the path and its access") from error
        return [name for name, inner in found if inner], [name for name, inner in found if not inner]

    def below(self, folder: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
        real = os.path.realpath(self.root / folder)
        if real in above:
            return
        folders, files = self.entries(folder)
        yield from (within(folder, name) for name in files)
        for name in folders:
            yield from self.below(within(folder, name), above | {real})

    def contents(self, path: str) -> bytes:
        return image.contents(self.root / path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where nobody may look
        return False


def within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def is_litter(name: str) -> bool:
    """Hidden files and what operating systems leave behind."""
    return name.startswith(".") or name.lower() in _LITTER
