"""Findings <-> files and text: one form of JSON and CSV for stdout and for the files of a run.

Readable UTF-8; a file name's undecodable bytes, which Python holds as lone surrogates, stand as `\\udcXX` in JSON, so
that `json.loads` gives back the name that opens the file; in CSV they are those bytes. A file appears whole, or not.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fieldmark.core.errors import FieldmarkError


def to_json(data: Any, indent: int | None = 1) -> str:
    """The JSON of plain Python values; what is not a number becomes null, since JSON knows no NaN.

    Without `indent` it is one line, written five times as fast.

    >>> to_json({"caf\\udce9": float("nan")})
    '{\\n "caf\\\\udce9": null\\n}'
    """
    encoded = json.dumps(_non_finite_to_none(data), ensure_ascii=False, indent=indent)
    return encoded.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(file: Path, data: Any) -> None:
    """The JSON as a file."""
    temporary = file.with_suffix(".half")
    temporary.write_text(to_json(data), encoding="utf-8")
    temporary.replace(file)


def write_csv(file: Path, rows: Iterable[Mapping[str, Any]], columns: list[str], encoding: str = "utf-8") -> None:
    """The rows as CSV."""
    temporary = file.with_suffix(".half")
    with temporary.open("w", encoding=encoding, errors="surrogateescape", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(file)


def read_csv(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as text; none where it is gone.

    Raises FieldmarkError where it is damaged.
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
