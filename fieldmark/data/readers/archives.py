"""zip or tar -> names and bytes. Nothing is unpacked; an archive that could do harm is refused in one line."""

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
from fieldmark.data.catalog import is_photo, printable
from fieldmark.data.image import MAX_BYTES, Unreadable
from fieldmark.data.readers.files import TABLES, Files, Folder, Names, is_litter, within

ARCHIVES = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz", ".7z", ".rar", ".zst"))
UNPACKED, RATIO = 2**30, 100
"""An archive that unpacks to more bytes than the first and to more than so many times its size is a bomb: photos hardly
shrink."""
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_GB2312 = re.compile(rb"([\x00-\x7f]|[\xa1-\xf7][\xa1-\xfe])*")
_DAMAGED = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError)
_DAMAGED += (zlib.error, lzma.LZMAError)
MOST, LONGEST, DEEPEST = 10_000_000, 4096, 64
"""Files in an archive, characters of a name and folders within one another: more are no photos."""


def opened(path: Path) -> Files:
    """A folder or an archive by what it is, whatever its name. Raises `FieldmarkError`."""
    name = printable(str(path))
    try:
        if not path.is_file():
            return Folder(path)
        with path.open("rb") as file:
            first = file.read(512)
        if first.startswith(b"PK"):  # not is_zipfile, which looks at the end, where a tar may hold a zip
            return Zip(path)
        if any(first.startswith(magic) for magic in _COMPRESSED) or tarfile.is_tarfile(path):
            return Tar(path)
    except _DAMAGED as error:
        raise FieldmarkError(f"{name} cannot be read ({error}): is it whole?") from None
    raise FieldmarkError(
        f"{name} is a file, and no table, zip or tar of photos: give the folder of photos (unpack other archives first)"
    )


class Archive:
    """What zip and tar have in common; where everything lies in one folder, that is where the paths begin."""

    root: Path
    members: Mapping[str, Any]  # by whole name

    def arrange(self) -> None:
        """Folders and files from the members' names."""
        self.base = ""
        self.tree: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
        for name in self.members:
            *folders, file = name.split("/")
            for depth, folder in enumerate(folders):
                self.tree["/".join(folders[:depth])][0].add(folder)
            self.tree["/".join(folders)][1].add(file)
        while inner := self._only_folder():
            self.base = inner

    def _only_folder(self) -> str:
        folders, files = self.entries()
        if len(folders) != 1 or any(is_photo(name) or name.endswith(TABLES) for name in files):
            return ""
        within_it, loose = self.entries(folders[0])
        more = within_it or any(not is_photo(name) for name in loose)
        return within(self.base, folders[0]) if more else ""

    def entries(self, folder: str = "") -> Names:
        found = self.tree.get(within(self.base, folder), (set(), set()))
        folders, files = (sorted(name for name in names if not is_litter(name)) for names in found)
        return folders, files

    def below(self, folder: str = "") -> Iterator[str]:
        folders, files = self.entries(folder)
        yield from (within(folder, name) for name in files)
        for name in folders:
            yield from self.below(within(folder, name))

    def refuse(self, why: str) -> FieldmarkError:
        return FieldmarkError(f"{printable(str(self.root))} is refused: {why}")

    def checked(self, name: str, size: int, link: bool) -> str:
        """The name of a file in the archive with "/" alone; raises where the file could do harm."""
        name = name.replace("\\", "/")
        shown = printable(name[:100])
        if len(name) > LONGEST or name.count("/") > DEEPEST or len(self.members) >= MOST:
            raise self.refuse(f"its names are too long, too deep or too many, as {shown}")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
            raise self.refuse(f"{shown} leads out of it")
        if link:
            raise self.refuse(f"{shown} is a link")
        if size > MAX_BYTES:
            raise self.refuse(f"{shown} unpacks to {size / 2**20:,.0f} MiB, more than the limit of {MAX_BYTES >> 20}")
        if Path(name).suffix.lower() in ARCHIVES - {".gz"}:  # single .gz files are MNIST's own
            raise self.refuse(f"{shown} is an archive within it: unpack it first")
        return "/".join(part for part in name.split("/") if part not in ("", "."))


class Zip(Archive):
    """A zip file, read in place."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.zip, self.process = zipfile.ZipFile(root), os.getpid()
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in self.zip.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise self.refuse("it is encrypted; unpack it first")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.refuse("it is packed in a way that cannot be read in small steps; unpack it first")
            link = stat.S_ISLNK(info.external_attr >> 16)
            self.members[self.checked(_named(info), info.file_size, link)] = info
        unpacked = sum(info.file_size for info in self.members.values())
        if unpacked > max(UNPACKED, RATIO * root.stat().st_size):
            raise self.refuse(f"it unpacks to {unpacked / 2**30:,.0f} GiB, over {RATIO} times its size")
        self.arrange()

    def contents(self, path: str) -> bytes:
        info = self.members.get(within(self.base, path))
        if info is None:
            raise Unreadable("no such file")
        try:
            with self.lock:
                if self.process != os.getpid():  # a forked loader would move its parent's place in the file
                    self.zip, self.process = zipfile.ZipFile(self.root), os.getpid()
            with self.zip.open(info) as file:  # not `read`, which unpacks whatever there is before it looks at the size
                return file.read(info.file_size)
        except Exception as error:  # damaged archives make zipfile raise nearly everything there is
            raise Unreadable(f"damaged in the archive: {error}") from error


class _Header(tarfile.TarInfo):
    """A member whose header is not larger than any name."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADERS and self.size > 16 * LONGEST):
            raise tarfile.ReadError("damaged header")
        return super()._proc_member(tarfile_)  # type: ignore[misc]  # the hook that its source names for this


_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Tar(Archive):
    """A tar file, read in place; a compressed one is unpacked into a temporary file without a name, as one tar."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.members: dict[str, tuple[int, int]] = {}  # where it begins, how long it is
        try:
            self.unpacked = self._unpacked()
            with self.unpacked or root.open("rb") as file:
                self._list(file)
                if self.unpacked:  # stays open for `read`
                    self.unpacked = os.fdopen(os.dup(file.fileno()), "rb")
                    weakref.finalize(self, self.unpacked.close)
        except _DAMAGED as error:
            raise FieldmarkError(f"{printable(str(root))} cannot be read ({error}): is it whole?") from None
        self.arrange()

    def _unpacked(self) -> IO[bytes] | None:
        """A compressed tar without its compression."""
        with self.root.open("rb") as file:
            first = file.read(2)
        if first not in _COMPRESSED:
            return None
        most = max(UNPACKED, RATIO * self.root.stat().st_size)
        with ExitStack() as stack:
            packed = stack.enter_context(_COMPRESSED[first](self.root))
            plain = stack.enter_context(tempfile.TemporaryFile())
            while part := packed.read(1 << 20):
                if plain.tell() + len(part) > most:
                    raise self.refuse(f"it unpacks to over {most >> 30} GiB, over {RATIO} times its size")
                plain.write(part)
            plain.seek(0)
            stack.pop_all()  # whole, it stays open
            packed.close()
        return plain

    def _list(self, file: IO[bytes]) -> None:
        """The members, from their headers."""
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it; else every header is kept
                if member.isdir():
                    continue
                link = member.issym() or member.islnk()
                if not (member.isreg() or link) or member.issparse():
                    raise self.refuse(f"{printable(member.name)} is no ordinary file")
                name = self.checked(member.name, member.size, link)
                self.members[name] = (member.offset_data, member.size)
            file.seek(tar.offset)  # where tarfile took the end to be: a damaged header is one to it
        while part := file.read(1 << 20):
            if part.strip(b"\0"):
                raise tarfile.ReadError("damaged in the middle, or several archives in one")

    def contents(self, path: str) -> bytes:
        return self.read(within(self.base, path))

    def read(self, name: str) -> bytes:
        """A file by its whole name in the archive."""
        if (place := self.members.get(name)) is None:
            raise Unreadable("no such file")
        at, size = place
        try:
            if self.unpacked and hasattr(os, "pread"):  # forked loaders share the place in the file
                found = os.pread(self.unpacked.fileno(), size, at)
            elif self.unpacked:
                with self.lock:
                    self.unpacked.seek(at)
                    found = self.unpacked.read(size)
            else:  # opened anew: a thousand shards would be too many open files
                with self.root.open("rb") as file:
                    file.seek(at)
                    found = file.read(size)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}") from error
        if len(found) < size:
            raise Unreadable("truncated with its archive")
        return found


def _named(info: zipfile.ZipInfo) -> str:
    """The name of a file in a zip: UTF-8 where it says so or is; of Chinese Windows GBK; else what zip began with."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    raw = info.orig_filename.encode("cp437", "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:  # a single byte above ASCII is a Western letter, pairs of these are Chinese
        return raw.decode("gbk") if _GB2312.fullmatch(raw) else info.orig_filename
