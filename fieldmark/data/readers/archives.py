"""Zip and tar archives as file trees, read in place; unsafe ones (path traversal, links, bombs) are refused."""

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable, summarize_names
from fieldmark.data.catalog import has_image_extension
from fieldmark.data.image import MAX_FILE_BYTES, UnreadableImageError
from fieldmark.data.readers.files import MANIFEST_SUFFIXES, FileTree, Folder, FolderListing, is_ignored, join_path
from fieldmark.data.readers.text import GB2312, is_gbk

ARCHIVE_SUFFIXES = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz", ".7z", ".rar", ".zst"))
_WORKBOOK_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
MAX_UNPACKED_BYTES = 2**30
MAX_COMPRESSION_RATIO = 100
"""An archive that exceeds both is refused as a bomb: images hardly compress."""
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_UTF8_FLAG = 0x800  # of a zip's member: its name is UTF-8
_READ_ERRORS = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError)
_READ_ERRORS += (zlib.error, lzma.LZMAError)
MAX_MEMBERS = 10_000_000
MAX_NAME_LENGTH = 4096
MAX_DEPTH = 64
"""Nested folders of a member."""


def open_container(path: Path) -> FileTree:
    """Open a folder, zip or tar, recognised by its content. Raises `FieldmarkError` if it is none or unsafe."""
    name = printable(str(path))
    try:
        if not path.is_file():
            return Folder(path)
        with path.open("rb") as file:
            header = file.read(512)
        if path.suffix.lower() in _WORKBOOK_SUFFIXES:
            raise FieldmarkError(f"{name} is a workbook: save the table as CSV UTF-8 and give that")
        if header.startswith(b"PK"):  # not is_zipfile, which looks at the end, where a tar may hold a zip
            return ZipArchive(path)
        if any(header.startswith(magic) for magic in _DECOMPRESSORS) or tarfile.is_tarfile(path):
            return TarArchive(path)
    except _READ_ERRORS as error:
        raise FieldmarkError(f"{name} cannot be read ({error}): is it whole?") from None
    raise FieldmarkError(
        f"{name} is a file, and no table, zip or tar of photos: give the folder of photos (unpack other archives first)"
    )


class Archive:
    """Base of zip and tar. If all files are in one folder, paths are relative to that folder."""

    root: Path
    note = ""
    members: Mapping[str, Any]  # by full name

    def build_tree(self) -> None:
        """Build the folders from the names of the members."""
        self.base_folder = ""
        self.tree: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
        for name in self.members:
            *folders, file = name.split("/")
            for depth, folder in enumerate(folders):
                self.tree["/".join(folders[:depth])][0].add(folder)
            self.tree["/".join(folders)][1].add(file)
        while inner := self._single_folder():
            self.base_folder = inner

    def _single_folder(self) -> str:
        folders, files = self.list_folder()
        if len(folders) != 1 or any(has_image_extension(name) or name.endswith(MANIFEST_SUFFIXES) for name in files):
            return ""
        within_it, loose = self.list_folder(folders[0])
        is_nested = within_it or any(not has_image_extension(name) for name in loose)
        return join_path(self.base_folder, folders[0]) if is_nested else ""

    def list_folder(self, folder: str = "") -> FolderListing:
        folders_and_files = self.tree.get(join_path(self.base_folder, folder), (set(), set()))
        folders, files = (sorted(name for name in names if not is_ignored(name)) for names in folders_and_files)
        return folders, files

    def walk(self, folder: str = "") -> Iterator[str]:
        folders, files = self.list_folder(folder)
        yield from (join_path(folder, name) for name in files)
        for name in folders:
            yield from self.walk(join_path(folder, name))

    def refusal(self, why: str) -> FieldmarkError:
        return FieldmarkError(f"{printable(str(self.root))} is refused: {why}")

    def validate_name(self, name: str, size: int, is_link: bool) -> str:
        """The normalised name of a member; raises FieldmarkError if extracting it would be unsafe."""
        name = name.replace("\\", "/")
        short_name = printable(name[:100])
        if len(name) > MAX_NAME_LENGTH or name.count("/") > MAX_DEPTH or len(self.members) >= MAX_MEMBERS:
            raise self.refusal(f"its names are too long, too deep or too many, as {short_name}")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
            raise self.refusal(f"{short_name} leads out of it")
        if is_link:
            raise self.refusal(f"{short_name} is a link")
        if size > MAX_FILE_BYTES:
            raise self.refusal(
                f"{short_name} unpacks to {size / 2**20:,.0f} MiB, more than the limit of {MAX_FILE_BYTES >> 20}"
            )
        if Path(name).suffix.lower() in ARCHIVE_SUFFIXES - {".gz"}:  # single .gz files are MNIST's own
            raise self.refusal(f"{short_name} is an archive within it: unpack it first")
        return "/".join(part for part in name.split("/") if part not in ("", "."))


class ZipArchive(Archive):
    """A zip file, read in place."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.archive, self.owner_pid = zipfile.ZipFile(root), os.getpid()
        self.members: dict[str, zipfile.ZipInfo] = {}
        infos = [info for info in self.archive.infolist() if not info.is_dir()]
        names, self.note = _decode_member_names(infos)
        for info, name in zip(infos, names, strict=True):
            if info.flag_bits & 1:
                raise self.refusal("it is encrypted; unpack it first")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.refusal("it is packed in a way that cannot be read in small steps; unpack it first")
            link = stat.S_ISLNK(info.external_attr >> 16)
            self.members[self.validate_name(name, info.file_size, link)] = info
        unpacked = sum(info.file_size for info in self.members.values())
        if unpacked > max(MAX_UNPACKED_BYTES, MAX_COMPRESSION_RATIO * root.stat().st_size):
            raise self.refusal(
                f"it unpacks to {unpacked / 2**30:,.0f} GiB, over {MAX_COMPRESSION_RATIO} times its size"
            )
        self.build_tree()

    def read_bytes(self, path: str) -> bytes:
        info = self.members.get(join_path(self.base_folder, path))
        if info is None:
            raise UnreadableImageError("no such file")
        try:
            with self.lock:
                if self.owner_pid != os.getpid():  # a forked process shares its parent's file position
                    self.archive, self.owner_pid = zipfile.ZipFile(self.root), os.getpid()
            with self.archive.open(info) as file:  # `read` would unpack everything before it compares the size
                return file.read(info.file_size)
        except Exception as error:  # damaged archives make zipfile raise nearly everything there is
            raise UnreadableImageError(f"damaged in the archive: {error}") from error


class _BoundedTarInfo(tarfile.TarInfo):
    """A member; one whose extended header is larger than any name is refused."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _EXTENDED_HEADER_TYPES and self.size > 16 * MAX_NAME_LENGTH):
            raise tarfile.ReadError("damaged header")
        return super()._proc_member(tarfile_)  # type: ignore[misc]  # the hook that its source names for this


_EXTENDED_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class TarArchive(Archive):
    """A tar file, read in place; a compressed one is decompressed into a temporary file."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.members: dict[str, tuple[int, int]] = {}  # offset, size
        try:
            self.decompressed = self._decompress()
            with self.decompressed or root.open("rb") as file:
                self._index_members(file)
                if self.decompressed:  # stays open for `read_member`
                    self.decompressed = os.fdopen(os.dup(file.fileno()), "rb")
                    weakref.finalize(self, self.decompressed.close)
        except _READ_ERRORS as error:
            raise FieldmarkError(f"{printable(str(root))} cannot be read ({error}): is it whole?") from None
        self.build_tree()

    def _decompress(self) -> IO[bytes] | None:
        """The decompressed tar as an open temporary file; None if it is not compressed."""
        with self.root.open("rb") as file:
            magic = file.read(2)
        if magic not in _DECOMPRESSORS:
            return None
        max_bytes = max(MAX_UNPACKED_BYTES, MAX_COMPRESSION_RATIO * self.root.stat().st_size)
        with ExitStack() as stack:
            source = stack.enter_context(_DECOMPRESSORS[magic](self.root))
            target = stack.enter_context(tempfile.TemporaryFile())
            while part := source.read(1 << 20):
                if target.tell() + len(part) > max_bytes:
                    raise self.refusal(
                        f"it unpacks to over {max_bytes >> 30} GiB, over {MAX_COMPRESSION_RATIO} times its size"
                    )
                target.write(part)
            target.seek(0)
            stack.pop_all()  # keep it open
            source.close()
        return target

    def _index_members(self, file: IO[bytes]) -> None:
        """Read the headers of all members."""
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_BoundedTarInfo) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it; else every header is kept
                if member.isdir():
                    continue
                link = member.issym() or member.islnk()
                if not (member.isreg() or link) or member.issparse():
                    raise self.refusal(f"{printable(member.name)} is no ordinary file")
                name = self.validate_name(member.name, member.size, link)
                self.members[name] = (member.offset_data, member.size)
            file.seek(tar.offset)  # tarfile takes a damaged header for the end: what follows must be zeros
        while part := file.read(1 << 20):
            if part.strip(b"\0"):
                raise tarfile.ReadError("damaged in the middle, or several archives in one")

    def read_bytes(self, path: str) -> bytes:
        return self.read_member(join_path(self.base_folder, path))

    def read_member(self, name: str) -> bytes:
        """The bytes of a member by its full name."""
        if (location := self.members.get(name)) is None:
            raise UnreadableImageError("no such file")
        offset, size = location
        try:
            if self.decompressed and hasattr(os, "pread"):  # forked processes share the file position
                content = os.pread(self.decompressed.fileno(), size, offset)
            elif self.decompressed:
                with self.lock:
                    self.decompressed.seek(offset)
                    content = self.decompressed.read(size)
            else:  # opened for each read: a thousand shards would be too many open files
                with self.root.open("rb") as file:
                    file.seek(offset)
                    content = file.read(size)
        except OSError as error:
            raise UnreadableImageError(f"cannot be read: {error.strerror or error}") from error
        if len(content) < size:
            raise UnreadableImageError("truncated with its archive")
        return content


def _decode_member_names(infos: list[zipfile.ZipInfo]) -> tuple[list[str], str]:
    """The names of the files in a zip, and a line if they are read as GBK: one decision for all.

    Those that do not say they are UTF-8 are that if all can be; else GBK of Chinese Windows if all can be; else code
    page 437, the original default.
    """
    raw = b"\0".join(_raw_name(info) for info in infos if not info.flag_bits & _UTF8_FLAG)
    try:
        encoding = "gbk" if is_gbk(raw, raw.decode("utf-8")) else "utf-8"
    except UnicodeDecodeError:
        encoding = "gbk" if GB2312.fullmatch(raw) else "cp437"
    names = [
        info.orig_filename if info.flag_bits & _UTF8_FLAG else _raw_name(info).decode(encoding, "replace")
        for info in infos
    ]
    folders = list(dict.fromkeys(name.rpartition("/")[0] for name in names if not name.isascii()))
    note = f"the names in the archive are read as GBK: {summarize_names(folders, 3)}"
    return names, note if encoding == "gbk" else ""


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("cp437", "replace")
