"""`fieldmark pack`: images -> WebDataset shards, few large files instead of many small ones.

The bytes of the images stay as they are. Their order is random, so that readers that go through shards from front to
back (as those of webdataset) see all classes from the start.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo, UnreadableFile
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.readers.huggingface import DatasetFiles
from fieldmark.data.readers.webdataset import ShardWriter
from fieldmark.recipes.recipe import Recipe

BYTES_PER_MIB = 2**20


@dataclass(frozen=True)
class PackReport:
    """The result of `write_shards`.

    Attributes:
        files: the shards and classes.txt.
        n_bytes: size of all files.
        classes: number of images of each class.
        unreadable: files whose bytes could not be read; they are left out.
    """

    files: tuple[Path, ...]
    n_bytes: int
    classes: dict[str, int]
    unreadable: tuple[UnreadableFile, ...]
    warnings: tuple[str, ...]

    @property
    def n_images(self) -> int:
        return sum(self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `fieldmark pack --json`."""
        return {
            "files": list(map(str, self.files)),
            "photos": self.n_images,
            "bytes": self.n_bytes,
            "classes": self.classes,
            "unreadable": [file.to_dict() for file in self.unreadable],
            "warnings": list(self.warnings),
        }


def write_shards(
    photos: str | Path, out: Path, reporter: Reporter, recipe: Recipe | None = None, shard_mb: int = 256
) -> PackReport:
    """Pack images into the new folder `out`, which appears when it is complete.

    It holds `train-000000.tar`, `val-` and `test-` if the images come with a split, else `photos-`, and classes.txt,
    one class a line, whose number (from 0) is in KEY.cls. Groups and boxes are in KEY.json.

    Args:
        recipe: its `group_by`, `split_file` and `apply` select the images; `seed` decides their order.
        shard_mb: approximate size of a shard in MiB.

    Raises:
        FieldmarkError: `out` exists, or the name of a class contains a line break.
    """
    recipe = recipe or Recipe()
    io.require_new(out, "--shards")
    catalog = load_recipe_catalog(photos, recipe, keep_boxes=True)
    for name in catalog.classes:
        if [name] != name.splitlines():
            raise FieldmarkError(f"the class {printable(name)!r} cannot stand on a line of classes.txt: rename it")
    with io.new_folder(out) as partial:
        counts, unreadable = _write_images(catalog, partial, recipe.seed, shard_mb * BYTES_PER_MIB, reporter)
        lines = "\n".join(catalog.classes) + "\n"
        (partial / "classes.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")
    files, warnings = tuple(sorted(out.iterdir())), catalog.warnings
    if unreadable:
        names = summarize_names([f"{file.path} ({file.reason})" for file in unreadable], 3)
        warnings += (f"{pluralize(len(unreadable), 'photo')} that could not be read left out: {names}",)
    return PackReport(files, sum(file.stat().st_size for file in files), counts, tuple(unreadable), warnings)


def _write_images(
    catalog: Catalog, folder: Path, seed: int, shard_bytes: int, reporter: Reporter
) -> tuple[dict[str, int], list[UnreadableFile]]:
    """Write the shards. Returns the number of images of each class, and the files that could not be read."""
    class_index = {name: k for k, name in enumerate(catalog.classes)}
    counts, unreadable = dict.fromkeys(catalog.classes, 0), list[UnreadableFile]()
    writers = dict[str | None, ShardWriter]()
    with reporter.progress_bar("packing", "photos") as advance, _random_access(catalog, folder) as read_bytes:
        for done, photo in enumerate(_shuffle(catalog.photos, seed), 1):
            try:
                content = read_bytes(photo)
            except UnreadableImageError as error:
                unreadable.append(UnreadableFile(photo.path, str(error)))
                continue
            if photo.split not in writers:
                writers[photo.split] = ShardWriter(folder, photo.split or "photos", shard_bytes)
            writers[photo.split].add(photo, class_index[photo.label], content)
            counts[photo.label] += 1
            advance(done, len(catalog.photos))
    for writer in writers.values():
        writer.close()
    return counts, unreadable


@contextmanager
def _random_access(catalog: Catalog, folder: Path) -> Iterator[Callable[[Photo], bytes]]:
    """A function that reads images in any order; images that can only be read in sequence are spooled to a file."""
    if not (isinstance(catalog.files, DatasetFiles) and catalog.files.is_sequential):
        yield catalog.read_bytes
        return
    locations = dict[str, tuple[int, int] | UnreadableImageError]()
    with tempfile.TemporaryFile(dir=folder) as spool:
        for photo in catalog.photos:
            try:
                locations[photo.path] = spool.tell(), spool.write(catalog.read_bytes(photo))
            except UnreadableImageError as error:
                locations[photo.path] = error

        def read(photo: Photo) -> bytes:
            location = locations[photo.path]
            if isinstance(location, UnreadableImageError):
                raise location
            offset, size = location
            spool.seek(offset)
            return spool.read(size)

        yield read


def _shuffle(photos: tuple[Photo, ...], seed: int) -> list[Photo]:
    return [photos[k] for k in np.random.default_rng((seed, 5)).permutation(len(photos))]
