"""A Hugging Face `datasets` folder -> table of photos, whose bytes lie in its Parquet or Arrow files.

Both layouts are known: what a hub shows (data/train-00000-of-00001.parquet) and what `save_to_disk` writes
(train/data-00000-of-00001.arrow); one with photos as files and metadata.csv is a manifest (tables.py).
"""

import json
import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import SPLITS, Photo, printable
from fieldmark.data.image import Unreadable
from fieldmark.data.readers.files import Files, Folder, Names
from fieldmark.data.readers.folders import Listed
from fieldmark.data.readers.tables import parquet

_LABELS = ("label", "labels", "fine_label", "class")
_IMAGES = ("image", "img", "photo")
GROUPS = 4  # that are held in memory


class Part(NamedTuple):
    """One file: a Parquet row group or an Arrow batch is what is read at once."""

    file: Path
    column: str  # of the photos
    starts: list[int]  # the first row of each group, and the number of rows

    def group(self, number: int) -> Any:
        """A group's photos, as an Arrow array."""
        arrow = parquet()
        if self.file.suffix == ".parquet":
            return arrow.parquet.ParquetFile(self.file).read_row_group(number, [self.column])[0].combine_chunks()
        return _batches(self.file)[number].column(self.column)


class Rows:
    """Photos by FILE/ROW."""

    def __init__(self, root: Path, parts: dict[str, Part]) -> None:
        self.root, self.parts, self.lock = root, parts, threading.Lock()
        self.group = lru_cache(GROUPS)(lambda name, number: parts[name].group(number))  # photos are read in order

    @property
    def in_order(self) -> bool:
        """Whether photos have to be read in order, since for one of them a whole row group of Parquet is read."""
        return sum(len(part.starts) - 1 for part in self.parts.values() if part.file.suffix == ".parquet") > GROUPS

    def entries(self, folder: str = "") -> Names:
        return (sorted(self.parts), []) if not folder else ([], [])

    def below(self, folder: str = "") -> Iterator[str]:
        for name, part in self.parts.items():
            if folder in ("", name):
                yield from (_path(name, row) for row in range(part.starts[-1]))

    def contents(self, path: str) -> bytes:
        name, _, said = path.rpartition("/")
        try:
            part, row = self.parts[name], int(said)
            number = next(k for k, start in enumerate(part.starts[1:]) if row < start)
            with self.lock:
                photos = self.group(name, number)
            photo = photos[row - part.starts[number]].as_py()
        except (KeyError, ValueError, StopIteration):
            raise Unreadable("no such photo") from None
        except Exception as error:  # a damaged file makes Arrow raise a dozen kinds
            raise Unreadable(f"damaged in its table: {str(error).splitlines()[0]}") from error
        content = photo.get("bytes") if isinstance(photo, dict) else photo
        if not isinstance(content, bytes):
            raise Unreadable("its table holds no bytes for it")
        return content


def listed(files: Files) -> Listed | None:
    """The photos of such a folder; None where this is another thing. Raises `FieldmarkError` for a damaged one."""
    if not isinstance(files, Folder):
        return None
    named = [name for name in files.entries()[0] if name == "data" or name.lower() in SPLITS]
    paths = [path for folder in ("", *named) for path in _tables(files, folder)]
    if not paths:
        return None
    parts, photos = {}, list[Photo]()
    for path in paths:
        try:
            part, labels = _read(files.root / path)
        except (OSError, ValueError, IndexError, parquet().ArrowException) as error:
            name = printable(str(files.root / path))
            raise FieldmarkError(f"{name} cannot be read ({str(error).splitlines()[0]})") from None
        if part is None:
            return None
        parts[path] = part
        photos += [
            Photo(_path(path, row), label, _split(path)) for row, label in enumerate(labels) if label is not None
        ]
    return Listed(Rows(files.root, parts), photos, [])


def table(file: Path) -> Rows:
    """The photos of one Parquet file, whatever else is in it. Raises `FieldmarkError`."""
    try:
        part = _part(file)[0]
    except (OSError, ValueError, IndexError, parquet().ArrowException) as error:
        raise FieldmarkError(f"{printable(str(file))} cannot be read ({str(error).splitlines()[0]})") from None
    if part is None:
        raise FieldmarkError(f"{printable(str(file))} has no column {' or '.join(_IMAGES)} of photos")
    return Rows(file.parent, {file.name: part})


def _tables(files: Files, folder: str) -> list[str]:
    """Parquet at the top, in data/ or in a folder per split; Arrow beside its dataset_info.json."""
    _, names = files.entries(folder)
    suffixes = (".parquet", ".arrow") if "dataset_info.json" in names else (".parquet",)
    return [f"{folder}/{name}" if folder else name for name in names if name.endswith(suffixes)]


def _part(file: Path) -> tuple[Part | None, Any]:
    """A file's part, where it holds photos, and its schema."""
    arrow = parquet()
    if file.suffix == ".parquet":
        opened = arrow.parquet.ParquetFile(file)
        schema, sizes = (
            opened.schema_arrow,
            [opened.metadata.row_group(k).num_rows for k in range(opened.num_row_groups)],
        )
    else:
        batches = _batches(file)
        schema, sizes = batches[0].schema, [batch.num_rows for batch in batches]
    column = next((name for name in _IMAGES if name in schema.names), None)
    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return Part(file, column, starts) if column else None, schema


def _read(file: Path) -> tuple[Part | None, list[str | None]]:
    """A file's part and its labels; no part where it holds no photos with labels."""
    part, schema = _part(file)
    label = next((name for name in _LABELS if name in schema.names), None)
    if part is None or label is None:
        return None, []
    if file.suffix == ".parquet":
        numbers = parquet().parquet.ParquetFile(file).read([label])[0].to_pylist()
    else:
        numbers = [number for batch in _batches(file) for number in batch.column(label).to_pylist()]
    names = _class_names(schema, label)
    if names and any(isinstance(k, int) and not -1 <= k < len(names) for k in numbers):
        raise ValueError(f"a class number is not among its {len(names)} classes")
    labels = [None if k in (None, -1) else names[k] if names and isinstance(k, int) else str(k) for k in numbers]
    return part, labels


def _batches(file: Path) -> list[Any]:
    """The record batches of an Arrow stream, in a memory map."""
    arrow = parquet()
    with arrow.memory_map(str(file)) as source:
        return list(arrow.ipc.open_stream(source))


def _class_names(schema: Any, label: str) -> list[str]:
    """Of a ClassLabel, as `datasets` writes it into the schema."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return []


def _path(table: str, row: int) -> str:
    return f"{table}/{row:06}"


def _split(path: str) -> str | None:
    """By the file's name (train-00000-of-00001.parquet), else by its folder's."""
    folder, _, name = path.rpartition("/")
    return SPLITS.get(re.split(r"[-_.]", name)[0].lower()) or SPLITS.get(folder.lower())
