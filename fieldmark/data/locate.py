"""What people name -> single photos: files, folders, globs, a list on stdin; shards, archives, tables; addresses.

`each` only lists; a photo's bytes are read where it is looked at, which may be another process or another machine.
"""

import glob
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import is_photo
from fieldmark.data.image import MAX_BYTES, Unreadable
from fieldmark.data.readers.archives import opened
from fieldmark.data.readers.files import Files, Folder

HOLDERS = (".tar", ".tgz", ".tar.gz", ".zip", ".parquet")
"""What a file is called that holds photos."""
SHARDS = (".tar", ".parquet")
"""Those that are looked for in a folder without photos; an archive beside photos is somebody's backup."""


class Held(NamedTuple):
    """A photo in a holder: a tar, a zip or a Parquet file."""

    holder: str
    name: str

    def read(self) -> bytes:
        """Raises `Unreadable`."""
        try:
            return _opened(self.holder).contents(self.name)
        except FieldmarkError as error:
            raise Unreadable(str(error)) from None


class Remote(NamedTuple):
    """A photo at an address, as s3://bucket/photo.jpg: whatever fsspec knows."""

    address: str

    def read(self) -> bytes:
        """Raises `Unreadable`."""
        system, path = _system(self.address)
        try:
            with system.open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except Exception as error:  # each file system has its own
            raise Unreadable(" ".join(f"cannot be read: {type(error).__name__} {error}".split())) from None
        if len(content) > MAX_BYTES:
            raise Unreadable(f"more than {MAX_BYTES >> 20} MiB")
        return content


class Broken(NamedTuple):
    """What cannot be opened at all."""

    reason: str

    def read(self) -> bytes:
        raise Unreadable(self.reason)


Source = str | bytes | Held | Remote | Broken
"""What `photos.decode` opens."""


def each(photos: Iterable[str | Path | bytes]) -> Iterator[tuple[str, Source]]:
    """Files, folders, globs, `-` (a list on stdin), holders, addresses or bytes -> (what to call it, what to open)."""
    for source in photos:
        if isinstance(source, bytes):
            yield "", source
        elif str(source) == "-":
            yield from each(_listed())
        elif os.path.isdir(source):
            yield from _in_folder(str(source))
        elif os.path.lexists(source):
            yield from _in_file(str(source))
        elif is_remote(str(source)):
            yield from _at(str(source))
        elif glob.has_magic(str(source)):
            matches = sorted(glob.glob(str(source), recursive=True))
            if "**" in str(source):  # stands for the folders and for all that is in them
                matches = [match for match in matches if not os.path.isdir(match)]
            yield from each(matches) if matches else [(str(source), str(source))]
        else:
            yield str(source), str(source)


def _listed() -> Iterator[str]:
    """The lines of stdin, whatever bytes the names hold."""
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def _in_folder(folder: str) -> Iterator[tuple[str, Source]]:
    """The photos of a folder, however deep; where it has none, those in the shards that lie in it."""
    found = False
    for name, source in _walk(folder):
        found = found or not isinstance(source, Broken) or name == folder
        yield name, source
    if not found:
        for file in sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(SHARDS)):
            yield from _in_file(file)


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, Source]]:
    """Links are followed, except in circles; a folder that cannot be read is named in place of its photos."""
    if (real := os.path.realpath(folder)) in above:
        return
    try:
        folders, files = Folder(Path(folder)).entries()
    except FieldmarkError as error:
        yield folder, Broken(str(error))
        return
    yield from ((path, path) for name in files if is_photo(path := os.path.join(folder, name)))
    for name in folders:
        yield from _walk(os.path.join(folder, name), above | {real})


def _in_file(file: str) -> Iterator[tuple[str, Source]]:
    """A photo, or those that it holds."""
    if not file.lower().endswith(HOLDERS):
        yield file, file
        return
    try:
        names = list(_opened(file).below())
    except FieldmarkError as error:
        yield file, Broken(str(error))
        return
    rows = file.lower().endswith(".parquet")
    yield from ((f"{file}/{name}", Held(file, name)) for name in names if rows or is_photo(name))


@lru_cache(8)
def _opened(holder: str) -> Files:
    """Photos of one holder follow each other, so that a process opens it once."""
    from fieldmark.data.readers.huggingface import table

    look = table if holder.lower().endswith(".parquet") else opened
    if not is_remote(holder):
        return look(Path(holder))
    system, there = _system(holder)
    folder = tempfile.mkdtemp(prefix="fieldmark-")
    path = Path(folder) / there.rpartition("/")[2]
    try:
        system.get_file(there, str(path))
        found = look(path)
    except Exception as error:  # each file system has its own
        shutil.rmtree(folder)
        if isinstance(error, FieldmarkError):
            raise
        raise FieldmarkError(f"{holder} cannot be fetched: {type(error).__name__} {error}") from None
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def is_remote(name: str) -> bool:
    """Whether this is an address, and no file of that name."""
    return "://" in name and not os.path.lexists(name)


def _at(address: str) -> Iterator[tuple[str, Source]]:
    """The photos at an address: one, those of a folder, those that a pattern means, those in a holder."""
    system, path = _system(address)
    try:
        if glob.has_magic(path):
            paths = sorted(system.glob(path))
            if not paths:
                yield address, Broken("no such file")
        else:
            paths = sorted(system.find(path)) if system.isdir(path) else [path]
    except Exception as error:  # each file system has its own
        raise FieldmarkError(f"{address} cannot be listed: {type(error).__name__} {error}") from None
    photos = [found for found in paths if is_photo(found)] or paths
    for found in photos:
        name = system.unstrip_protocol(found)
        if found.lower().endswith(HOLDERS):
            yield from _in_file(name)
        elif is_photo(found) or found == path:
            yield name, Remote(name)


def _system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise FieldmarkError(f"{address}: {error}") from None
