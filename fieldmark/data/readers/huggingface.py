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
from fieldmark.core.text import printable
from fieldmark.data.catalog import SPLIT_ALIASES, Photo
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.readers.files import FileTree, Folder, FolderListing
from fieldmark.data.readers.folders import ReaderResult
from fieldmark.data.readers.tables import import_pyarrow

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_IMAGE_COLUMNS = ("image", "img", "photo")
MAX_CACHED_ROW_GROUPS = 4  # that are held in memory


class DataFile(NamedTuple):
    """One file: a Parquet row group or an Arrow batch is what is read at once."""

    file: Path
    column: str  # of the photos
    row_starts: list[int]  # the first row of each group, and the number of rows

    def read_row_group(self, number: int) -> Any:
        """A group's photos, as an Arrow array."""
        arrow = import_pyarrow()
        if self.file.suffix == ".parquet":
            return arrow.parquet.ParquetFile(self.file).read_row_group(number, [self.column])[0].combine_chunks()
        return _batches(self.file)[number].column(self.column)


class DatasetFiles:
    """Photos by FILE/ROW."""

    def __init__(self, root: Path, parts: dict[str, DataFile]) -> None:
        self.root, self.data_files, self.lock = root, parts, threading.Lock()
        self.cached_row_group = lru_cache(MAX_CACHED_ROW_GROUPS)(
            lambda name, number: parts[name].read_row_group(number)
        )  # photos are read in order

    @property
    def is_sequential(self) -> bool:
        """Whether photos have to be read in order, since for one of them a whole row group of Parquet is read."""
        return (
            sum(len(part.row_starts) - 1 for part in self.data_files.values() if part.file.suffix == ".parquet")
            > MAX_CACHED_ROW_GROUPS
        )

    def list_folder(self, folder: str = "") -> FolderListing:
        return (sorted(self.data_files), []) if not folder else ([], [])

    def walk(self, folder: str = "") -> Iterator[str]:
        for name, part in self.data_files.items():
            if folder in ("", name):
                yield from (_row_path(name, row) for row in range(part.row_starts[-1]))

    def read_bytes(self, path: str) -> bytes:
        name, _, row_name = path.rpartition("/")
        try:
            part, row = self.data_files[name], int(row_name)
            number = next(k for k, start in enumerate(part.row_starts[1:]) if row < start)
            with self.lock:
                photos = self.cached_row_group(name, number)
            photo = photos[row - part.row_starts[number]].as_py()
        except (KeyError, ValueError, StopIteration):
            raise UnreadableImageError("no such photo") from None
        except Exception as error:  # a damaged file makes Arrow raise a dozen kinds
            raise UnreadableImageError(f"damaged in its table: {str(error).splitlines()[0]}") from error
        content = photo.get("bytes") if isinstance(photo, dict) else photo
        if not isinstance(content, bytes):
            raise UnreadableImageError("its table holds no bytes for it")
        return content


def list_images(files: FileTree) -> ReaderResult | None:
    """The photos of such a folder; None where this is another thing. Raises `FieldmarkError` for a damaged one."""
    if not isinstance(files, Folder):
        return None
    data_folders = [name for name in files.list_folder()[0] if name == "data" or name.lower() in SPLIT_ALIASES]
    paths = [path for folder in ("", *data_folders) for path in _data_file_names(files, folder)]
    if not paths:
        return None
    parts, photos = {}, list[Photo]()
    for path in paths:
        try:
            part, labels = _read_labels(files.root / path)
        except (OSError, ValueError, IndexError, import_pyarrow().ArrowException) as error:
            name = printable(str(files.root / path))
            raise FieldmarkError(f"{name} cannot be read ({str(error).splitlines()[0]})") from None
        if part is None:
            return None
        parts[path] = part
        photos += [
            Photo(_row_path(path, row), label, _split_of_path(path))
            for row, label in enumerate(labels)
            if label is not None
        ]
    return ReaderResult(DatasetFiles(files.root, parts), photos, [])


def open_parquet(file: Path) -> DatasetFiles:
    """The photos of one Parquet file, whatever else is in it. Raises `FieldmarkError`."""
    try:
        part = _open_data_file(file)[0]
    except (OSError, ValueError, IndexError, import_pyarrow().ArrowException) as error:
        raise FieldmarkError(f"{printable(str(file))} cannot be read ({str(error).splitlines()[0]})") from None
    if part is None:
        raise FieldmarkError(f"{printable(str(file))} has no column {' or '.join(_IMAGE_COLUMNS)} of photos")
    return DatasetFiles(file.parent, {file.name: part})


def _data_file_names(files: FileTree, folder: str) -> list[str]:
    """Parquet at the top, in data/ or in a folder per split; Arrow beside its dataset_info.json."""
    _, names = files.list_folder(folder)
    suffixes = (".parquet", ".arrow") if "dataset_info.json" in names else (".parquet",)
    return [f"{folder}/{name}" if folder else name for name in names if name.endswith(suffixes)]


def _open_data_file(file: Path) -> tuple[DataFile | None, Any]:
    """A file's part, where it holds photos, and its schema."""
    arrow = import_pyarrow()
    if file.suffix == ".parquet":
        parquet_file = arrow.parquet.ParquetFile(file)
        schema, sizes = (
            parquet_file.schema_arrow,
            [parquet_file.metadata.row_group(k).num_rows for k in range(parquet_file.num_row_groups)],
        )
    else:
        batches = _batches(file)
        schema, sizes = batches[0].schema, [batch.num_rows for batch in batches]
    column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return DataFile(file, column, starts) if column else None, schema


def _read_labels(file: Path) -> tuple[DataFile | None, list[str | None]]:
    """A file's part and its labels; no part where it holds no photos with labels."""
    part, schema = _open_data_file(file)
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    if part is None or label is None:
        return None, []
    if file.suffix == ".parquet":
        numbers = import_pyarrow().parquet.ParquetFile(file).read([label])[0].to_pylist()
    else:
        numbers = [number for batch in _batches(file) for number in batch.column(label).to_pylist()]
    names = _class_names(schema, label)
    if names and any(isinstance(k, int) and not -1 <= k < len(names) for k in numbers):
        raise ValueError(f"a class number is not among its {len(names)} classes")
    labels = [None if k in (None, -1) else names[k] if names and isinstance(k, int) else str(k) for k in numbers]
    return part, labels


def _batches(file: Path) -> list[Any]:
    """The record batches of an Arrow stream, in a memory map."""
    arrow = import_pyarrow()
    with arrow.memory_map(str(file)) as source:
        return list(arrow.ipc.open_stream(source))


def _class_names(schema: Any, label: str) -> list[str]:
    """Of a ClassLabel, as `datasets` writes it into the schema."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return []


def _row_path(table: str, row: int) -> str:
    return f"{table}/{row:06}"


def _split_of_path(path: str) -> str | None:
    """By the file's name (train-00000-of-00001.parquet), else by its folder's."""
    folder, _, name = path.rpartition("/")
    return SPLIT_ALIASES.get(re.split(r"[-_.]", name)[0].lower()) or SPLIT_ALIASES.get(folder.lower())
