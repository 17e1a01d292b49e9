"""folder, zip or tar -> names and bytes. Nothing is unpacked; an archive that could do harm is refused in one line."""

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import weakref
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol

from fieldmark.errors import FieldmarkError
from fieldmark.photos import decode
from fieldmark.photos.catalog import is_photo, printable
from fieldmark.photos.decode import MAX_BYTES, Unreadable

ARCHIVES = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".tbz2", ".txz", ".7z", ".rar", ".zst"))
UNPACKED, RATIO = 2**30, 100
"""An archive that unpacks to more bytes than the first and to more than so many times its size is a bomb: photos hardly
shrink."""
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError) as error:
        raise FieldmarkError(f"{name} cannot be read ({error}): is it whole?") from None
    raise FieldmarkError(
        f"{name} is a file, and no table, zip or tar of photos: give the folder of photos (unpack other archives first)"
    )


class Folder:
    """A folder of the disk; links are followed, except in circles."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, folder: str = "") -> Names:
        path = self.root / folder
        name = printable(str(path))
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in entries if not is_litter(entry.name))
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
        return decode.contents(self.root / path)


class Archive:
    """What zip and tar have in common; where everything lies in one folder, that is where the paths begin."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root, self.base = root, ""
        self.tree: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
        for name in names:
            *folders, file = name.split("/")
            for depth, folder in enumerate(folders):
                self.tree["/".join(folders[:depth])][0].add(folder)
            self.tree["/".join(folders)][1].add(file)
        while inner := self._only_folder():
            self.base = inner

    def _only_folder(self) -> str:
        folders, files = self.entries()
        if files or len(folders) != 1:
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
        shown = printable(name)
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
        self.root = root
        self.zip = zipfile.ZipFile(root)
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in self.zip.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise self.refuse("it is encrypted; unpack it first")
            link = stat.S_ISLNK(info.external_attr >> 16)
            self.members[self.checked(_named(info), info.file_size, link)] = info
        unpacked = sum(info.file_size for info in self.members.values())
        if unpacked > max(UNPACKED, RATIO * root.stat().st_size):
            raise self.refuse(f"it unpacks to {unpacked / 2**30:,.0f} GiB, over {RATIO} times its size")
        super().__init__(root, self.members)

    def contents(self, path: str) -> bytes:
        info = self.members.get(within(self.base, path))
        if info is None:
            raise Unreadable("no such file")
        try:
            return self.zip.read(info)  # never more than its directory says, which has been checked
        except Exception as error:  # damaged archives make zipfile raise nearly everything there is
            raise Unreadable(f"damaged in the archive: {error}") from error


class Tar(Archive):
    """A tar file, read in place; a compressed one is unpacked into a temporary file without a name, as one tar."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.members: dict[str, tuple[int, int]] = {}  # where it begins, how long it is
        with self._plain() as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in filter(lambda member: not member.isdir(), tar):
                        link = member.issym() or member.islnk()
                        if not (member.isreg() or link) or member.issparse():
                            raise self.refuse(f"{printable(member.name)} is no ordinary file")
                        name = self.checked(member.name, member.size, link)
                        self.members[name] = (member.offset_data, member.size)
            except tarfile.TarError as error:
                raise FieldmarkError(f"{printable(str(root))} cannot be read ({error}): is it whole?") from None
            self.handle = os.dup(file.fileno())  # read by place, in any thread
        weakref.finalize(self, os.close, self.handle)
        super().__init__(root, self.members)

    def _plain(self) -> IO[bytes]:
        with self.root.open("rb") as file:
            first = file.read(2)
        if first not in _COMPRESSED:
            return self.root.open("rb")
        most = max(UNPACKED, RATIO * self.root.stat().st_size)
        with ExitStack() as stack:
            packed = stack.enter_context(_COMPRESSED[first](self.root))
            plain = stack.enter_context(tempfile.TemporaryFile())
            while part := packed.read(1 << 20):
                if plain.tell() + len(part) > most:
                    raise self.refuse(f"it unpacks to over {most >> 30} GiB, over {RATIO} times its size")
                plain.write(part)
            plain.seek(0)
            stack.pop_all()  # as a whole it stays open
            packed.close()
        return plain

    def contents(self, path: str) -> bytes:
        return self.read(within(self.base, path))

    def read(self, name: str) -> bytes:
        """A file by its whole name in the archive."""
        if (place := self.members.get(name)) is None:
            raise Unreadable("no such file")
        at, size = place
        found = os.pread(self.handle, size, at)
        if len(found) < size:
            raise Unreadable("truncated with its archive")
        return found


def within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def is_litter(name: str) -> bool:
    """Hidden files and what operating systems leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def _named(info: zipfile.ZipInfo) -> str:
    """The name of a file in a zip: UTF-8 where it says so or is; of Chinese Windows GBK; else what zip began with."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    raw = info.orig_filename.encode("cp437", "replace")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.orig_filename
