"""Paths, folders, globs, a list on stdin, archives, tables and URLs -> single images.

`find_images` only lists; the bytes of an image are read where it is decoded, which may be in another process.
"""

import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.data import remote
from fieldmark.data.catalog import has_image_extension
from fieldmark.data.http import allows_private_hosts
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.readers.archives import open_container
from fieldmark.data.readers.files import FileTree, Folder, select_images
from fieldmark.data.stdin_list import STDIN, read_stdin

CONTAINER_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".zip", ".parquet")
"""File names of archives and tables that hold images."""
SHARD_SUFFIXES = (".tar", ".parquet")
"""Those that are searched in a folder without images; an archive beside images is a backup."""


class ContainedImage(NamedTuple):
    """An image in a tar, a zip or a Parquet file, which may lie at an address."""

    container: str
    name: str
    allow_private_hosts: bool = False

    def read(self) -> bytes:
        """Raises `UnreadableImageError`."""
        try:
            return _open_container(self.container, self.allow_private_hosts).read_bytes(self.name)
        except FieldmarkError as error:
            raise UnreadableImageError(str(error)) from None


class RemoteImage(NamedTuple):
    """An image at an address (fieldmark/data/remote.py), as https://host/image.jpg or s3://bucket/image.jpg."""

    url: str
    allow_private_hosts: bool = False

    def read(self) -> bytes:
        """Raises `UnreadableImageError`."""
        return remote.read(self.url, self.allow_private_hosts)


class UnreadableSource(NamedTuple):
    """A source that cannot be opened."""

    reason: str

    def read(self) -> bytes:
        raise UnreadableImageError(self.reason)


ImageSource = str | bytes | ContainedImage | RemoteImage | UnreadableSource
"""What `image.decode` opens."""


def find_images(
    photos: Iterable[str | Path | bytes], allow_private_hosts: bool | None = None
) -> Iterator[tuple[str, ImageSource]]:
    """Name and source of each image: in files, folders, globs, archives, tables, addresses, bytes, or `-` for stdin.

    What cannot be opened or listed is an `UnreadableSource`, so that the others are found.

    Args:
        photos: any of these.
        allow_private_hosts: also read addresses of the machine's own network; by default what
            FIELDMARK_ALLOW_PRIVATE_HOSTS says.
    """
    allow_private = allows_private_hosts(allow_private_hosts)
    for source in photos:
        if isinstance(source, bytes):
            yield "", source
        elif str(source) == STDIN:
            for name, content in read_stdin():
                yield from [(name, content)] if content is not None else _find_named(name, allow_private)
        else:
            yield from _find_named(str(source), allow_private)


def _find_named(name: str, allow_private: bool) -> Iterator[tuple[str, ImageSource]]:
    if os.path.isdir(name):
        yield from _find_in_folder(name)
    elif os.path.lexists(name):
        yield from _find_in_file(name, allow_private)
    elif is_url(name):
        yield from _find_at_url(name, allow_private)
    elif glob.has_magic(name):
        yield from _find_by_glob(name, allow_private)
    else:
        yield name, name


def _find_by_glob(pattern: str, allow_private: bool) -> Iterator[tuple[str, ImageSource]]:
    matches = sorted(glob.glob(pattern, recursive=True))
    if "**" in pattern:  # which matches the folders as well
        matches = [match for match in matches if not os.path.isdir(match)]
    if not matches:
        yield pattern, pattern
    for match in matches:
        yield from _find_named(match, allow_private)


def _find_in_folder(folder: str) -> Iterator[tuple[str, ImageSource]]:
    """The images of a folder and its subfolders; if there are none, those in its shards."""
    has_images = False
    for name, source in _walk(folder):
        has_images = has_images or not isinstance(source, UnreadableSource) or name == folder
        yield name, source
    if not has_images:
        for file in sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(SHARD_SUFFIXES)):
            yield from _find_in_file(file, allow_private=False)


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


def _find_in_file(file: str, allow_private: bool) -> Iterator[tuple[str, ImageSource]]:
    """The image, or the images of an archive or table."""
    if file.lower().endswith(CONTAINER_SUFFIXES):
        yield from _find_in_container(file, allow_private)
    else:
        yield file, file


def _find_in_container(file: str, allow_private: bool) -> Iterator[tuple[str, ImageSource]]:
    try:
        names = list(_open_container(file, allow_private).walk())
    except FieldmarkError as error:
        yield file, UnreadableSource(str(error))
        return
    rows = file.lower().endswith(".parquet")
    for name in names:
        if rows or has_image_extension(name):
            yield f"{file}/{name}", ContainedImage(file, name, allow_private)


@lru_cache(8)
def _open_container(container: str, allow_private: bool) -> FileTree:
    """An archive or table, opened once a process; a remote one is first copied to a temporary folder."""
    from fieldmark.data.readers.huggingface import open_parquet

    open_file = open_parquet if container.lower().endswith(".parquet") else open_container
    if not is_url(container):
        return open_file(Path(container))
    folder = tempfile.mkdtemp(prefix="fieldmark-")
    path = Path(folder) / container.rpartition("/")[2]
    try:
        remote.download(container, path, allow_private)
        files = open_file(path)
    except FieldmarkError as error:
        shutil.rmtree(folder)
        raise FieldmarkError(str(error).replace(str(path), container)) from None
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(files, shutil.rmtree, folder, ignore_errors=True)
    return files


def is_url(name: str) -> bool:
    """Whether this is a URL, and no file of that name."""
    return "://" in name and not os.path.lexists(name)


def _find_at_url(address: str, allow_private: bool) -> Iterator[tuple[str, ImageSource]]:
    """The images at an address: one, or those of a folder, of a glob, or of an archive or table."""
    try:
        names, is_one = remote.find(address, allow_private)
    except (FieldmarkError, UnreadableImageError) as error:
        yield address, UnreadableSource(str(error))
        return
    files = {name: remote.file_part(name) for name in names}
    images = [name for name, file in files.items() if has_image_extension(file)]
    containers = [name for name, file in files.items() if file.lower().endswith(CONTAINER_SUFFIXES)]
    if not images and containers:
        for name in containers:
            yield from _find_in_container(name, allow_private)
        return
    if not images and is_one:
        images = names
    elif not images and remote.is_http(address) and address.endswith("/"):
        images = [address]  # no page with links, so perhaps an image
    elif not names:
        yield address, UnreadableSource("no such file")
    yield from ((name, RemoteImage(name, allow_private)) for name in images)
