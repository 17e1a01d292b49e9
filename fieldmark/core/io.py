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


def text(found: Any, indent: int | None = 1) -> str:
    """The JSON of plain Python values; what is not a number becomes null, since JSON knows no NaN.

    Without `indent` it is one line, written five times as fast.

    >>> text({"caf\\udce9": float("nan")})
    '{\\n "caf\\\\udce9": null\\n}'
    """
    plain = json.dumps(_finite(found), ensure_ascii=False, indent=indent)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")


def write(file: Path, found: Any) -> None:
    """The JSON as a file."""
    half = file.with_suffix(".half")
    half.write_text(text(found), encoding="utf-8")
    half.replace(file)


def table(file: Path, rows: Iterable[Mapping[str, Any]], columns: list[str], encoding: str = "utf-8") -> None:
    """The rows as CSV."""
    half = file.with_suffix(".half")
    with half.open("w", encoding=encoding, errors="surrogateescape", newline="") as written:
        writer = csv.DictWriter(written, columns)
        writer.writeheader()
        writer.writerows(rows)
    half.replace(file)


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as text; none where it is gone.

    Raises FieldmarkError where it is damaged.
    """
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
        try:
            return list(csv.DictReader(opened))
        except csv.Error as error:
            raise FieldmarkError(f"{file} is damaged: {error}") from None


def _finite(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
