"""Paths, folders, globs, a list on stdin, archives, tables and URLs -> single images.

`find_images` only lists; the bytes of an image are read where it is decoded, which may be in another process.
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
from fieldmark.data.catalog import has_image_extension
from fieldmark.data.image import MAX_FILE_BYTES, UnreadableImageError
from fieldmark.data.readers.archives import open_container
from fieldmark.data.readers.files import FileTree, Folder, select_images

CONTAINER_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".zip", ".parquet")
"""File names of archives and tables that hold images."""
SHARD_SUFFIXES = (".tar", ".parquet")
"""Those that are searched in a folder without images; an archive beside images is a backup."""


class ContainedImage(NamedTuple):
    """An image in a tar, a zip or a Parquet file."""

    container: str
    name: str

    def read(self) -> bytes:
        """Raises `UnreadableImageError`."""
        try:
            return _open_container(self.container).read_bytes(self.name)
        except FieldmarkError as error:
            raise UnreadableImageError(str(error)) from None


class RemoteImage(NamedTuple):
    """An image at a URL of any file system of fsspec, as s3://bucket/image.jpg."""

    url: str

    def read(self) -> bytes:
        """Raises `UnreadableImageError`."""
        system, path = _resolve_filesystem(self.url)
        try:
            with system.open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except Exception as error:  # each file system has its own
            raise UnreadableImageError(" ".join(f"cannot be read: {type(error).__name__} {error}".split())) from None
        if len(content) > MAX_FILE_BYTES:
            raise UnreadableImageError(f"more than {MAX_FILE_BYTES >> 20} MiB")
        return content


class UnreadableSource(NamedTuple):
    """A source that cannot be opened."""

    reason: str

    def read(self) -> bytes:
        raise UnreadableImageError(self.reason)


ImageSource = str | bytes | ContainedImage | RemoteImage | UnreadableSource
"""What `image.decode` opens."""


def find_images(photos: Iterable[str | Path | bytes]) -> Iterator[tuple[str, ImageSource]]:
    """Name and source of each image: in files, folders, globs, `-` (a list on stdin), archives, tables, URLs, bytes."""
    for source in photos:
        if isinstance(source, bytes):
            yield "", source
        elif str(source) == "-":
            yield from find_images(_read_stdin_names())
        elif os.path.isdir(source):
            yield from _find_in_folder(str(source))
        elif os.path.lexists(source):
            yield from _find_in_file(str(source))
        elif is_url(str(source)):
            yield from _find_at_url(str(source))
        elif glob.has_magic(str(source)):
            matches = sorted(glob.glob(str(source), recursive=True))
            if "**" in str(source):  # which matches the folders as well
                matches = [match for match in matches if not os.path.isdir(match)]
            yield from find_images(matches) if matches else [(str(source), str(source))]
        else:
            yield str(source), str(source)


def _read_stdin_names() -> Iterator[str]:
    """The lines of stdin; undecodable bytes are kept as surrogates."""
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def _find_in_folder(folder: str) -> Iterator[tuple[str, ImageSource]]:
    """The images of a folder and its subfolders; if there are none, those in its shards."""
    has_images = False
    for name, source in _walk(folder):
        has_images = has_images or not isinstance(source, UnreadableSource) or name == folder
        yield name, source
    if not has_images:
        for file in sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(SHARD_SUFFIXES)):
            yield from _find_in_file(file)


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, ImageSource]]:
    """The images below a folder; one that cannot be read is an `UnreadableSource`. Links in circles are skipped."""
    if (real := os.path.realpath(folder)) in above:
        return
    try:
        tree = Folder(Path(folder))
        folders, files = tree.list_folder()
    except FieldmarkError as error:
        yield folder, UnreadableSource(str(error))
        return
    for name in select_images(tree, files):
        yield os.path.join(folder, name), os.path.join(folder, name)
    for name in folders:
        yield from _walk(os.path.join(folder, name), above | {real})


def _find_in_file(file: str) -> Iterator[tuple[str, ImageSource]]:
    """The image, or the images of an archive or table."""
    if not file.lower().endswith(CONTAINER_SUFFIXES):
        yield file, file
        return
    try:
        names = list(_open_container(file).walk())
    except FieldmarkError as error:
        yield file, UnreadableSource(str(error))
        return
    rows = file.lower().endswith(".parquet")
    yield from ((f"{file}/{name}", ContainedImage(file, name)) for name in names if rows or has_image_extension(name))


@lru_cache(8)
def _open_container(container: str) -> FileTree:
    """An archive or table, opened once a process; a remote one is first copied to a temporary folder."""
    from fieldmark.data.readers.huggingface import open_parquet

    open_file = open_parquet if container.lower().endswith(".parquet") else open_container
    if not is_url(container):
        return open_file(Path(container))
    system, remote_path = _resolve_filesystem(container)
    folder = tempfile.mkdtemp(prefix="fieldmark-")
    path = Path(folder) / remote_path.rpartition("/")[2]
    try:
        system.get_file(remote_path, str(path))
        files = open_file(path)
    except Exception as error:  # each file system has its own
        shutil.rmtree(folder)
        if isinstance(error, FieldmarkError):
            raise
        raise FieldmarkError(f"{container} cannot be fetched: {type(error).__name__} {error}") from None
    weakref.finalize(files, shutil.rmtree, folder, ignore_errors=True)
    return files


def is_url(name: str) -> bool:
    """Whether this is a URL, and no file of that name."""
    return "://" in name and not os.path.lexists(name)


def _find_at_url(address: str) -> Iterator[tuple[str, ImageSource]]:
    """The images at a URL: one, or those of a folder, of a glob, or of an archive or table."""
    system, path = _resolve_filesystem(address)
    try:
        if glob.has_magic(path):
            paths = sorted(system.glob(path))
            if not paths:
                yield address, UnreadableSource("no such file")
        else:
            paths = sorted(system.find(path)) if system.isdir(path) else [path]
    except Exception as error:  # each file system has its own
        raise FieldmarkError(f"{address} cannot be listed: {type(error).__name__} {error}") from None
    photos = [path_found for path_found in paths if has_image_extension(path_found)] or paths
    for found in photos:
        name = system.unstrip_protocol(found)
        if found.lower().endswith(CONTAINER_SUFFIXES):
            yield from _find_in_file(name)
        elif has_image_extension(found) or found == path:
            yield name, RemoteImage(name)


def _resolve_filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise FieldmarkError(f"{url}: {error}") from None
