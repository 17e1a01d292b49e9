"""JSON, CSV and atomic files.

Text is readable UTF-8. Undecodable bytes of a file name, which Python holds as lone surrogates, are written as
`\\udcXX` in JSON, so that `json.loads` returns the name that opens the file; in CSV they are those bytes.
"""

import csv
import json
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import escape_surrogates

PARTIAL_SUFFIX = ".half"
"""Ends the name of a file that is being written; what a kill leaves behind can be deleted."""


@contextmanager
def atomic_path(file: Path, *, sync: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to; it replaces `file` when the block ends without an exception.

    At any moment, and after a kill, there is the old file or the new one, never a part. With `sync` the content is on
    the disk before the name changes, so that it survives a power failure too.
    """
    partial = partial_path(file)
    try:
        yield partial
        if sync:
            with partial.open("rb+") as handle:
                os.fsync(handle.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write to; it becomes `folder` when the block ends without an exception."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)  # a temporary folder is closed to others
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


class TemporaryFolder:
    """A temporary folder that is deleted with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fieldmark-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def partial_path(file: Path) -> Path:
    """Where `atomic_path` writes a file before it has its name."""
    return file.with_name(file.name + PARTIAL_SUFFIX)


def require_new(path: Path, option: str = "--out", *, can_resume: bool = False) -> None:
    """Raise FieldmarkError if `path` exists, naming the option that gives another one."""
    if path.exists():
        hint = ", or --resume to continue it" if can_resume else ""
        raise FieldmarkError(f"{path} exists: give another {option}{hint}")


def to_jsonable(value: Any) -> Any:
    """Nested dataclasses, mappings and tuples as dicts and lists; the fields of a dataclass in their order."""
    if is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_jsonable(entry) for name, entry in value.items()}
    return [to_jsonable(entry) for entry in value] if isinstance(value, list | tuple) else value


def to_json(data: Any, indent: int | None = 1) -> str:
    """The JSON of plain Python values; numbers that are not finite become null, since JSON has no NaN.

    Without `indent` it is one line, written five times as fast.

    >>> to_json({"caf\\udce9": float("nan")})
    '{\\n "caf\\\\udce9": null\\n}'
    """
    return escape_surrogates(json.dumps(_non_finite_to_none(data), ensure_ascii=False, indent=indent))


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FieldmarkError: the file is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FieldmarkError(f"{file} is damaged: {error}") from None


def write_json(file: Path, data: Any) -> None:
    """Write `to_json(data)` as a file, atomically."""
    with atomic_path(file) as partial:
        partial.write_text(to_json(data), encoding="utf-8")


def write_csv(file: Path, rows: Iterable[Mapping[str, Any]], columns: list[str], encoding: str = "utf-8") -> None:
    """Write the rows as CSV with a header, atomically."""
    with atomic_path(file) as partial, partial.open("w", encoding=encoding, errors="surrogateescape", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as text; empty if there is no such file.

    Raises:
        FieldmarkError: the file is damaged.
    """
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        try:
            return list(csv.DictReader(handle))
        except csv.Error as error:
            raise FieldmarkError(f"{file} is damaged: {error}") from None


def _non_finite_to_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _non_finite_to_none(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_non_finite_to_none(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
