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
from fieldmark.data.catalog import Catalog, Photo, printable
from fieldmark.data.image import Unreadable, prepare
from fieldmark.data.readers import read
from fieldmark.data.splits import read_split
from fieldmark.inference.classifier import ahead
from fieldmark.inference.run_folder import source_of

T = TypeVar("T")


@dataclass(frozen=True)
class Sides:
    """The training and validation photos of a run, each sorted by path, and how a photo is prepared for it.

    Other photos than the run's bring their own sides; where they have none, all of them are in `val`.
    """

    catalog: Catalog
    look: dict[str, Any]
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]

    @classmethod
    def of(cls, run: Path, photos: str | Path | None, info: dict[str, Any]) -> "Sides":
        """Those of a run, or with `photos` of a bundle; `info` is what bundle.json holds.

        Raises FieldmarkError where there are none any more.
        """
        source = photos or source_of(run)
        try:
            catalog = read(source, least=1)
        except FieldmarkError as problem:
            moved = "" if photos else "; if the photos were moved, name them as well"
            raise FieldmarkError(f"{problem}{moved}") from None
        here, split = {photo.path: photo for photo in catalog.photos}, run / "split.csv"
        listed = read_split(split) if split.is_file() else ()
        rows = [replace(row, box=here[row.path].box) for row in listed if row.path in here]
        names = {printable(name) for name in info["classes"]}
        rows = [row for row in rows or catalog.photos if printable(row.label) in names]
        bare = all(row.split is None for row in rows)
        train = tuple(row for row in rows if row.split == "train")
        val = tuple(row for row in rows if row.split == "val" or bare)
        if not (train or val):
            raise FieldmarkError(f"{catalog.root} holds no photos for {run} to be held against: name others as well")
        return cls(catalog, info["preprocessing"], train, val)

    def each(self, photos: Sequence[Photo], work: Callable[[np.ndarray], T]) -> Iterator[tuple[Photo, T]]:
        """Each of the photos that can be read, with what `work` makes of its pixels, uint8 (size, size, 3), in threads.

        Raises FieldmarkError where none can be read.
        """

        def seen(photo: Photo) -> T:
            box = photo.box if self.look.get("boxes") else None
            return work(prepare(self.catalog.contents(photo), self.look, box))

        some = False
        for photo, made in ahead(((photo, photo) for photo in photos), seen, runtime.cores()):
            if not isinstance(made, Unreadable):
                some = True
                yield photo, made
        if not some:
            raise FieldmarkError(f"no photo of the run in {self.catalog.root} can be read: name the photos as well")


def spread(photos: Sequence[Photo], most: int) -> Sequence[Photo]:
    """At most so many photos, from first to last and so, as they are sorted, of all classes."""
    return [photos[k * len(photos) // most] for k in range(most)] if len(photos) > most else photos
