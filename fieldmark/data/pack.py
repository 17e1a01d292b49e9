"""PHOTOS -> WebDataset shards: few large files in place of many small ones, for disks that many machines share.

The bytes of the photos stay as they are. They lie in a random order, so that whoever reads shards from front to back
(webdataset's own loaders do) sees all classes from the start.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.decisions import load_recipe_catalog
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.readers.huggingface import DatasetFiles
from fieldmark.data.readers.webdataset import ShardWriter
from fieldmark.recipes.recipe import Recipe

BYTES_PER_MIB = 2**20


def write_shards(
    photos: str | Path, out: Path, reporter: Reporter, recipe: Recipe | None = None, shard_mb: int = 256
) -> Any:
    """Pack photos into the new folder `out`, which appears when all is in it.

    There are `train-000000.tar`, `val-` and `test-` where the photos come with a split, else `photos-`, each of about
    `shard_mb` MiB, and classes.txt with a class a line, whose number (from 0) KEY.cls says. The recipe says which
    photos are meant: its `group_by`, `split_file` and `apply`; groups and boxes go along in KEY.json.

    -> `files`, `photos` (how many), `bytes`, `classes` (name -> photos), `unreadable` (path and reason of what the
    system would not give) and `warnings`.

    Raises:
        FieldmarkError: `out` exists, or a class has a name that no line can hold.
    """
    settings = recipe or Recipe()
    if out.exists():
        raise FieldmarkError(f"{out} exists: give another --shards")
    catalog = load_recipe_catalog(photos, settings, keep_boxes=True)
    for name in catalog.classes:
        if [name] != name.splitlines():
            raise FieldmarkError(f"the class {printable(name)!r} cannot stand on a line of classes.txt: rename it")
    class_index, unreadable = {name: k for k, name in enumerate(catalog.classes)}, list[dict[str, str]]()
    packed_counts, writers = dict.fromkeys(catalog.classes, 0), dict[str | None, ShardWriter]()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with reporter.progress_bar("packing", "photos") as advance, _random_access(catalog, temporary) as contents:
            for done, photo in enumerate(_shuffle(catalog.photos, settings.seed), 1):
                try:
                    content = contents(photo)
                except UnreadableImageError as error:
                    unreadable.append({"path": photo.path, "reason": str(error)})
                    continue
                if photo.split not in writers:
                    writers[photo.split] = ShardWriter(temporary, photo.split or "photos", shard_mb * BYTES_PER_MIB)
                writers[photo.split].add(photo, class_index[photo.label], content)
                packed_counts[photo.label] += 1
                advance(done, len(catalog.photos))
        for writer in writers.values():
            writer.close()
        names = "\n".join(catalog.classes) + "\n"
        (temporary / "classes.txt").write_text(names, encoding="utf-8", errors="surrogateescape")
        temporary.chmod(0o755)  # a temporary folder is its owner's alone
    except BaseException:
        shutil.rmtree(temporary)
        raise
    files = sorted(temporary.iterdir())
    size = sum(file.stat().st_size for file in files)
    temporary.replace(out)
    unreadable_names = summarize_names([f"{found['path']} ({found['reason']})" for found in unreadable], 3)
    unreadable_warnings = (
        [f"{pluralize(len(unreadable), 'photo')} that could not be read left out: {unreadable_names}"]
        if unreadable
        else []
    )
    return {
        "files": [str(out / file.name) for file in files],
        "photos": sum(packed_counts.values()),
        "bytes": size,
        "classes": packed_counts,
        "unreadable": unreadable,
        "warnings": [*catalog.warnings, *unreadable_warnings],
    }


@contextmanager
def _random_access(catalog: Catalog, folder: Path) -> Iterator[Callable[[Photo], bytes]]:
    """What reads photos in any order; those that have to be read in theirs lie in a nameless file meanwhile."""
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
            place = locations[photo.path]
            if isinstance(place, UnreadableImageError):
                raise place
            spool.seek(place[0])
            return spool.read(place[1])

        yield read


def _shuffle(photos: tuple[Photo, ...], seed: int) -> list[Photo]:
    return [photos[k] for k in np.random.default_rng((seed, 5)).permutation(len(photos))]
