"""Reader of Hugging Face `datasets` folders, whose images are in Parquet or Arrow files.

Reads the layout of a hub (data/train-00000-of-00001.parquet) and that of `save_to_disk`
(train/data-00000-of-00001.arrow). A folder of image files with metadata.csv is read as a manifest (tables.py).
"""

import json
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.catalog import Photo
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.readers.files import FileTree, Folder, ReaderResult, VirtualTree
from fieldmark.data.readers.tables import import_pyarrow
from fieldmark.data.split_names import resolve_split, splits_of_files

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_IMAGE_COLUMNS = ("image", "img", "photo")
MAX_CACHED_ROW_GROUPS = 4
"""Row groups that are kept in memory."""


class DataFile(NamedTuple):
    """One file of a dataset, of which a Parquet row group or an Arrow batch is read at a time.

    Attributes:
        column: name of the column that holds the images.
        row_starts: the first row of each row group, and the number of all rows.
    """

    file: Path
    column: str
    row_starts: list[int]

    def read_row_group(self, number: int) -> Any:
        """The images of a row group, as an Arrow array."""
        return _open_table(self.file).read_row_group(number, self.column)


class DatasetFiles(VirtualTree):
    """The images of several data files, as FILE/ROW."""

    def __init__(self, root: Path, data_files: dict[str, DataFile]) -> None:
        super().__init__(root, data_files)
        self.data_files, self.lock = data_files, threading.Lock()
        self.cached_row_group = lru_cache(MAX_CACHED_ROW_GROUPS)(
            lambda name, number: data_files[name].read_row_group(number)
        )

    @property
    def is_sequential(self) -> bool:
        """Whether images have to be read in order, as each one of Parquet costs reading its whole row group."""
        parquet = [part for part in self.data_files.values() if part.file.suffix == ".parquet"]
        return sum(len(part.row_starts) - 1 for part in parquet) > MAX_CACHED_ROW_GROUPS

    def file_names(self, folder: str) -> Iterator[str]:
        return (f"{row:06}" for row in range(self.data_files[folder].row_starts[-1]))

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
    """The images of such a folder; None if this is another dataset. Raises `FieldmarkError` if it is damaged."""
    if not isinstance(files, Folder):
        return None
    data_folders = [name for name in files.list_folder()[0] if name == "data" or resolve_split(name)]
    paths = [path for folder in ("", *data_folders) for path in _data_file_names(files, folder)]
    if not paths:
        return None
    parts, photos = {}, list[Photo]()
    splits = splits_of_files({name for path in paths for name in path.rpartition("/")[::2]})
    for path in paths:
        try:
            part, labels = _read_labels(files.root / path)
        except (OSError, ValueError, IndexError, import_pyarrow().ArrowException) as error:
            name = printable(str(files.root / path))
            raise FieldmarkError(f"{name} cannot be read ({str(error).splitlines()[0]})") from None
        if part is None:
            return None
        parts[path] = part
        folder, _, name = path.rpartition("/")
        split, rows = splits[name] or splits[folder], enumerate(labels)
        photos += [Photo(f"{path}/{row:06}", label, split) for row, label in rows if label is not None]
    return ReaderResult(DatasetFiles(files.root, parts), photos, [])


def open_parquet(file: Path) -> DatasetFiles:
    """The images of one Parquet file, with or without labels. Raises `FieldmarkError` if there are none."""
    try:
        part = _find_images(file, _open_table(file))
    except (OSError, ValueError, IndexError, import_pyarrow().ArrowException) as error:
        raise FieldmarkError(f"{printable(str(file))} cannot be read ({str(error).splitlines()[0]})") from None
    if part is None:
        raise FieldmarkError(f"{printable(str(file))} has no column {' or '.join(_IMAGE_COLUMNS)} of photos")
    return DatasetFiles(file.parent, {file.name: part})


def _data_file_names(files: FileTree, folder: str) -> list[str]:
    """Parquet files, and Arrow files if dataset_info.json is beside them."""
    _, names = files.list_folder(folder)
    suffixes = (".parquet", ".arrow") if "dataset_info.json" in names else (".parquet",)
    return [f"{folder}/{name}" if folder else name for name in names if name.endswith(suffixes)]


class _ParquetTable:
    """A Parquet file."""

    def __init__(self, file: Path) -> None:
        self.reader = import_pyarrow().parquet.ParquetFile(file)
        self.schema = self.reader.schema_arrow

    def row_counts(self) -> list[int]:
        return [self.reader.metadata.row_group(k).num_rows for k in range(self.reader.num_row_groups)]

    def read_column(self, name: str) -> list[Any]:
        return self.reader.read([name])[0].to_pylist()

    def read_row_group(self, number: int, column: str) -> Any:
        return self.reader.read_row_group(number, [column])[0].combine_chunks()


class _ArrowTable:
    """An Arrow stream, in a memory map; its record batches are the row groups."""

    def __init__(self, file: Path) -> None:
        arrow = import_pyarrow()
        with arrow.memory_map(str(file)) as source:
            self.batches = list(arrow.ipc.open_stream(source))
        self.schema = self.batches[0].schema

    def row_counts(self) -> list[int]:
        return [batch.num_rows for batch in self.batches]

    def read_column(self, name: str) -> list[Any]:
        return [value for batch in self.batches for value in batch.column(name).to_pylist()]

    def read_row_group(self, number: int, column: str) -> Any:
        return self.batches[number].column(column)


def _open_table(file: Path) -> _ParquetTable | _ArrowTable:
    return _ParquetTable(file) if file.suffix == ".parquet" else _ArrowTable(file)


def _find_images(file: Path, table: _ParquetTable | _ArrowTable) -> DataFile | None:
    """The images of a file; None if it has no column of images."""
    column = next((name for name in _IMAGE_COLUMNS if name in table.schema.names), None)
    row_starts = [0, *accumulate(table.row_counts())]
    return DataFile(file, column, row_starts) if column else None


def _read_labels(file: Path) -> tuple[DataFile | None, list[str | None]]:
    """The images of a file and their labels; no images if it has no column of images or none of labels."""
    table = _open_table(file)
    images = _find_images(file, table)
    column = next((name for name in _LABEL_COLUMNS if name in table.schema.names), None)
    if images is None or column is None:
        return None, []
    values, names = table.read_column(column), _class_names(table.schema, column)
    if names and any(isinstance(k, int) and not -1 <= k < len(names) for k in values):
        raise ValueError(f"a class number is not among its {len(names)} classes")
    labels = [None if k in (None, -1) else names[k] if names and isinstance(k, int) else str(k) for k in values]
    return images, labels


def _class_names(schema: Any, label: str) -> list[str]:
    """The names of a ClassLabel feature, as `datasets` writes them into the schema."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
