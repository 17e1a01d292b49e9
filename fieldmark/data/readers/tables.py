"""Reader of manifests: CSV, JSON lines or Parquet with the columns path, label and optionally split, group and box.

The split.csv of a run is one, and Hugging Face's metadata.csv, whose path is called file_name.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.catalog import SPLIT_ALIASES, Photo
from fieldmark.data.image import Box, UnreadableImageError
from fieldmark.data.readers.files import MANIFEST_SUFFIXES, FileTree, ReaderResult, join_path

MANIFEST_NAMES = ("manifest", "metadata", "labels", "split")
"""Names, without extension, by which a manifest is found in a folder or an archive."""
_PATH_COLUMNS = ("path", "file_name", "filename", "file")
Row = dict[str, Any]


def find_manifests(files: FileTree, group_by: str | None = None) -> ReaderResult | None:
    """The images of the manifest at the top of `files`, or of those in its folders train/, val/ and test/.

    None if there is none; a table beside class folders is no manifest unless it has the columns of one.
    """
    folders, _ = files.list_folder()
    splits = {name: SPLIT_ALIASES[name.lower()] for name in folders if name.lower() in SPLIT_ALIASES}
    if name := _manifest_name(files, ""):
        if not folders or column_names(read_rows(files, name)) >= {"path", "label"}:
            return read_manifest(files, name, group_by)
        return None
    named = {folder: name for folder in splits if (name := _manifest_name(files, folder))}
    photos = list[Photo]()
    for folder, name in named.items():
        images = read_manifest(files, join_path(folder, name), group_by).photos
        photos += [replace(p, path=join_path(folder, p.path), split=p.split or splits[folder]) for p in images]
    return ReaderResult(files, photos, []) if photos else None


def _manifest_name(files: FileTree, folder: str) -> str | None:
    _, names = files.list_folder(folder)
    return next(
        (name for stem in MANIFEST_NAMES for suffix in MANIFEST_SUFFIXES if (name := stem + suffix) in names), None
    )


def read_manifest(files: FileTree, name: str, group_by: str | None = None) -> ReaderResult:
    """The images that a manifest lists, with paths relative to `files`.

    Groups are read from the column `group_by` if there is such a column, and from `group` if it is not given.

    Raises:
        FieldmarkError: the manifest is damaged, lacks a column, or has an invalid row.
    """
    photos: dict[str, Photo] = {}
    table_rows = [
        {str(column).strip().lower(): value for column, value in row.items()} for row in read_rows(files, name)
    ]
    group = "group"
    if table_rows:
        if not column_names(table_rows) >= {"path", "label"}:
            column_list = ", ".join(sorted(map(printable, table_rows[0])))
            raise FieldmarkError(
                f"{printable(name)} has the columns {column_list}; "
                "it needs path and label, and may have split, group and box"
            )
        if group_by:  # without such a column it is a regular expression
            group = group_by.lower() if group_by.lower() in table_rows[0] else ""
    for number, row in enumerate(table_rows, 1):
        try:
            photo = _parse_photo(row | {"group": row.get(group)})
            if photo.path in photos:
                raise ValueError(f"{printable(photo.path)} is listed twice")
        except ValueError as error:
            raise FieldmarkError(f"{printable(name)}, photo {number}: {error}") from None
        photos[photo.path] = photo
    return ReaderResult(files, list(photos.values()), [])


def column_names(table_rows: Iterable[Row]) -> set[str]:
    """The columns in the first row, in lower case, with `path` if there is one of its other names."""
    first = {str(column).strip().lower() for column in next(iter(table_rows), {})}
    return first | {"path"} if first & set(_PATH_COLUMNS) else first


def read_rows(files: FileTree, name: str) -> Iterator[Row]:
    """The rows of a CSV, JSON lines or Parquet file. Raises `FieldmarkError` if it cannot be read."""
    try:
        content = files.read_bytes(name)
        match name.rpartition(".")[2].lower():
            case "parquet":
                yield from _read_parquet(content)
            case "jsonl":
                for line in _open_text(content):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise ValueError("a line is no object")
                        yield row
            case _:
                yield from csv.DictReader(_open_text(content))
    except (UnreadableImageError, ValueError, csv.Error) as error:
        raise FieldmarkError(f"{printable(join_path(str(files.root), name))} cannot be read ({error})") from None


def import_pyarrow() -> Any:
    """The package pyarrow; raises ModuleNotFoundError, which the command line explains, if it is not installed."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow


def _read_parquet(content: bytes) -> Iterable[Row]:
    arrow = import_pyarrow()
    try:
        return arrow.parquet.read_table(arrow.BufferReader(content)).to_pylist()
    except arrow.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _open_text(content: bytes) -> io.StringIO:
    return io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")


def _parse_photo(row: Row) -> Photo:
    path = next((row[name] for name in _PATH_COLUMNS if row.get(name) not in (None, "")), None)
    label, split, group = (row.get(name) for name in ("label", "split", "group"))
    if path is None or label in (None, ""):
        raise ValueError("path or label is missing")
    if "://" in (path := str(path)):
        raise ValueError(f"{printable(path)} is an address: get the photos first")
    if split not in (None, "") and str(split).lower() not in SPLIT_ALIASES:
        raise ValueError(f"split is {split!r}, but can be train, val or test")
    split_name = SPLIT_ALIASES[str(split).lower()] if split not in (None, "") else None
    path = path.replace("\\", "/").removeprefix("./")
    return Photo(path, str(label), split_name, None if group in (None, "") else str(group), _parse_box(row.get("box")))


def _parse_box(value: Any) -> Box | None:
    if value in (None, "", []):
        return None
    try:
        numbers = value.strip("[]() ").replace(",", " ").split() if isinstance(value, str) else value
        x, y, w, h = map(float, numbers)
    except (TypeError, ValueError):
        raise ValueError(f"box is {value!r}, but is written as x,y,width,height in pixels") from None
    if not (math.isfinite(x + y) and 0 < w < math.inf and 0 < h < math.inf):
        raise ValueError(f"box is {value!r}, which holds nothing")
    return x, y, w, h
