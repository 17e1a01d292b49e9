"""A manifest (CSV, JSONL or Parquet: path,label[,split][,group][,box]) -> table of photos.

It may also be one that a run has left (split.csv), or Hugging Face's metadata.csv, whose path is called file_name.
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
from fieldmark.data.readers.files import MANIFEST_SUFFIXES, FileTree, join_path
from fieldmark.data.readers.folders import ReaderResult

MANIFEST_NAMES = ("manifest", "metadata", "labels", "split")
"""What a manifest is called that is found in a folder or an archive by its name."""
_PATH_COLUMNS = ("path", "file_name", "filename", "file")
Row = dict[str, Any]


def find_manifests(files: FileTree, group_by: str | None = None) -> ReaderResult | None:
    """The photos of the manifests that lie at the top of `files`, or in its folders train/, val/ and test/.

    None where there is none: beside class folders a table of another kind is passed over.
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
    """The photos that the manifest `name` in `files` lists, by paths beside it. Raises `FieldmarkError`.

    The column of their groups is `group`, or `group_by` where there is such a column.
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
        if group_by:  # no column: a regular expression on the path
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
    """Of a table, by its first row; whatever the path is called, it is `path`."""
    first = {str(column).strip().lower() for column in next(iter(table_rows), {})}
    return first | {"path"} if first & set(_PATH_COLUMNS) else first


def read_rows(files: FileTree, name: str) -> Iterator[Row]:
    """The rows of a table as they are written."""
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
    """pyarrow, which reads Parquet and Arrow; `ModuleNotFoundError` says what to install."""
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
