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

from fieldmark.audit import duplicates
from fieldmark.audit.audit import Look
from fieldmark.core.errors import FieldmarkError
from fieldmark.data import image
from fieldmark.data.cache.segments import BYTES, ENTRY, PLACE, Draft, Shelf, Stored, intact, make_room, mapped

T = TypeVar("T")
LIMIT_GB = 20.0
STREAMED = "streamed.json"
"""In a run's folder, where its photos are decoded anew each time (`stream`): then it has no pack."""
GROWTH = 32_000  # with every so many photos a run's segments get larger, or it would have too many files open


class Pack:
    """The decoded photos of one run, in its order: `pack[i]` is uint8 (h, w, 3), a view of a mapped file.

    `folder` holds the record of what lies where, from which any process opens the same pack.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "pack.npz", allow_pickle=False) as record:
            self.places, self.files = record["places"], json.loads(str(record["files"]))
        self.segments = [mapped(folder / file) for file in self.files]

    @staticmethod
    def whole(folder: Path, own: bool = False) -> bool:
        """Whether a pack is there with every photo as it was written; reads them all.

        With `own` they have to lie in the run's folder, as other machines see no cache.
        """
        try:
            pack = Pack(folder)
            if own and any(Path(file).is_absolute() for file in pack.files):
                return False
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return False
        return all(intact(pack.segments[place["segment"]], place) for place in pack.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> np.ndarray:
        segment, h, w, _, at = self.places[i].item()
        return self.segments[segment][at : at + h * w * 3].reshape(h, w, 3)

    def __reduce__(self) -> tuple[type["Pack"], tuple[Path]]:
        """Another process opens it anew, and gets no copy of the photos."""
        return Pack, (self.folder,)


class Packer:
    """Makes the pack of a run in its own `folder`, photo by photo: what is known is listed, what is new is stored.

    `kind` (see there) says how the photos are decoded: without it they stay in `folder`, and the cache is left alone.
    `say` gets a line where the cache is not to be had.
    """

    def __init__(self, folder: Path, kind: str = "", say: Callable[[str], object] = print) -> None:
        self.folder, self.say, self.home = folder, say, folder / "photos" / kind
        self.cache = root / kind if kind and (root := cache()) else None
        self.shelf = Shelf([self.home] if self.cache is None else [self.home, self.cache])
        self.files: dict[Path, int] = {}  # the segments of this pack, numbered
        self.places = bytearray()  # PLACE by PLACE
        self.draft: Draft | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pack.npz").unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.places) // PLACE.itemsize

    def known(self, sha256: str) -> Stored | None:
        """The photo whose file has this hash, if it has been decoded before; safe in threads."""
        return self.shelf.find(sha256)

    def add(self, look: Look) -> None:
        """The next photo of the pack."""
        if isinstance(look, Stored) and look.file in self.shelf.maps:
            file, place = look.file, look.place.copy()
        else:
            file, place = self._write(look)
        place["segment"] = self.files.setdefault(file, len(self.files))
        self.places += place.tobytes()

    def finish(self) -> Pack:
        """Close the last segment, and record the pack in one move."""
        self._seal()
        for file in [file for file in self.files if not file.exists()]:
            self._bring_home(file)
        files = [os.path.relpath(f, self.folder) if f.is_relative_to(self.home) else str(f) for f in self.files]
        half = self.folder / "pack.half"
        with half.open("wb") as record:
            np.savez(record, places=np.frombuffer(self.places, PLACE), files=np.array(json.dumps(files)))
        half.replace(self.folder / "pack.npz")
        return Pack(self.folder)

    def __enter__(self) -> "Packer":
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever has happened, what is decoded is decoded."""
        if self.draft is not None:
            with contextlib.suppress(OSError):
                if self.draft.size:
                    self.draft.seal()
            self.draft.discard()

    def _write(self, look: Look) -> tuple[Path, np.void]:
        times = 1 + len(self) // GROWTH
        if self.draft is not None and self.draft.full(times):
            self._seal()
        if self.draft is None:
            self.draft = self._begun(times * BYTES)
        place = self._on_draft(lambda draft: draft.add(look))
        return self.draft.file, place

    def _begun(self, size: int) -> Draft:
        if self.cache is not None:
            try:
                if make_room(self.cache.parent, size, limit(), {*self.files, *self.shelf.maps}):
                    return Draft(self.cache)
                self._leave_cache("is full")
            except OSError as error:
                self._leave_cache(f"cannot be written ({error.strerror})")
        return Draft(self.home)

    def _seal(self) -> None:
        if self.draft is not None:
            self._on_draft(Draft.seal)
            self.shelf.maps[self.draft.file] = mapped(self.draft.file)
            self.draft = None

    def _on_draft(self, act: Callable[[Draft], T]) -> T:
        """The act on the draft; where the disk of the cache does not take it, on a copy in the run's own folder."""
        assert self.draft is not None
        try:
            return act(self.draft)
        except OSError as error:
            if self.draft.file.parent == self.home:
                raise
            self._leave_cache(f"cannot be written ({error.strerror})")
            before, self.draft = self.draft, self.draft.copied(self.home)
            self._moved(before.file, self.draft.file)
            before.discard()
            return act(self.draft)

    def _bring_home(self, file: Path) -> None:
        """A segment that another run has thrown away, but is mapped here."""
        copy = self.home / file.name
        self.home.mkdir(parents=True, exist_ok=True)
        self.shelf.maps[file].tofile(copy)
        self._moved(file, copy)

    def _moved(self, file: Path, to: Path) -> None:
        self.files = {to if known == file else known: number for known, number in self.files.items()}

    def _leave_cache(self, why: str) -> None:
        assert self.cache is not None
        self.say(f"the cache {self.cache.parent} {why}: this run keeps its decoded photos in {self.home}")
        self.cache = None


def exists(folder: Path) -> bool:
    """Whether a pack is recorded there, whole or not, or that photos are decoded anew."""
    return (folder / "pack.npz").exists() or (folder / STREAMED).exists()


def clear(folder: Path) -> None:
    """Delete a run's pack and what it alone has of the photos; the cache stays. The record goes last."""
    shutil.rmtree(folder / "photos", ignore_errors=True)
    (folder / "pack.npz").unlink(missing_ok=True)
    (folder / STREAMED).unlink(missing_ok=True)


def kind(shorter: int, interpolation: str) -> str:
    """The name of a way to decode: the same file and the same name mean the same pixels, to the bit.

    The versions of Pillow and of what it was built with count as much as the settings and our own code.
    """
    libraries = ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "zlib", "libtiff", "webp", "avif")
    versions = [features.version(name) for name in libraries]
    told = hashlib.sha256(repr([versions, ENTRY.descr]).encode())
    for module in (image, duplicates):
        told.update(Path(str(module.__file__)).read_bytes())
    return f"{shorter}-{interpolation}-{told.hexdigest()[:12]}"


def cache() -> Path | None:
    """The folder that keeps decoded photos for the next run, None where it may hold nothing or there is no home.

    It is `photos` in `$FIELDMARK_CACHE`, in `fieldmark` in `$XDG_CACHE_HOME`, or in `~/.cache/fieldmark`.
    """
    if limit() == 0:
        return None
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fieldmark"
        return Path(os.environ.get("FIELDMARK_CACHE") or usual).absolute() / "photos"
    except RuntimeError:
        return None


def limit() -> float:
    """Bytes that the cache may hold: `$FIELDMARK_CACHE_GB`, or 20 GB."""
    asked = os.environ.get("FIELDMARK_CACHE_GB") or LIMIT_GB
    try:
        if (gb := float(asked)) >= 0:
            return gb * 1e9
    except ValueError:
        pass
    raise FieldmarkError(f"FIELDMARK_CACHE_GB is {asked!r}, but is a number of gigabytes, as 50; 0 keeps nothing")
