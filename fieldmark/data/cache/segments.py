"""Photos as the audit saw them <-> segments: files that never change, found by content, thrown away when long unused.

A segment is the pixels of many photos behind one another, then a zip archive that says whose they are, where, and with
which checksum. It appears whole, in one move, or not at all. So any number of runs share a folder of them without a
lock: two that store the same photo at once waste room and nothing else, and a segment that is taken away under a run
stays readable to it (POSIX).
"""

import contextlib
import io
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np

from fieldmark.audit.audit import Look
from fieldmark.audit.duplicates import SIDE

PHOTOS, BYTES = 1000, 256 << 20  # full with either: a kill loses no more than some seconds of decoding
SCATTERED = 200  # segments that are kept mapped: each costs a file handle
SHARE = 0.5  # of the disk that is free, or would be without the segments: more they never take
FORGOTTEN = 86_400.0  # seconds after which half a segment is nobody's any more

PLACE = np.dtype([("segment", "<i4"), ("h", "<i4"), ("w", "<i4"), ("crc", "<u4"), ("at", "<i8")])
ENTRY = np.dtype([("place", PLACE), ("dhash", "<u8", 2), ("thumbnail", "u1", (SIDE, SIDE, 3))])


@dataclass(frozen=True)
class Stored(Look):
    """A photo that some run has decoded before, and where it lies."""

    file: Path
    place: np.void


class Draft:
    """A segment in the making. A full disk is an OSError, and leaves every photo added before as it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{uuid4().hex}.seg"
        self.half = self.file.with_suffix(".half")
        self.opened = self.half.open("wb", buffering=0)
        self.size, self.keys, self.entries = 0, bytearray(), bytearray()

    def full(self, times: int) -> bool:
        """Whether it holds what a segment should, `times` over."""
        return self.size >= times * BYTES or len(self.keys) >= times * PHOTOS * 32

    def add(self, look: Look) -> np.void:
        """-> its PLACE, whose `segment` is for the caller to say."""
        pixels = np.ascontiguousarray(look.pixels)
        h, w, _ = pixels.shape
        place = (0, h, w, zlib.crc32(pixels.data), self.size)
        entry = np.array([(place, look.dhash, look.thumbnail)], ENTRY)[0]
        self._put(pixels.data)
        self.size += pixels.nbytes
        self.keys += bytes.fromhex(look.sha256)
        self.entries += entry.tobytes()
        return entry["place"]

    def seal(self) -> None:
        """Make a segment of it. Nothing is forced to the disk: what a crash eats, the checksums find."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("keys", bytes(self.keys))
            archive.writestr("entries", bytes(self.entries))
        self._put(packed.getbuffer())
        self.opened.close()
        self.half.replace(self.file)

    def copied(self, folder: Path) -> "Draft":
        """The same photos at the same places, in a draft there."""
        copy = Draft(folder)
        try:
            with self.half.open("rb") as source:
                shutil.copyfileobj(source, copy.opened, 1 << 20)
        except OSError:
            copy.discard()
            raise
        copy.size, copy.keys, copy.entries = self.size, self.keys, self.entries
        return copy

    def discard(self) -> None:
        self.opened.close()
        self.half.unlink(missing_ok=True)

    def _put(self, data: memoryview) -> None:
        """Behind the last photo, over whatever a full disk cut off."""
        self.opened.seek(self.size)
        self.opened.truncate()
        data = data.cast("B")
        while len(data):
            data = data[self.opened.write(data) :]


class Shelf:
    """The segments in some folders, by what is in them; damaged ones are thrown away."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.maps: dict[Path, np.ndarray] = {}
        self.entries = lru_cache(8)(_entries)  # some 1 MB each; photos that came together lie together
        found = [(file, keys) for folder in folders for file in folder.glob("*.seg") if len(keys := _keys(file))]
        found.sort(key=lambda pair: -len(pair[1]))  # of several copies the one in the largest segment comes first
        self.files = [file for file, _ in found]
        self.starts = np.cumsum([0, *(len(keys) for _, keys in found)])
        prefixes = np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in found)])
        self.order = np.argsort(prefixes, kind="stable")
        self.prefixes = prefixes[self.order]

    def find(self, sha256: str) -> Stored | None:
        """The photo whose file has this hash, if its pixels are as they were written; safe in threads."""
        key = bytes.fromhex(sha256)
        (prefix,) = np.frombuffer(key[:8], "<u8")
        first, last = (int(np.searchsorted(self.prefixes, prefix, side)) for side in ("left", "right"))
        for k in self.order[first:last]:
            segment = int(np.searchsorted(self.starts, k, "right")) - 1
            with contextlib.suppress(OSError):  # thrown away since
                file, row = self.files[segment], int(k - self.starts[segment])
                keys, entries = self.entries(file)
                place, pixels = entries[row]["place"], self.map(file)
                if keys[row].tobytes() == key and intact(pixels, place):
                    _, h, w, _, at = place.item()
                    look = (pixels[at : at + h * w * 3].reshape(h, w, 3), tuple(entries[row]["dhash"].tolist()))
                    return Stored(sha256, *look, entries[row]["thumbnail"], file, place)
        return None

    def map(self, file: Path) -> np.ndarray:
        """The segment's bytes; the first SCATTERED stay mapped."""
        if file in self.maps:
            return self.maps[file]
        pixels = mapped(file)
        return self.maps.setdefault(file, pixels) if len(self.maps) < SCATTERED else pixels


def mapped(file: Path) -> np.ndarray:
    """A file's bytes as uint8 (bytes,), read when they are looked at."""
    used_now(file)
    return np.asarray(np.memmap(file, np.uint8, "r"))


def used_now(file: Path) -> None:
    """What was used last is thrown away last."""
    with contextlib.suppress(OSError):
        os.utime(file)


def intact(segment: np.ndarray, place: np.void) -> bool:
    """Whether the pixels there are those that were written."""
    _, h, w, crc, at = place.item()
    return zlib.crc32(segment[at : at + h * w * 3].data) == crc


def make_room(root: Path, size: int, limit: float, keep: Collection[Path]) -> bool:
    """Throw the longest unused segments in the folders of `root` away until `size` bytes more are within the limit.

    -> whether they are; those to `keep` stay whatever the limit says.
    """
    root.mkdir(parents=True, exist_ok=True)
    found = []
    for file in root.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            told = file.stat()
            found.append((told.st_mtime, told.st_size, file))
    held = sum(size for _, size, _ in found)
    limit = min(limit, SHARE * (shutil.disk_usage(root).free + held))
    for used, its, file in sorted(found):
        over = held + size > limit and file.suffix == ".seg" and file not in keep
        if over or (file.suffix == ".half" and time.time() - used > FORGOTTEN):
            with contextlib.suppress(OSError):  # not ours to delete
                file.unlink(missing_ok=True)
                held -= its
    return held + size <= limit


def _entries(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """-> keys (photos, 32), entries (photos,)."""
    with zipfile.ZipFile(file) as archive:
        keys = np.frombuffer(archive.read("keys"), np.uint8).reshape(-1, 32)
        return keys, np.frombuffer(archive.read("entries"), ENTRY, len(keys))


def _keys(file: Path) -> np.ndarray:
    """The first 8 bytes of its photos' hashes, (photos,); none where the file is no whole segment, and it goes."""
    try:
        return _entries(file)[0][:, :8].copy().view("<u8")[:, 0]
    except OSError:
        pass  # gone already, or not to be read: no reason to throw it away
    except Exception:  # damaged archives make zipfile raise nearly everything there is
        with contextlib.suppress(OSError):
            file.unlink()
    return np.empty(0, np.uint64)
