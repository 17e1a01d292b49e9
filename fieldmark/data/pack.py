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
from fieldmark.data.catalog import Catalog, Photo, count, listing, printable
from fieldmark.data.decisions import chosen
from fieldmark.data.image import Unreadable
from fieldmark.data.readers.huggingface import Rows
from fieldmark.data.readers.webdataset import Writer
from fieldmark.recipes.recipe import Recipe

MIB = 2**20


def pack(photos: str | Path, out: Path, reporter: Reporter, recipe: Recipe | None = None, shard_mb: int = 256) -> Any:
    """Pack photos into the new folder `out`, which appears when all is in it.

    There are `train-000000.tar`, `val-` and `test-` where the photos come with a split, else `photos-`, each of about
    `shard_mb` MiB, and classes.txt with a class a line, whose number (from 0) KEY.cls says. The recipe says which
    photos are meant: its `group_by`, `split_file` and `apply`; groups and boxes go along in KEY.json.

    -> `files`, `photos` (how many), `bytes`, `classes` (name -> photos), `unreadable` (path and reason of what the
    system would not give) and `warnings`.

    Raises:
        FieldmarkError: `out` exists, or a class has a name that no line can hold.
    """
    asked = recipe or Recipe()
    if out.exists():
        raise FieldmarkError(f"{out} exists: give another --shards")
    catalog = chosen(photos, asked, boxes=True)
    for name in catalog.classes:
        if [name] != name.splitlines():
            raise FieldmarkError(f"the class {printable(name)!r} cannot stand on a line of classes.txt: rename it")
    number, unreadable = {name: k for k, name in enumerate(catalog.classes)}, list[dict[str, str]]()
    packed, writers = dict.fromkeys(catalog.classes, 0), dict[str | None, Writer]()
    out.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with reporter.bar("packing", "photos") as advance, _at_random(catalog, half) as contents:
            for done, photo in enumerate(_shuffled(catalog.photos, asked.seed), 1):
                try:
                    content = contents(photo)
                except Unreadable as error:
                    unreadable.append({"path": photo.path, "reason": str(error)})
                    continue
                if photo.split not in writers:
                    writers[photo.split] = Writer(half, photo.split or "photos", shard_mb * MIB)
                writers[photo.split].add(photo, number[photo.label], content)
                packed[photo.label] += 1
                advance(done, len(catalog.photos))
        for writer in writers.values():
            writer.close()
        names = "\n".join(catalog.classes) + "\n"
        (half / "classes.txt").write_text(names, encoding="utf-8", errors="surrogateescape")
        half.chmod(0o755)  # a temporary folder is its owner's alone
    except BaseException:
        shutil.rmtree(half)
        raise
    files = sorted(half.iterdir())
    size = sum(file.stat().st_size for file in files)
    half.replace(out)
    named = listing([f"{found['path']} ({found['reason']})" for found in unreadable], 3)
    lost = [f"{count(len(unreadable), 'photo')} that could not be read left out: {named}"] if unreadable else []
    return {
        "files": [str(out / file.name) for file in files],
        "photos": sum(packed.values()),
        "bytes": size,
        "classes": packed,
        "unreadable": unreadable,
        "warnings": [*catalog.warnings, *lost],
    }


@contextmanager
def _at_random(catalog: Catalog, folder: Path) -> Iterator[Callable[[Photo], bytes]]:
    """What reads photos in any order; those that have to be read in theirs lie in a nameless file meanwhile."""
    if not (isinstance(catalog.files, Rows) and catalog.files.in_order):
        yield catalog.contents
        return
    places = dict[str, tuple[int, int] | Unreadable]()
    with tempfile.TemporaryFile(dir=folder) as spool:
        for photo in catalog.photos:
            try:
                places[photo.path] = spool.tell(), spool.write(catalog.contents(photo))
            except Unreadable as error:
                places[photo.path] = error

        def read(photo: Photo) -> bytes:
            place = places[photo.path]
            if isinstance(place, Unreadable):
                raise place
            spool.seek(place[0])
            return spool.read(place[1])

        yield read


def _shuffled(photos: tuple[Photo, ...], seed: int) -> list[Photo]:
    return [photos[k] for k in np.random.default_rng((seed, 5)).permutation(len(photos))]
