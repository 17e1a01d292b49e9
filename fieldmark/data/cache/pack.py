"""Photos as the audit saw them -> a run's pack: decoded pixels, memory-mapped, kept by content for every run of a user.

What a run needs and the cache (see `cache`) does not hold is decoded and added to it, a segment at a time. What finds
no room there goes into the run's own folder, and with the run.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import features

from fieldmark.core.errors import FieldmarkError
from fieldmark.data import decoded, image
from fieldmark.data.cache.segments import (
    ENTRY_DTYPE,
    LOCATION_DTYPE,
    MAX_SEGMENT_BYTES,
    CachedImage,
    SegmentIndex,
    SegmentWriter,
    evict_segments,
    is_intact,
    map_file,
)
from fieldmark.data.decoded import DecodedImage

T = TypeVar("T")
DEFAULT_CACHE_GB = 20.0
STREAM_RECORD_NAME = "streamed.json"
"""In a run's folder, where its photos are decoded anew each time (`stream`): then it has no pack."""
IMAGES_PER_SEGMENT_MULTIPLE = (
    32_000  # with every so many photos a run's segments get larger, or it would have too many files open
)


class MemmapImages:
    """The decoded photos of one run, in its order: `pack[i]` is uint8 (h, w, 3), a view of a mapped file.

    `folder` holds the record of what lies where, from which any process opens the same pack.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "pack.npz", allow_pickle=False) as record:
            self.locations, self.files = record["places"], json.loads(str(record["files"]))
        self.segments = [map_file(folder / file) for file in self.files]

    @staticmethod
    def is_complete(folder: Path, in_run_folder: bool = False) -> bool:
        """Whether a pack is there with every photo as it was written; reads them all.

        With `own` they have to lie in the run's folder, as other machines see no cache.
        """
        try:
            images = MemmapImages(folder)
            if in_run_folder and any(Path(file).is_absolute() for file in images.files):
                return False
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return False
        return all(is_intact(images.segments[place["segment"]], place) for place in images.locations)

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, i: int) -> np.ndarray:
        segment, h, w, _, at = self.locations[i].item()
        return self.segments[segment][at : at + h * w * 3].reshape(h, w, 3)

    def __reduce__(self) -> tuple[type["MemmapImages"], tuple[Path]]:
        """Another process opens it anew, and gets no copy of the photos."""
        return MemmapImages, (self.folder,)


class MemmapWriter:
    """Makes the pack of a run in its own `folder`, photo by photo: what is known is listed, what is new is stored.

    `kind` (see there) says how the photos are decoded: without it they stay in `folder`, and the cache is left alone.
    `say` gets a line where the cache is not to be had.
    """

    def __init__(self, folder: Path, decoding_key: str = "", notify: Callable[[str], object] = print) -> None:
        self.folder, self.notify, self.local_folder = folder, notify, folder / "photos" / decoding_key
        self.cache_folder = root / decoding_key if decoding_key and (root := cache_folder()) else None
        self.index = SegmentIndex(
            [self.local_folder] if self.cache_folder is None else [self.local_folder, self.cache_folder]
        )
        self.segment_numbers: dict[Path, int] = {}  # the segments of this pack, numbered
        self.locations = bytearray()  # PLACE by PLACE
        self.segment_writer: SegmentWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pack.npz").unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.locations) // LOCATION_DTYPE.itemsize

    def find_cached(self, sha256: str) -> CachedImage | None:
        """The photo whose file has this hash, if it has been decoded before; safe in threads."""
        return self.index.find(sha256)

    def add(self, look: DecodedImage) -> None:
        """The next photo of the pack."""
        if isinstance(look, CachedImage) and look.file in self.index.mapped_segments:
            file, place = look.file, look.location.copy()
        else:
            file, place = self._write_image(look)
        place["segment"] = self.segment_numbers.setdefault(file, len(self.segment_numbers))
        self.locations += place.tobytes()

    def finish(self) -> MemmapImages:
        """Close the last segment, and record the pack in one move."""
        self._finish_segment()
        for file in [file for file in self.segment_numbers if not file.exists()]:
            self._copy_to_run_folder(file)
        files = [
            os.path.relpath(f, self.folder) if f.is_relative_to(self.local_folder) else str(f)
            for f in self.segment_numbers
        ]
        temporary = self.folder / "pack.half"
        with temporary.open("wb") as record:
            np.savez(record, places=np.frombuffer(self.locations, LOCATION_DTYPE), files=np.array(json.dumps(files)))
        temporary.replace(self.folder / "pack.npz")
        return MemmapImages(self.folder)

    def __enter__(self) -> "MemmapWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever has happened, what is decoded is decoded."""
        if self.segment_writer is not None:
            with contextlib.suppress(OSError):
                if self.segment_writer.size:
                    self.segment_writer.finish()
            self.segment_writer.discard()

    def _write_image(self, look: DecodedImage) -> tuple[Path, np.void]:
        multiple = 1 + len(self) // IMAGES_PER_SEGMENT_MULTIPLE
        if self.segment_writer is not None and self.segment_writer.is_full(multiple):
            self._finish_segment()
        if self.segment_writer is None:
            self.segment_writer = self._open_segment(multiple * MAX_SEGMENT_BYTES)
        place = self._write_or_relocate(lambda draft: draft.add(look))
        return self.segment_writer.file, place

    def _open_segment(self, size: int) -> SegmentWriter:
        if self.cache_folder is not None:
            try:
                if evict_segments(
                    self.cache_folder.parent,
                    size,
                    cache_limit_bytes(),
                    {*self.segment_numbers, *self.index.mapped_segments},
                ):
                    return SegmentWriter(self.cache_folder)
                self._disable_cache("is full")
            except OSError as error:
                self._disable_cache(f"cannot be written ({error.strerror})")
        return SegmentWriter(self.local_folder)

    def _finish_segment(self) -> None:
        if self.segment_writer is not None:
            self._write_or_relocate(SegmentWriter.finish)
            self.index.mapped_segments[self.segment_writer.file] = map_file(self.segment_writer.file)
            self.segment_writer = None

    def _write_or_relocate(self, operation: Callable[[SegmentWriter], T]) -> T:
        """The act on the draft; where the disk of the cache does not take it, on a copy in the run's own folder."""
        assert self.segment_writer is not None
        try:
            return operation(self.segment_writer)
        except OSError as error:
            if self.segment_writer.file.parent == self.local_folder:
                raise
            self._disable_cache(f"cannot be written ({error.strerror})")
            previous, self.segment_writer = self.segment_writer, self.segment_writer.copy_to(self.local_folder)
            self._update_segment_path(previous.file, self.segment_writer.file)
            previous.discard()
            return operation(self.segment_writer)

    def _copy_to_run_folder(self, file: Path) -> None:
        """A segment that another run has thrown away, but is mapped here."""
        copy = self.local_folder / file.name
        self.local_folder.mkdir(parents=True, exist_ok=True)
        self.index.mapped_segments[file].tofile(copy)
        self._update_segment_path(file, copy)

    def _update_segment_path(self, file: Path, to: Path) -> None:
        self.segment_numbers = {
            to if known == file else known: number for known, number in self.segment_numbers.items()
        }

    def _disable_cache(self, reason: str) -> None:
        assert self.cache_folder is not None
        self.notify(
            f"the cache {self.cache_folder.parent} {reason}: this run keeps its decoded photos in {self.local_folder}"
        )
        self.cache_folder = None


def has_record(folder: Path) -> bool:
    """Whether a pack is recorded there, whole or not, or that photos are decoded anew."""
    return (folder / "pack.npz").exists() or (folder / STREAM_RECORD_NAME).exists()


def delete_record(folder: Path) -> None:
    """Delete a run's pack and what it alone has of the photos; the cache stays. The record goes last."""
    shutil.rmtree(folder / "photos", ignore_errors=True)
    (folder / "pack.npz").unlink(missing_ok=True)
    (folder / STREAM_RECORD_NAME).unlink(missing_ok=True)


def decoding_key(shorter: int, interpolation: str) -> str:
    """The name of a way to decode: the same file and the same name mean the same pixels, to the bit.

    The versions of Pillow and of what it was built with count as much as the settings and our own code.
    """
    libraries = ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "zlib", "libtiff", "webp", "avif")
    versions = [features.version(name) for name in libraries]
    digest = hashlib.sha256(repr([versions, ENTRY_DTYPE.descr]).encode())
    for module in (image, decoded):
        digest.update(Path(str(module.__file__)).read_bytes())
    return f"{shorter}-{interpolation}-{digest.hexdigest()[:12]}"


def cache_folder() -> Path | None:
    """The folder that keeps decoded photos for the next run, None where it may hold nothing or there is no home.

    It is `photos` in `$FIELDMARK_CACHE`, in `fieldmark` in `$XDG_CACHE_HOME`, or in `~/.cache/fieldmark`.
    """
    if cache_limit_bytes() == 0:
        return None
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fieldmark"
        return Path(os.environ.get("FIELDMARK_CACHE") or usual).absolute() / "photos"
    except RuntimeError:
        return None


def cache_limit_bytes() -> float:
    """Bytes that the cache may hold: `$FIELDMARK_CACHE_GB`, or 20 GB."""
    value = os.environ.get("FIELDMARK_CACHE_GB") or DEFAULT_CACHE_GB
    try:
        if (gb := float(value)) >= 0:
            return gb * 1e9
    except ValueError:
        pass
    raise FieldmarkError(f"FIELDMARK_CACHE_GB is {value!r}, but is a number of gigabytes, as 50; 0 keeps nothing")
