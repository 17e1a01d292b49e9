"""The decoded images of a run, memory-mapped, in a cache that all runs of a user share.

Images are looked up by the content of their files. What the cache does not hold is decoded and added to it, a segment
at a time; what finds no room there is stored in the run's own folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import features

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import LOGGER
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
CACHE_VERSION = 2
"""Raise it whenever a change of our code changes the pixels, dHash or thumbnail of a decoded image: it is a part of the
cache's key. tests/data/cache/test_golden.py fails until it is done."""
DEFAULT_CACHE_GB = 20.0
STREAM_RECORD_NAME = "streamed.json"
"""The file in a run's folder that replaces pack.npz if images are decoded anew each time (`StreamedImages`)."""
IMAGES_PER_SEGMENT_MULTIPLE = 32_000
"""Each further such number of images makes a run's segments larger, which bounds its open files."""


class MemmapImages:
    """The decoded images of a run, in its order: `images[i]` is uint8 (h, w, 3), a view of a mapped file.

    `folder` holds pack.npz, the record of where each image lies, from which any process opens the same images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "pack.npz", allow_pickle=False) as record:
            self.locations, self.files = record["places"], json.loads(str(record["files"]))
        self.segments = [map_file(folder / file) for file in self.files]

    @staticmethod
    def is_complete(folder: Path, in_run_folder: bool = False) -> bool:
        """Whether every image is there with the checksum that was recorded; reads all pixels.

        With `in_run_folder` they have to lie in the run's folder, which other machines see, and not in the cache.
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
        """Pickled as the folder: another process maps the same files."""
        return MemmapImages, (self.folder,)


class MemmapWriter:
    """Writes the `MemmapImages` of a run into `folder`, image by image: cached ones are recorded, new ones stored.

    Args:
        decoding_key: the key of the cache (`decoding_key`); without one, all images are stored in `folder`.
        notify: called with one line if the cache cannot be used.
    """

    def __init__(self, folder: Path, decoding_key: str = "", notify: Callable[[str], object] = LOGGER.warning) -> None:
        self.folder, self.notify, self.local_folder = folder, notify, folder / "photos" / decoding_key
        self.cache_folder = root / decoding_key if decoding_key and (root := cache_folder()) else None
        self.index = SegmentIndex(
            [self.local_folder] if self.cache_folder is None else [self.local_folder, self.cache_folder]
        )
        self.segment_numbers: dict[Path, int] = {}
        self.locations = bytearray()  # records of LOCATION_DTYPE
        self.segment_writer: SegmentWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pack.npz").unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.locations) // LOCATION_DTYPE.itemsize

    def find_cached(self, sha256: str) -> CachedImage | None:
        """The image with this `content_hash`, if it has been decoded before; safe in threads."""
        return self.index.find(sha256)

    def add(self, image: DecodedImage) -> None:
        """The next image of the run."""
        if isinstance(image, CachedImage) and image.file in self.index.mapped_segments:
            file, location = image.file, image.location.copy()
        else:
            file, location = self._write_image(image)
        location["segment"] = self.segment_numbers.setdefault(file, len(self.segment_numbers))
        self.locations += location.tobytes()

    def finish(self) -> MemmapImages:
        """Close the last segment and write pack.npz."""
        self._finish_segment()
        for file in [file for file in self.segment_numbers if not file.exists()]:
            self._copy_to_run_folder(file)
        files = [
            os.path.relpath(f, self.folder) if f.is_relative_to(self.local_folder) else str(f)
            for f in self.segment_numbers
        ]
        locations = np.frombuffer(self.locations, LOCATION_DTYPE)
        with io.atomic_path(self.folder / "pack.npz") as partial, partial.open("wb") as record:
            np.savez(record, places=locations, files=np.array(json.dumps(files)))
        return MemmapImages(self.folder)

    def __enter__(self) -> "MemmapWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the images decoded so far, also after an error."""
        if self.segment_writer is not None:
            with contextlib.suppress(OSError):
                if self.segment_writer.size:
                    self.segment_writer.finish()
            self.segment_writer.discard()

    def _write_image(self, image: DecodedImage) -> tuple[Path, np.void]:
        multiple = 1 + len(self) // IMAGES_PER_SEGMENT_MULTIPLE
        if self.segment_writer is not None and self.segment_writer.is_full(multiple):
            self._finish_segment()
        if self.segment_writer is None:
            self.segment_writer = self._open_segment(multiple * MAX_SEGMENT_BYTES)
        location = self._write_or_relocate(lambda writer: writer.add(image))
        return self.segment_writer.file, location

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
        """Apply the operation to the open segment; if the cache's disk is full, to a copy of it in the run's folder."""
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
        """Copy a segment that another run has evicted and that is still mapped here."""
        copy = self.local_folder / file.name
        self.local_folder.mkdir(parents=True, exist_ok=True)
        with io.atomic_path(copy) as partial:
            self.index.mapped_segments[file].tofile(partial)
        self._update_segment_path(file, copy)

    def _update_segment_path(self, file: Path, to: Path) -> None:
        self.segment_numbers = {
            to if known == file else known: number for known, number in self.segment_numbers.items()
        }

    def _disable_cache(self, reason: str) -> None:
        assert self.cache_folder is not None
        self.notify(
            f"the image cache {self.cache_folder.parent} {reason}: decoded images of this run are stored in"
            f" {self.local_folder}"
        )
        self.cache_folder = None


def has_record(folder: Path) -> bool:
    """Whether the folder of a run has a record of its images, intact or not, or that they are streamed."""
    return (folder / "pack.npz").exists() or (folder / STREAM_RECORD_NAME).exists()


def delete_record(folder: Path) -> None:
    """Delete the record of a run's images and the images that the run stores itself; the cache stays."""
    shutil.rmtree(folder / "photos", ignore_errors=True)
    (folder / "pack.npz").unlink(missing_ok=True)
    (folder / STREAM_RECORD_NAME).unlink(missing_ok=True)


def decoding_key(shorter: int, interpolation: str) -> str:
    """The key of a cache: for the same file and key, decoding gives the same pixels to the bit.

    Depends on the settings, `CACHE_VERSION`, the versions of Pillow, of its libraries and of the packages that decode
    further formats, and the format of an entry.
    """
    libraries = ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "zlib", "libtiff", "webp", "avif", "littlecms2")
    versions = [*map(features.version, libraries), *map(_package_version, ("pillow-heif", "pydicom"))]
    digest = hashlib.sha256(repr([CACHE_VERSION, versions, ENTRY_DTYPE.descr]).encode())
    return f"{shorter}-{interpolation}-squash-{digest.hexdigest()[:12]}"


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path | None:
    """The folder of the image cache, or None if it is disabled or there is no home directory.

    `photos` in `$FIELDMARK_CACHE`, in `$XDG_CACHE_HOME/fieldmark` or in `~/.cache/fieldmark`.
    """
    if cache_limit_bytes() == 0:
        return None
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fieldmark"
        return Path(os.environ.get("FIELDMARK_CACHE") or usual).absolute() / "photos"
    except RuntimeError:
        return None


def cache_limit_bytes() -> float:
    """Size limit of the image cache in bytes: `$FIELDMARK_CACHE_GB`, or 20 GB."""
    value = os.environ.get("FIELDMARK_CACHE_GB") or DEFAULT_CACHE_GB
    try:
        if (gb := float(value)) >= 0:
            return gb * 1e9
    except ValueError:
        pass
    raise FieldmarkError(f"FIELDMARK_CACHE_GB is {value!r}, but is a number of gigabytes, as 50; 0 disables the cache")
