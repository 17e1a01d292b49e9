"""RUN -> the photos that it was trained on and chosen by, where they still are: an export is held against them.

Never the test photos: the figures of a run stay those of photos that decided nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.core.text import printable
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.readers import read_catalog
from fieldmark.data.splits import read_split_file
from fieldmark.inference.run_folder import read_dataset_path

T = TypeVar("T")


@dataclass(frozen=True)
class RunSplits:
    """The training and validation photos of a run, each sorted by path, and how a photo is prepared for it.

    Other photos than the run's bring their own sides; where they have none, all of them are in `val`.
    """

    catalog: Catalog
    preprocessing: dict[str, Any]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]

    @classmethod
    def from_run(cls, run: Path, photos: str | Path | None, info: dict[str, Any]) -> "RunSplits":
        """Those of a run, or with `photos` of a bundle; `info` is what bundle.json holds.

        Raises FieldmarkError where there are none any more.
        """
        source = photos or read_dataset_path(run)
        try:
            catalog = read_catalog(source, min_classes=1)
        except FieldmarkError as error:
            hint = "" if photos else "; if the photos were moved, name them as well"
            raise FieldmarkError(f"{error}{hint}") from None
        photos_by_path, split_file = {photo.path: photo for photo in catalog.photos}, run / "split.csv"
        split_rows = read_split_file(split_file) if split_file.is_file() else ()
        rows = [replace(row, box=photos_by_path[row.path].box) for row in split_rows if row.path in photos_by_path]
        class_names = {printable(name) for name in info["classes"]}
        rows = [row for row in rows or catalog.photos if printable(row.label) in class_names]
        has_no_splits = all(row.split is None for row in rows)
        train = tuple(row for row in rows if row.split == "train")
        val = tuple(row for row in rows if row.split == "val" or has_no_splits)
        if not (train or val):
            raise FieldmarkError(f"{catalog.root} holds no photos for {run} to be held against: name others as well")
        return cls(catalog, info["preprocessing"], train, val)

    def map_images(self, photos: Sequence[Photo], function: Callable[[np.ndarray], T]) -> Iterator[tuple[Photo, T]]:
        """Each of the photos that can be read, with what `work` makes of its pixels, uint8 (size, size, 3), in threads.

        Raises FieldmarkError where none can be read.
        """

        def load_and_apply(photo: Photo) -> tuple[Photo, T] | None:
            box = photo.box if self.preprocessing.get("boxes") else None
            try:
                image = preprocess(self.catalog.read_bytes(photo), self.preprocessing, box)
            except UnreadableImageError:
                return None
            return photo, function(image)

        any_readable = False
        for result in ordered_map(load_and_apply, photos, runtime.available_cpus()):
            if result is not None:
                any_readable = True
                yield result
        if not any_readable:
            raise FieldmarkError(f"no photo of the run in {self.catalog.root} can be read: name the photos as well")


def sample_evenly(photos: Sequence[Photo], max_count: int) -> Sequence[Photo]:
    """At most so many photos, from first to last and so, as they are sorted, of all classes."""
    return [photos[k * len(photos) // max_count] for k in range(max_count)] if len(photos) > max_count else photos
