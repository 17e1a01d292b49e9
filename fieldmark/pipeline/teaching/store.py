"""Features, hashes and thumbnails of the images of a session, in files that one process fills and others read.

The arrays have a row for each image from the beginning. A row counts when its status says so, which is written last; so
a process that is killed leaves no wrong row behind, and the next one goes on from there. Features are projected
(`projection.py`): 100,000 images are 100 MB, where their full features would be 2.5 GB.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.io import atomic_path, read_json, write_json
from fieldmark.data.decoded import THUMBNAIL_SIDE
from fieldmark.pipeline.teaching.projection import DIMENSIONS, Projection

WAITING, READ, UNREADABLE = 0, 1, 2
"""Status of an image."""
GROUPS_FILE = "groups.npy"
_SIGNATURES_FILE = "images.json"
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "features": ("<f4", (DIMENSIONS,)),
    "hashes": ("<u8", (2,)),
    "thumbnails": ("|u1", (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)),
    "status": ("|u1", ()),
}

Signature = tuple[int, int]
"""Size and time of change of an image's file."""


class FeatureStore:
    """The files in a folder, mapped into memory; `open_store` makes them.

    Attributes:
        features: float32 (n, k), projected; unused columns are 0.
        hashes: uint64 (n, 2), see `fieldmark.data.decoded.dhash`.
        thumbnails: uint8 (n, 16, 16, 3).
        status: (n,) `WAITING`, `READ` or `UNREADABLE`.
    """

    features: np.ndarray
    hashes: np.ndarray
    thumbnails: np.ndarray
    status: np.ndarray

    def __init__(self, folder: Path, mode: str = "r") -> None:
        self.folder = folder
        try:
            for name in _COLUMNS:
                setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode=mode, allow_pickle=False))  # type: ignore[arg-type]
            if len({len(getattr(self, name)) for name in _COLUMNS}) > 1:
                raise ValueError("its files have different lengths")
        except (OSError, ValueError, EOFError) as error:
            raise FieldmarkError(f"{folder} is damaged ({error}): delete it, the features are computed anew") from None

    def __len__(self) -> int:
        return len(self.status)

    @property
    def projection(self) -> Projection | None:
        """What projects the features; None before the first images have been read."""
        file = self.folder / "projection.npz"
        return Projection.load(file) if file.exists() else None

    @property
    def groups(self) -> np.ndarray:
        """Number of the group of near-duplicates of each image, int (n,); each is its own before they were searched."""
        groups = self._searched_groups()
        return np.where(groups < 0, np.arange(len(self)), groups)

    @property
    def is_grouped(self) -> bool:
        """Whether near-duplicates have been searched among all images that have been read."""
        return not ((self._searched_groups() < 0) & (self.status == READ)).any()

    def _searched_groups(self) -> np.ndarray:
        """As `groups`; -1 for images that had not been read."""
        file, none = self.folder / GROUPS_FILE, np.full(len(self), -1)
        groups = np.load(file, allow_pickle=False) if file.exists() else none
        return groups if len(groups) == len(self) else none  # of the images that were there before

    def write(self, row: int, features: np.ndarray, hashes: tuple[int, int], thumbnail: np.ndarray) -> None:
        """Row of an image that has been read."""
        self.features[row, : len(features)] = features
        self.hashes[row], self.thumbnails[row] = hashes, thumbnail
        self.status[row] = READ

    def write_groups(self, groups: np.ndarray) -> None:
        """Group numbers (n,), see `groups`; -1 for images that have not been read."""
        with atomic_path(self.folder / GROUPS_FILE) as partial, partial.open("wb") as handle:
            np.save(handle, groups)


def open_store(folder: Path, names: Sequence[str], signatures: Sequence[Signature], model: str) -> FeatureStore:
    """The store for these images, in `folder`; rows of images that have not changed are kept.

    Args:
        names: of the images.
        signatures: of their files.
        model: identifies the network; features of another one are computed anew.
    """
    file = folder / _SIGNATURES_FILE
    images = [[name, *signature] for name, signature in zip(names, signatures, strict=True)]
    known = read_json(file) if file.exists() else {"model": model, "images": []}
    if not isinstance(known, dict) or not {"model", "images"} <= known.keys():
        raise FieldmarkError(f"{file} is damaged: delete {folder}, the features are computed anew")
    if file.exists() and known == {"model": model, "images": images}:
        return FeatureStore(folder, "r+")
    partial = folder.with_name(folder.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    _create(partial, len(names))
    if file.exists() and known["model"] == model and not _outgrows(FeatureStore(folder), len(names)):
        _copy_rows(FeatureStore(folder), known["images"], FeatureStore(partial, "r+"), images)
    write_json(partial / _SIGNATURES_FILE, {"model": model, "images": images})
    file.unlink(missing_ok=True)  # first, so that a kill leaves no half of a store behind
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return FeatureStore(folder, "r+")


def _outgrows(store: FeatureStore, n: int) -> bool:
    """Whether so few images have given the principal directions that they do not serve for `n`."""
    projection = store.projection
    return projection is not None and projection.directions.shape[1] < DIMENSIONS and n > 2 * len(store)


def _copy_rows(
    source: FeatureStore, source_images: list[list], target: FeatureStore, target_images: list[list]
) -> None:
    """Take over the rows of equal images; their features hold with the same projection alone."""
    if source.projection is None:
        return
    source.projection.save(target.folder / "projection.npz")
    rows = {tuple(image): i for i, image in enumerate(source_images)}
    pairs = [(rows[key], i) for i, image in enumerate(target_images) if (key := tuple(image)) in rows]
    there, here = np.array(pairs, np.int64).reshape(-1, 2).T
    for name in _COLUMNS:
        getattr(target, name)[here] = getattr(source, name)[there]


def _create(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    for name, (dtype, shape) in _COLUMNS.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (n, *shape)).flush()
