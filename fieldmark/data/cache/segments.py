"""Segments: immutable files of decoded images, looked up by SHA-256, evicted least recently used first.

A segment holds the pixels of many images one after another, then a zip archive with the hash, place and checksum of
each. It appears whole or not at all. So any number of runs share a folder of segments without a lock: two that store
the same image at once waste space and nothing else, and a segment that is deleted stays readable to the runs that have
mapped it (POSIX).
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

from fieldmark.core.io import PARTIAL_SUFFIX, partial_path
from fieldmark.data.decoded import THUMBNAIL_SIDE, DecodedImage

MAX_SEGMENT_IMAGES = 1000
MAX_SEGMENT_BYTES = 256 << 20
"""A segment is full with either, so that a kill loses no more than seconds of decoding."""
MAX_MAPPED_SEGMENTS = 200
"""Segments that are kept mapped: each costs a file handle."""
MAX_DISK_SHARE = 0.5
"""Part of the free disk, counted without the segments, that they may take."""
STALE_SECONDS = 86_400.0
"""Age of an unfinished segment, in seconds, from which on it is deleted."""

LOCATION_DTYPE = np.dtype([("segment", "<i4"), ("h", "<i4"), ("w", "<i4"), ("crc", "<u4"), ("at", "<i8")])
ENTRY_DTYPE = np.dtype(
    [("place", LOCATION_DTYPE), ("dhash", "<u8", 2), ("thumbnail", "u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3))]
)


@dataclass(frozen=True)
class CachedImage(DecodedImage):
    """An image that has been decoded before: the segment that holds it, and its place there (`LOCATION_DTYPE`)."""

    file: Path
    location: np.void


class SegmentWriter:
    """Writes a segment. A full disk raises OSError and leaves the images added before intact."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{uuid4().hex}.seg"
        self.temporary_file = partial_path(self.file)
        self.handle = self.temporary_file.open("wb", buffering=0)
        self.size, self.keys, self.entries = 0, bytearray(), bytearray()

    def is_full(self, multiple: int) -> bool:
        """Whether it holds `multiple` times what a segment should."""
        return self.size >= multiple * MAX_SEGMENT_BYTES or len(self.keys) >= multiple * MAX_SEGMENT_IMAGES * 32

    def add(self, image: DecodedImage) -> np.void:
        """Append the image. Returns its `LOCATION_DTYPE`, of which the caller sets `segment`."""
        pixels = np.ascontiguousarray(image.pixels)
        h, w, _ = pixels.shape
        location = (0, h, w, zlib.crc32(pixels.data), self.size)
        entry = np.array([(location, image.dhash, image.thumbnail)], ENTRY_DTYPE)[0]
        self._append(pixels.data)
        self.size += pixels.nbytes
        self.keys += bytes.fromhex(image.sha256)
        self.entries += entry.tobytes()
        return entry["place"]

    def finish(self) -> None:
        """Complete the segment. It is not fsynced: checksums detect data lost in a crash."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("keys", bytes(self.keys))
            archive.writestr("entries", bytes(self.entries))
        self._append(buffer.getbuffer())
        self.handle.close()
        self.temporary_file.replace(self.file)

    def copy_to(self, folder: Path) -> "SegmentWriter":
        """A writer of the same images at the same places, in another folder."""
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
        """Write behind the last image, over what a full disk cut off."""
        self.handle.seek(self.size)
        self.handle.truncate()
        data = data.cast("B")
        while len(data):
            data = data[self.handle.write(data) :]


class SegmentIndex:
    """The images in the segments of some folders, by hash; damaged segments are deleted."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.mapped_segments: dict[Path, np.ndarray] = {}
        self.entries = lru_cache(8)(_read_entries)  # about 1 MB each; images of one dataset lie together
        segments = [
            (file, keys) for folder in folders for file in folder.glob("*.seg") if len(keys := _read_key_prefixes(file))
        ]
        segments.sort(key=lambda pair: -len(pair[1]))  # of several copies that in the largest segment is found
        self.files = [file for file, _ in segments]
        self.row_starts = np.cumsum([0, *(len(keys) for _, keys in segments)])
        prefixes = np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in segments)])
        self.order = np.argsort(prefixes, kind="stable")
        self.prefixes = prefixes[self.order]

    def find(self, sha256: str) -> CachedImage | None:
        """The image with this `content_hash`, if its pixels have the recorded checksum; safe in threads."""
        key = bytes.fromhex(sha256)
        (prefix,) = np.frombuffer(key[:8], "<u8")
        first, last = (int(np.searchsorted(self.prefixes, prefix, side)) for side in ("left", "right"))
        for k in self.order[first:last]:
            segment = int(np.searchsorted(self.row_starts, k, "right")) - 1
            with contextlib.suppress(OSError):  # evicted since
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
        """The segment's bytes; the first `MAX_MAPPED_SEGMENTS` stay mapped."""
        if file in self.mapped_segments:
            return self.mapped_segments[file]
        pixels = map_file(file)
        return (
            self.mapped_segments.setdefault(file, pixels) if len(self.mapped_segments) < MAX_MAPPED_SEGMENTS else pixels
        )


def map_file(file: Path) -> np.ndarray:
    """A file's bytes as uint8 (bytes,), memory-mapped."""
    mark_used(file)
    return np.asarray(np.memmap(file, np.uint8, "r"))


def mark_used(file: Path) -> None:
    """Set the time of modification, by which the least recently used segments are evicted."""
    with contextlib.suppress(OSError):
        os.utime(file)


def is_intact(segment: np.ndarray, location: np.void) -> bool:
    """Whether the pixels at a location of the segment have the recorded checksum."""
    _, h, w, crc, at = location.item()
    return zlib.crc32(segment[at : at + h * w * 3].data) == crc


def evict_segments(root: Path, size: int, limit: float, keep: Collection[Path]) -> bool:
    """Delete the least recently used segments in the folders of `root` until `size` more bytes are within the limit.

    Segments in `keep` are never deleted. Returns whether the limit is met.
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
        if over or (file.suffix == PARTIAL_SUFFIX and time.time() - modified > STALE_SECONDS):
            with contextlib.suppress(OSError):  # another user's
                file.unlink(missing_ok=True)
                total_bytes -= file_size
    return total_bytes + size <= limit


def _read_entries(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The hashes, uint8 (images, 32), and the entries, `ENTRY_DTYPE` (images,)."""
    with zipfile.ZipFile(file) as archive:
        keys = np.frombuffer(archive.read("keys"), np.uint8).reshape(-1, 32)
        return keys, np.frombuffer(archive.read("entries"), ENTRY_DTYPE, len(keys))


def _read_key_prefixes(file: Path) -> np.ndarray:
    """The first 8 bytes of each hash, uint64 (images,); none if the file is damaged, which deletes it."""
    try:
        return _read_entries(file)[0][:, :8].copy().view("<u8")[:, 0]
    except OSError:
        pass  # gone already or unreadable: no reason to delete it
    except Exception:  # damaged archives make zipfile raise nearly everything there is
        with contextlib.suppress(OSError):
            file.unlink()
    return np.empty(0, np.uint64)
