"""Addresses that fsspec knows -> the names of images, and their bytes.

Where an address may lead, unless addresses of the machine's own network are permitted (`http.ALLOW_VARIABLE`):

- http and https: to public addresses.
- file, local, memory, data: to this machine's files, as a path would.
- stores whose addresses name a bucket, such as s3 and gs: where the user's own settings for the store say.
- zip, tar, simplecache and others around one of these, as zip://a.jpg::https://host/photos.zip.

Any other, such as ftp, sftp or smb, names a host that cannot be checked, and is refused.
"""

import asyncio
import glob
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import one_line
from fieldmark.data import http
from fieldmark.data.image import MAX_FILE_BYTES, UnreadableImageError, read_file

HTTP = frozenset(("http", "https"))
LOCAL = frozenset(("file", "local", "memory", "data"))
STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "ocilake", "tos", "tosfs"))
HUBS = frozenset(("hf", "github"))
WRAPPERS = frozenset(("zip", "tar", "libarchive", "dir", "simplecache", "filecache", "blockcache", "cached"))
MAX_ARCHIVE_BYTES = 16 * 2**30


class Found(NamedTuple):
    """What is at an address."""

    names: list[str]
    """Addresses, sorted; none if a glob matches nothing."""
    is_one: bool
    """Whether the address names one file, which may have any name."""


def is_http(address: str) -> bool:
    """Whether this is an address of HTTP, and not something inside one."""
    return address.partition("://")[0].lower() in HTTP


def is_http_listing(address: str) -> bool:
    """Whether this is the HTTP address of several images: a folder, which ends with /, or a glob."""
    return not {"?", "#"} & set(address) and (address.endswith("/") or _http_glob_root(address) is not None)


def file_part(address: str) -> str:
    """The part of an address that names the file: zip://a.jpg of zip://a.jpg::https://host/photos.zip."""
    parts = [] if is_http(address) else address.split("::")
    return next((part for part in parts if part.partition("://")[2]), address)


def find(address: str, allow_private: bool) -> Found:
    """The addresses of the files of a folder, or of those that a glob matches, or of a single file.

    An HTTP address is that of a single file unless it ends with / or has a wildcard, so that it is asked for once.

    Raises:
        FieldmarkError, UnreadableImageError: it cannot be listed; the text is the reason.
    """
    if is_http(address) and not is_http_listing(address):
        return Found([address], True)
    try:
        if is_http(address):
            return _find_at_http(address, _open_http(address, allow_private))
        system, path = _open_filesystem(address, allow_private)
        if glob.has_magic(path):
            return Found([_address_of(found, path, address, system) for found in sorted(system.glob(path))], False)
        is_folder = system.isdir(path)
        paths = sorted(system.find(path)) if is_folder else [path]
        return Found([_address_of(found, path, address, system) for found in paths], not is_folder)
    except (FieldmarkError, UnreadableImageError):
        raise
    except Exception as error:  # each file system has its own
        raise FieldmarkError(f"cannot be listed: {_describe(error)}") from None


def read(address: str, allow_private: bool) -> bytes:
    """The content of one image. Raises `UnreadableImageError`."""
    try:
        if is_http(address):
            http.fetch(_open_http(address, allow_private), address, buffer := io.BytesIO(), MAX_FILE_BYTES)
            return buffer.getvalue()
        system, path = _open_filesystem(address, allow_private)
        if _is_local(system):
            return read_file(Path(path))
        with system.open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except UnreadableImageError:
        raise
    except FieldmarkError as error:
        raise UnreadableImageError(str(error)) from None
    except Exception as error:  # each file system has its own
        raise UnreadableImageError(f"cannot be read: {_describe(error)}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UnreadableImageError(f"more than {MAX_FILE_BYTES >> 20} MiB")
    return content


def download(address: str, file: Path, allow_private: bool) -> None:
    """Copy an archive or table to a new file. Raises FieldmarkError."""
    try:
        if is_http(address):
            with file.open("wb") as target:
                system = _open_http(address, allow_private)
                http.fetch(system, address, target, MAX_ARCHIVE_BYTES, is_archive=True)
            return
        system, path = _open_filesystem(address, allow_private)
        system.get_file(path, str(file))
    except FieldmarkError:
        raise
    except Exception as error:  # each file system has its own
        reason = str(error) if isinstance(error, UnreadableImageError) else _describe(error)
        raise FieldmarkError(f"{address} cannot be fetched: {reason}") from None


def _is_local(system: Any) -> bool:
    """Whether these are the files of this machine, of which one may be a pipe."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)


def _find_at_http(address: str, system: Any) -> Found:
    """The links of a page that lead to files below it."""
    root = _http_glob_root(address)
    listing = system._find(address) if root is None else system._glob(address)
    try:
        names = sorted(http.wait_for(asyncio.wait_for(listing, http.MAX_SECONDS), system.loop))
    except TimeoutError:
        raise FieldmarkError(f"not listed within {http.MAX_SECONDS:g} seconds") from None
    except Exception as error:
        raise http.to_failure(error) from None
    if root and not names:  # fsspec hides why
        http.fetch(system, root, io.BytesIO(), MAX_FILE_BYTES)
    return Found(names, False)


def _http_glob_root(address: str) -> str | None:
    """The folder above the first * of an address; None without one."""
    host_end = address.find("/", address.index("://") + 3)
    star = address.find("*", host_end)
    return None if host_end < 0 or star < 0 else address[: address.rindex("/", 0, star) + 1]


def _open_http(address: str, allow_private: bool) -> Any:
    return _http_system(address.partition("://")[0].lower(), allow_private, os.getpid())


@lru_cache(8)
def _http_system(protocol: str, allow_private: bool, process: int) -> Any:
    """fsspec's HTTPFileSystem, one for all threads of a process: fsspec itself keeps one for each, with its session."""
    try:
        from fsspec import filesystem

        make_session = http.open_session if allow_private else http.open_public_session
        return filesystem(protocol, get_client=make_session, skip_instance_cache=True)
    except ImportError as error:
        raise FieldmarkError(f"this needs {error.name or 'aiohttp'}: pip install 'fieldmark[ray]'") from None


def _open_filesystem(address: str, allow_private: bool) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises `FieldmarkError`."""
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import available_protocols
    except ImportError as error:
        raise FieldmarkError(f"this needs {error.name}: pip install 'fieldmark[ray]'") from None
    known = set(available_protocols())
    protocols = [_protocol(part, known) for part in address.split("::")]
    for protocol in protocols:
        if protocol not in known:
            raise FieldmarkError(f"{protocol}:// is not known: give a file, or an address as https:// or s3://")
        if not allow_private and protocol not in HTTP | LOCAL | STORES | HUBS | WRAPPERS:
            raise FieldmarkError(
                f"{protocol}:// may lead to this machine's own network, which is not read: "
                f"permit it by {http.PERMISSION}"
            )
    make_session = http.open_session if allow_private else http.open_public_session
    options = {protocol: {"get_client": make_session} for protocol in HTTP.intersection(protocols)}
    try:
        return url_to_fs(address, **options)
    except Exception as error:  # each file system has its own
        raise FieldmarkError(f"cannot be opened: {_describe(error)}") from None


def _protocol(part: str, known: set[str]) -> str:
    """The protocol of a part of a chained address, as fsspec takes it."""
    if part in known:
        return part
    protocol, separator, _ = part.partition("://")
    if separator:
        return protocol if len(protocol) > 1 else "file"  # a drive of Windows
    return part if part.isascii() and part.isalpha() and part.islower() else "file"


def _address_of(found: str, path: str, address: str, system: Any) -> str:
    """The address of a path that was found at `path`, the path of `address`."""
    if found == path:
        return address if "::" in address or _names_host(address, path) else system.unstrip_protocol(found)
    for part in address.split("::"):
        if part.endswith(path) and ("::" in address or _names_host(address, path)):
            return address.replace(part, part.removesuffix(path) + found, 1)
    return system.unstrip_protocol(found)


def _names_host(address: str, path: str) -> bool:
    """Whether the file system of an address keeps its host apart from the path, as ftp does and s3 does not."""
    host = address.partition("://")[2].partition("/")[0]
    return bool(host) and not path.strip("/").startswith(host)


def _describe(error: BaseException) -> str:
    """The reason of a file system's error; that a connection was refused here, fsspec hides behind others."""
    cause: BaseException | None = error
    while cause is not None:
        if http.PRIVATE_REASON in str(getattr(cause, "os_error", cause)):
            return http.PRIVATE_REASON
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, FileNotFoundError | ImportError):
        return "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
    return f"{type(error).__name__} {one_line(error)}"
