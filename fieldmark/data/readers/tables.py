"""Reader of manifests: CSV, JSON lines or Parquet with the columns path, label and optionally split, group and box.

The split.csv of a run is one, and Hugging Face's metadata.csv, and the tables of competitions, whose columns have other
names (columns.py) and whose paths lack folder or extension (`_PathResolver`).
"""

import itertools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Photo, has_image_extension
from fieldmark.data.image import Box, UnreadableImageError
from fieldmark.data.readers.columns import KNOWN_COLUMNS, OWN_PATH_COLUMNS, Columns, Row, find_columns
from fieldmark.data.readers.files import MANIFEST_SUFFIXES, FileTree, Folder, ReaderResult, join_path
from fieldmark.data.readers.text import decode_text, split_rows
from fieldmark.data.split_names import parse_split_name, resolve_split, splits_of_files

MANIFEST_NAMES = ("manifest", "metadata", "labels", "split")
"""Names, without extension, by which a manifest is found in a folder or an archive."""
_LIST_LINE = re.compile(r"([^\t]+?\.[A-Za-z0-9]{3,4}) +(\S[^\t]*)")  # with tabs it is a table
_MAX_TABLES = 50  # beside photos; of more, none is the one
_SAMPLED_PATHS = 20


@dataclass(frozen=True)
class Table:
    """The rows of a table, with column names in lower case.

    Attributes:
        encoding: of a text.
        notes: lines on how it was read, where that is not obvious.
    """

    rows: list[Row]
    encoding: str = "utf-8"
    notes: tuple[str, ...] = ()

    def name_on_disk(self, name: str, known: Callable[[str], bool]) -> str:
        """A name of this table as the file system has it: perhaps as bytes in the table's encoding."""
        if known(name) or self.encoding == "utf-8":
            return name
        try:
            raw = os.fsdecode(name.encode(self.encoding))
        except UnicodeEncodeError:
            return name
        return raw if known(raw) else name


def find_manifests(files: FileTree, group_by: str | None = None) -> ReaderResult | None:
    """The images of the manifest at the top of `files`, or of those in its folders train/, val/ and test/.

    None if there is none; a table beside class folders is no manifest unless it has the columns of one.
    """
    folders, _ = files.list_folder()
    if name := _manifest_name(files, ""):
        if folders and not _is_own_manifest(files, name):
            return None
        listed = read_manifest(files, name, group_by)
        return listed._replace(warnings=[*listed.warnings, *_label_notes(name, listed.photos)])
    splits = {name: split for name in folders if (split := resolve_split(name, folders))}
    named = {folder: name for folder in splits if (name := _manifest_name(files, folder))}
    photos, warnings = list[Photo](), list[str]()
    for folder, name in named.items():
        listed = read_manifest(files, join_path(folder, name), group_by, folder)
        photos += [replace(p, split=p.split or splits[folder]) for p in listed.photos]
        warnings += listed.warnings
    return ReaderResult(files, photos, warnings) if photos else None


def find_label_tables(files: FileTree, group_by: str | None = None) -> ReaderResult | None:
    """The images that a table at the top of `files` lists, whatever it is called; None if there is none.

    Tables that are named after splits (train.csv, test.csv) are read together.

    Raises:
        FieldmarkError: several tables list images.
    """
    _, names = files.list_folder()
    tables = [name for name in names if name.lower().endswith(MANIFEST_SUFFIXES)]
    found = {
        name: result for name in tables[:_MAX_TABLES] if (result := _read_if_it_lists_photos(files, name, group_by))
    }
    if len(found) < 2:
        return next(iter(found.values()), None)
    splits = splits_of_files(list(found))
    if len(set(splits.values()) - {None}) < len(found):
        raise FieldmarkError(
            f"{printable(str(files.root))} holds several tables that list photos ({summarize_names(list(found), 3)}): "
            "give the path of one"
        )
    photos = [replace(p, split=p.split or splits[name]) for name, result in found.items() for p in result.photos]
    return ReaderResult(files, photos, [warning for result in found.values() for warning in result.warnings])


def _read_if_it_lists_photos(files: FileTree, name: str, group_by: str | None) -> ReaderResult | None:
    try:
        result = read_manifest(files, name, group_by)
    except FieldmarkError:  # another table: a submission, measurements
        return None
    listed = {photo.path for photo in result.photos}
    found = [path in listed for path in files.walk() if has_image_extension(path)]
    n_unlisted = len(found) - sum(found)
    if n_unlisted == len(found):
        return None
    note = f"{printable(name)}: {pluralize(n_unlisted, 'photo')} not listed left out: they have no label"
    return result._replace(warnings=[*result.warnings, *([note] if n_unlisted else [])])


def _label_notes(name: str, photos: list[Photo]) -> list[str]:
    """A line if the images lie in folders of other names than their labels, which may be the classes."""
    folders = {photo.path.rpartition("/")[0].rpartition("/")[2] for photo in photos}
    classes = {folder for folder in folders if folder and not parse_split_name(folder)}
    if len(classes) < 2 or all(photo.label in photo.path.split("/")[:-1] for photo in photos):
        return []
    return [f"{printable(name)}: the labels are those of the table, not the names of the folders"]


def _manifest_name(files: FileTree, folder: str) -> str | None:
    _, names = files.list_folder(folder)
    return next(
        (name for stem in MANIFEST_NAMES for suffix in MANIFEST_SUFFIXES if (name := stem + suffix) in names), None
    )


def _is_own_manifest(files: FileTree, name: str) -> bool:
    """Whether a table beside folders has the column label and one of paths, by their own names."""
    columns = set(next(iter(read_table(files, name).rows), {}))
    return "label" in columns and not columns.isdisjoint(OWN_PATH_COLUMNS)


def read_manifest(files: FileTree, name: str, group_by: str | None = None, folder: str = "") -> ReaderResult:
    """The images that a manifest lists, with paths relative to `files`.

    Groups are read from the column `group_by` if there is such a column, and from `group` if it is not given.

    Args:
        folder: to which the paths of the manifest are relative.

    Raises:
        FieldmarkError: the manifest is damaged, lacks a column, or has an invalid row.
    """
    table = read_table(files, name)
    if not table.rows:
        raise FieldmarkError(f"{printable(name)} lists no photos: it needs a row with path and label for each")
    try:
        columns = find_columns(table.rows)
    except ValueError as error:
        raise FieldmarkError(f"{printable(name)} {error}") from None
    group = "group"
    if group_by:  # without such a column it is a regular expression
        group = group_by.lower() if group_by.lower() in table.rows[0] else ""
    photos: dict[str, Photo] = {}
    paths = _PathResolver(files, table, columns, name, folder)
    for number, row in enumerate(table.rows, 1):
        try:
            photo = _parse_photo(row, paths, group)
            if photo.path in photos:
                raise ValueError(f"{printable(photo.path)} is listed twice")
        except ValueError as error:
            raise FieldmarkError(f"{printable(name)}, photo {number}: {error}") from None
        photos[photo.path] = photo
    listed, notes = _split_by_folder(list(photos.values()), folder)
    notes = [*table.notes, *columns.notes, *paths.notes(), *notes]
    return ReaderResult(files, listed, [f"{printable(name)}: {note}" for note in notes])


def _split_by_folder(photos: list[Photo], folder: str) -> tuple[list[Photo], list[str]]:
    """The images with the splits that their folders are named after, if the table names none."""
    if folder or any(photo.split for photo in photos) or not all("/" in photo.path for photo in photos):
        return photos, []
    tops = {photo.path.partition("/")[0] for photo in photos}
    splits = {top: split for top in tops if (split := resolve_split(top, tops))}
    if splits.keys() != tops or len(set(splits.values())) < 2:
        return photos, []
    note = f"the splits are those of the folders {summarize_names(sorted(tops))}"
    return [replace(photo, split=splits[photo.path.partition("/")[0]]) for photo in photos], [note]


# ---- rows


def read_table(files: FileTree, name: str) -> Table:
    """The rows of a CSV, JSON lines or Parquet file. Raises `FieldmarkError` if it cannot be read."""
    try:
        content = files.read_bytes(name)
        match name.rpartition(".")[2].lower():
            case "parquet":
                return Table([_lower_names(row) for row in _read_parquet(content)])
            case "jsonl":
                decoded = decode_text(content)
                return Table(
                    list(_read_json_lines(decoded.text)), decoded.encoding, tuple(filter(None, [decoded.note]))
                )
            case _:
                return _read_text_table(content)
    except (UnreadableImageError, ValueError) as error:
        raise FieldmarkError(f"{printable(join_path(str(files.root), name))} cannot be read ({error})") from None


def read_table_file(file: Path) -> Table:
    """`read_table` of a file."""
    return read_table(Folder(file.parent), file.name)


def _read_json_lines(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no object")
            yield _lower_names(row)


def _lower_names(row: Row) -> Row:
    return {str(column).strip().lower(): value for column, value in row.items()}


def _read_text_table(content: bytes) -> Table:
    """Rows of values separated by commas, semicolons or tabs; or lines of a path and a class without a header."""
    text, encoding, note = decode_text(content)
    if _is_list(text):
        names, rows, header_note = ["path", "label"], _read_list_lines(text), ""
    else:
        names, rows, header_note = _read_header(text)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"it has two columns called {printable(twice)}")
    return Table(
        [dict(itertools.zip_longest(names, row)) for row in rows], encoding, tuple(filter(None, (note, header_note)))
    )


def _read_header(text: str) -> tuple[list[str], Iterator[list[str]], str]:
    """The names of the columns, the rows below them, and a line if the first row is none of names."""
    rows = split_rows(text, KNOWN_COLUMNS)
    names = [name.strip("\ufeff ").lower() for name in next(rows, [])]
    if len(names) in (2, 3) and has_image_extension(names[0]):
        names = ["path", "label", "split"][: len(names)]
        note = "it has no header: the first column is read as the path, the second as the class"
        return names, split_rows(text, KNOWN_COLUMNS), note
    return names, rows, ""


def _is_list(text: str) -> bool:
    """Whether the first line is a path and a class with blanks between, as in the lists of ImageNet and Caffe."""
    lines = (line.strip(" ") for line in text.splitlines() if line.strip())
    first = next(lines, "")
    match = _LIST_LINE.fullmatch(next(lines, "") if first.lower().split(" ") == ["path", "label"] else first)
    return match is not None and has_image_extension(match[1]) and "," not in first


def _read_list_lines(text: str) -> Iterator[list[str]]:
    """The path and the class of each line."""
    for number, line in enumerate(text.splitlines(), 1):
        match = _LIST_LINE.fullmatch(line.strip())
        if match and has_image_extension(match[1]):
            yield [match[1], match[2]]
        elif line.strip() and line.lower().split() != ["path", "label"]:
            raise ValueError(f"line {number} is no path and class")


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


# ---- one image


class _PathResolver:
    """Finds the files that a table means: by the path, by its bytes in the table's encoding, or by the file name."""

    def __init__(self, files: FileTree, table: Table, columns: Columns, name: str, folder: str) -> None:
        self.files, self.table, self.columns, self.folder, self.n_by_name = files, table, columns, folder, 0
        self.split = splits_of_files([name.rpartition("/")[2]]).popitem()[1] or "train"
        sample = [join_path(folder, self.path_of(row) or "") for row in table.rows[:_SAMPLED_PATHS]]
        self.is_exact = all(map(self._exists, sample))

    @cached_property
    def paths(self) -> set[str]:
        """All files, relative to `files`."""
        return set(self.files.walk(self.folder))

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The images by file name, and by file name without extension, in lower case."""
        found = defaultdict[str, list[str]](list)
        for path in self.paths:
            if has_image_extension(path):
                name = path.rpartition("/")[2].casefold()
                found[name].append(path)
                found[name.rpartition(".")[0]].append(path)
        return found

    def path_of(self, row: Row) -> str | None:
        """The path in a row as it is written, with "/"."""
        value = next(
            (row[name] for name in (self.columns.path, *OWN_PATH_COLUMNS) if row.get(name) not in (None, "")), None
        )
        return None if value is None else str(value).strip().replace("\\", "/").removeprefix("./")

    def resolve(self, path: str) -> str:
        """The path below `files`; as it is if there is no such file, or if several have its name."""
        full = path if os.path.isabs(path) else join_path(self.folder, path)
        if self.is_exact or (os.path.isabs(path) and self._exists(path)):
            return full
        known = self.table.name_on_disk(full, self.paths.__contains__)
        if known in self.paths:
            return known
        name = self.table.name_on_disk(path.rpartition("/")[2], lambda name: name.casefold() in self.by_name)
        found = self.by_name.get(name.casefold(), [])
        if len(found) > 1:  # the table of another machine, or of another folder: most folders of the path agree
            agreeing = {path: _n_common_folders(path, full) for path in found}
            found = [path for path in found if agreeing[path] == max(agreeing.values())]
        if len(found) > 1:  # train.csv means the photos in train/
            found = [path for path in found if self.split in splits_of_files(path.split("/")[:-1]).values()]
        if len(found) != 1:
            return full
        self.n_by_name += 1
        return found[0]

    def notes(self) -> list[str]:
        return [f"{pluralize(self.n_by_name, 'photo')} found by file name"] if self.n_by_name else []

    def _exists(self, path: str) -> bool:
        if isinstance(self.files, Folder):
            return os.path.lexists(self.files.root / path)
        return path in self.paths


def _n_common_folders(path: str, other: str) -> int:
    """How many of the innermost folders of two paths agree, whatever their case."""
    folders = (reversed(each.casefold().split("/")[:-1]) for each in (path, other))
    pairs = zip(*folders, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parse_photo(row: Row, paths: _PathResolver, group: str) -> Photo:
    path, label, group_name = paths.path_of(row), paths.columns.label(row), row.get(group)
    if not path or label is None:
        raise ValueError("path or label is missing")
    if "://" in path:
        raise ValueError(f"{printable(path)} is an address: get the photos first")
    group_text = None if group_name in (None, "") else str(group_name)
    return Photo(paths.resolve(path), label, paths.columns.split(row), group_text, _parse_box(row.get("box")))


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
