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
from fieldmark.data.catalog import SPLITS, Photo, printable
from fieldmark.data.image import Box, Unreadable
from fieldmark.data.readers.files import TABLES, Files, within
from fieldmark.data.readers.folders import Listed

NAMES = ("manifest", "metadata", "labels", "split")
"""What a manifest is called that is found in a folder or an archive by its name."""
_PATH = ("path", "file_name", "filename", "file")
Row = dict[str, Any]


def beside(files: Files, group_by: str | None = None) -> Listed | None:
    """The photos of the manifests that lie at the top of `files`, or in its folders train/, val/ and test/.

    None where there is none: beside class folders a table of another kind is passed over.
    """
    folders, _ = files.entries()
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if name := _manifest(files, ""):
        if not folders or columns(rows(files, name)) >= {"path", "label"}:
            return listed(files, name, group_by)
        return None
    named = {folder: name for folder in splits if (name := _manifest(files, folder))}
    photos = list[Photo]()
    for folder, name in named.items():
        found = listed(files, within(folder, name), group_by).photos
        photos += [replace(p, path=within(folder, p.path), split=p.split or splits[folder]) for p in found]
    return Listed(files, photos, []) if photos else None


def _manifest(files: Files, folder: str) -> str | None:
    _, names = files.entries(folder)
    return next((name for stem in NAMES for suffix in TABLES if (name := stem + suffix) in names), None)


def listed(files: Files, name: str, group_by: str | None = None) -> Listed:
    """The photos that the manifest `name` in `files` lists, by paths beside it. Raises `FieldmarkError`.

    The column of their groups is `group`, or `group_by` where there is such a column.
    """
    photos: dict[str, Photo] = {}
    found = [{str(column).strip().lower(): value for column, value in row.items()} for row in rows(files, name)]
    group = "group"
    if found:
        if not columns(found) >= {"path", "label"}:
            shown = ", ".join(sorted(map(printable, found[0])))
            raise FieldmarkError(
                f"{printable(name)} has the columns {shown}; it needs path and label, and may have split, group and box"
            )
        if group_by:  # no column: a regular expression on the path
            group = group_by.lower() if group_by.lower() in found[0] else ""
    for number, row in enumerate(found, 1):
        try:
            photo = _photo(row | {"group": row.get(group)})
            if photo.path in photos:
                raise ValueError(f"{printable(photo.path)} is listed twice")
        except ValueError as error:
            raise FieldmarkError(f"{printable(name)}, photo {number}: {error}") from None
        photos[photo.path] = photo
    return Listed(files, list(photos.values()), [])


def columns(found: Iterable[Row]) -> set[str]:
    """Of a table, by its first row; whatever the path is called, it is `path`."""
    first = {str(column).strip().lower() for column in next(iter(found), {})}
    return first | {"path"} if first & set(_PATH) else first


def rows(files: Files, name: str) -> Iterator[Row]:
    """The rows of a table as they are written."""
    try:
        content = files.contents(name)
        match name.rpartition(".")[2].lower():
            case "parquet":
                yield from _parquet(content)
            case "jsonl":
                for line in _text(content):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise ValueError("a line is no object")
                        yield row
            case _:
                yield from csv.DictReader(_text(content))
    except (Unreadable, ValueError, csv.Error) as error:
        raise FieldmarkError(f"{printable(within(str(files.root), name))} cannot be read ({error})") from None


def parquet() -> Any:
    """pyarrow, which reads Parquet and Arrow; `ModuleNotFoundError` says what to install."""
    import pyarrow
    import pyarrow.parquet

    return pyarrow


def _parquet(content: bytes) -> Iterable[Row]:
    arrow = parquet()
    try:
        return arrow.parquet.read_table(arrow.BufferReader(content)).to_pylist()
    except arrow.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _text(content: bytes) -> io.StringIO:
    return io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")


def _photo(row: Row) -> Photo:
    path = next((row[name] for name in _PATH if row.get(name) not in (None, "")), None)
    label, split, group = (row.get(name) for name in ("label", "split", "group"))
    if path is None or label in (None, ""):
        raise ValueError("path or label is missing")
    if "://" in (path := str(path)):
        raise ValueError(f"{printable(path)} is an address: get the photos first")
    if split not in (None, "") and str(split).lower() not in SPLITS:
        raise ValueError(f"split is {split!r}, but can be train, val or test")
    side = SPLITS[str(split).lower()] if split not in (None, "") else None
    path = path.replace("\\", "/").removeprefix("./")
    return Photo(path, str(label), side, None if group in (None, "") else str(group), _box(row.get("box")))


def _box(said: Any) -> Box | None:
    if said in (None, "", []):
        return None
    try:
        numbers = said.strip("[]() ").replace(",", " ").split() if isinstance(said, str) else said
        x, y, w, h = map(float, numbers)
    except (TypeError, ValueError):
        raise ValueError(f"box is {said!r}, but is written as x,y,width,height in pixels") from None
    if not (math.isfinite(x + y) and 0 < w < math.inf and 0 < h < math.inf):
        raise ValueError(f"box is {said!r}, which holds nothing")
    return x, y, w, h
