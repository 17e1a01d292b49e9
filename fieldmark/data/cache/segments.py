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

from fieldmark.data.decoded import THUMBNAIL_SIDE, DecodedImage

MAX_SEGMENT_IMAGES, MAX_SEGMENT_BYTES = (
    1000,
    256 << 20,
)  # full with either: a kill loses no more than some seconds of decoding
MAX_MAPPED_SEGMENTS = 200  # segments that are kept mapped: each costs a file handle
MAX_DISK_SHARE = 0.5  # of the disk that is free, or would be without the segments: more they never take
STALE_SECONDS = 86_400.0  # seconds after which half a segment is nobody's any more

LOCATION_DTYPE = np.dtype([("segment", "<i4"), ("h", "<i4"), ("w", "<i4"), ("crc", "<u4"), ("at", "<i8")])
ENTRY_DTYPE = np.dtype(
    [("place", LOCATION_DTYPE), ("dhash", "<u8", 2), ("thumbnail", "u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3))]
)


@dataclass(frozen=True)
class CachedImage(DecodedImage):
    """A photo that some run has decoded before, and where it lies."""

    file: Path
    location: np.void


class SegmentWriter:
    """A segment in the making. A full disk is an OSError, and leaves every photo added before as it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{uuid4().hex}.seg"
        self.temporary_file = self.file.with_suffix(".half")
        self.handle = self.temporary_file.open("wb", buffering=0)
        self.size, self.keys, self.entries = 0, bytearray(), bytearray()

    def is_full(self, multiple: int) -> bool:
        """Whether it holds what a segment should, `times` over."""
        return self.size >= multiple * MAX_SEGMENT_BYTES or len(self.keys) >= multiple * MAX_SEGMENT_IMAGES * 32

    def add(self, look: DecodedImage) -> np.void:
        """-> its PLACE, whose `segment` is for the caller to say."""
        pixels = np.ascontiguousarray(look.pixels)
        h, w, _ = pixels.shape
        location = (0, h, w, zlib.crc32(pixels.data), self.size)
        entry = np.array([(location, look.dhash, look.thumbnail)], ENTRY_DTYPE)[0]
        self._append(pixels.data)
        self.size += pixels.nbytes
        self.keys += bytes.fromhex(look.sha256)
        self.entries += entry.tobytes()
        return entry["place"]

    def finish(self) -> None:
        """Make a segment of it. Nothing is forced to the disk: what a crash eats, the checksums find."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("keys", bytes(self.keys))
            archive.writestr("entries", bytes(self.entries))
        self._append(buffer.getbuffer())
        self.handle.close()
        self.temporary_file.replace(self.file)

    def copy_to(self, folder: Path) -> "SegmentWriter":
        """The same photos at the same places, in a draft there."""
        copy = SegmentWriter(folder)
        try:
            with self.temporary_file.open("rb") as source:
                shutil.copyfileobj(source, copy.handle, 1 << 20)
        except OSError:
            copy.discard()
            raise
        copy.size, copy.keys, copy.entries = self.size, self.keys, self.entries
        return copy

    def discard(self) -> None:
        self.handle.close()
        self.temporary_file.unlink(missing_ok=True)

    def _append(self, data: memoryview) -> None:
        """Behind the last photo, over whatever a full disk cut off."""
        self.handle.seek(self.size)
        self.handle.truncate()
        data = data.cast("B")
        while len(data):
            data = data[self.handle.write(data) :]


class SegmentIndex:
    """The segments in some folders, by what is in them; damaged ones are thrown away."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.mapped_segments: dict[Path, np.ndarray] = {}
        self.entries = lru_cache(8)(_read_entries)  # some 1 MB each; photos that came together lie together
        segments = [
            (file, keys) for folder in folders for file in folder.glob("*.seg") if len(keys := _read_key_prefixes(file))
        ]
        segments.sort(key=lambda pair: -len(pair[1]))  # of several copies the one in the largest segment comes first
        self.files = [file for file, _ in segments]
        self.row_starts = np.cumsum([0, *(len(keys) for _, keys in segments)])
        prefixes = np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in segments)])
        self.order = np.argsort(prefixes, kind="stable")
        self.prefixes = prefixes[self.order]

    def find(self, sha256: str) -> CachedImage | None:
        """The photo whose file has this hash, if its pixels are as they were written; safe in threads."""
        key = bytes.fromhex(sha256)
        (prefix,) = np.frombuffer(key[:8], "<u8")
        first, last = (int(np.searchsorted(self.prefixes, prefix, side)) for side in ("left", "right"))
        for k in self.order[first:last]:
            segment = int(np.searchsorted(self.row_starts, k, "right")) - 1
            with contextlib.suppress(OSError):  # thrown away since
                file, row = self.files[segment], int(k - self.row_starts[segment])
                keys, entries = self.entries(file)
                location, pixels = entries[row]["place"], self.map_segment(file)
                if keys[row].tobytes() == key and is_intact(pixels, location):
                    _, h, w, _, offset = location.item()
                    arrays = (
                        pixels[offset : offset + h * w * 3].reshape(h, w, 3),
                        tuple(entries[row]["dhash"].tolist()),
                    )
                    return CachedImage(sha256, *arrays, entries[row]["thumbnail"], file, location)
        return None

    def map_segment(self, file: Path) -> np.ndarray:
        """The segment's bytes; the first SCATTERED stay mapped."""
        if file in self.mapped_segments:
            return self.mapped_segments[file]
        pixels = map_file(file)
        return (
            self.mapped_segments.setdefault(file, pixels) if len(self.mapped_segments) < MAX_MAPPED_SEGMENTS else pixels
        )


def map_file(file: Path) -> np.ndarray:
    """A file's bytes as uint8 (bytes,), read when they are looked at."""
    mark_used(file)
    return np.asarray(np.memmap(file, np.uint8, "r"))


def mark_used(file: Path) -> None:
    """What was used last is thrown away last."""
    with contextlib.suppress(OSError):
        os.utime(file)


def is_intact(segment: np.ndarray, place: np.void) -> bool:
    """Whether the pixels there are those that were written."""
    _, h, w, crc, at = place.item()
    return zlib.crc32(segment[at : at + h * w * 3].data) == crc


def evict_segments(root: Path, size: int, limit: float, keep: Collection[Path]) -> bool:
    """Throw the longest unused segments in the folders of `root` away until `size` bytes more are within the limit.

    -> whether they are; those to `keep` stay whatever the limit says.
    """
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for file in root.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            files.append((status.st_mtime, status.st_size, file))
    total_bytes = sum(size for _, size, _ in files)
    limit = min(limit, MAX_DISK_SHARE * (shutil.disk_usage(root).free + total_bytes))
    for modified, file_size, file in sorted(files):
        over = total_bytes + size > limit and file.suffix == ".seg" and file not in keep
        if over or (file.suffix == ".half" and time.time() - modified > STALE_SECONDS):
            with contextlib.suppress(OSError):  # not ours to delete
                file.unlink(missing_ok=True)
                total_bytes -= file_size
    return total_bytes + size <= limit


def _read_entries(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """-> keys (photos, 32), entries (photos,)."""
    with zipfile.ZipFile(file) as archive:
        keys = np.frombuffer(archive.read("keys"), np.uint8).reshape(-1, 32)
        return keys, np.frombuffer(archive.read("entries"), ENTRY_DTYPE, len(keys))


def _read_key_prefixes(file: Path) -> np.ndarray:
    """The first 8 bytes of its photos' hashes, (photos,); none where the file is no whole segment, and it goes."""
    try:
        return _read_entries(file)[0][:, :8].copy().view("<u8")[:, 0]
    except OSError:
        pass  # gone already, or not to be read: no reason to throw it away
    except Exception:  # damaged archives make zipfile raise nearly everything there is
        with contextlib.suppress(OSError):
            file.unlink()
    return np.empty(0, np.uint64)
