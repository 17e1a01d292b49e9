"""Bytes of a text table -> rows: one encoding and one separator for the whole file, said where they are unusual."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from charset_normalizer import from_bytes

from fieldmark.core.text import summarize_names

GB2312 = re.compile(rb"([\x00-\x7f]|[\xa1-\xf7][\xa1-\xfe])*")
"""Text of Chinese Windows: a single byte above ASCII would be a Western letter, pairs of these are Chinese."""
SEPARATORS = (",", ";", "\t", "|")
_LEGACY_ENCODINGS = ["gb18030", "big5", "cp932", "cp949", "cp1252", "cp1250", "cp1251"]
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SAMPLE = 1 << 20  # bytes by which an encoding is guessed
_MAX_FIELD = 1 << 20  # characters: boxes and lists are long, a quote that is never closed is longer
_WORDS_SHOWN = re.compile(r"[^\W\d_a-zA-Z][^\W\d_]*|[a-zA-Z]+[^\W\d_a-zA-Z]+[^\W\d_]*")


class DecodedText(NamedTuple):
    """A text, its encoding, and a line for people if that is no UTF-8."""

    text: str
    encoding: str
    note: str = ""


def decode_text(content: bytes) -> DecodedText:
    """Decode a whole file: by its byte order mark, as UTF-8, as UTF-16 without a mark, or as what Windows wrote.

    Raises:
        ValueError: the encoding cannot be told.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return DecodedText(_decode(content, encoding), encoding)
    if b"\0" in content[:_SAMPLE]:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
        return DecodedText(_decode(content, encoding), encoding)
    try:
        text = content.decode("utf-8")
        return _decode_legacy(content) if is_gbk(content, text) else DecodedText(text, "utf-8")
    except UnicodeDecodeError:
        text = content.decode("utf-8", "surrogateescape")
    n_damaged = sum("\ud800" <= c <= "\udfff" for c in text)
    if n_damaged < sum(c >= "\u0800" for c in text) - n_damaged:  # UTF-8 with some file names that are none
        return DecodedText(text, "utf-8")
    return _decode_legacy(content)


def is_gbk(content: bytes, text: str) -> bool:
    """Whether bytes that are valid UTF-8 (`text`) are Chinese of Windows after all.

    A third of the two-byte characters of UTF-8 are characters of GB2312 too: the bytes of one are a Hebrew letter, of
    the next a Cyrillic one. So UTF-8 are words of Latin letters, or four different letters of one script.
    """
    letters = {c for c in text if not c.isascii()}
    if not letters or not GB2312.fullmatch(content):
        return False
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in letters}
    if "LATIN" in scripts and re.search(r"[A-Za-z][^\x00-\x7f]|[^\x00-\x7f][A-Za-z]", text):
        return False
    return len(scripts) > 1 or len(letters) < 4


def _decode_legacy(content: bytes) -> DecodedText:
    if GB2312.fullmatch(content):
        encoding = "gb18030"
    else:
        match = from_bytes(content[:_SAMPLE], cp_isolation=_LEGACY_ENCODINGS).best()
        if match is None:
            raise ValueError("it is not UTF-8, and its encoding cannot be told: save it as UTF-8")
        encoding = match.encoding
    text = _decode(content, encoding)
    name = {"gb18030": "GBK", "big5": "Big5"}.get(encoding, encoding)
    words = list(dict.fromkeys(_WORDS_SHOWN.findall(text)))
    return DecodedText(text, encoding, f"not UTF-8: read as {name} ({summarize_names(words, 3)})")


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"it is no {name} (byte {error.start:,} cannot be decoded): save it as UTF-8") from None


def split_rows(text: str, known_columns: frozenset[str]) -> Iterator[list[str]]:
    """The rows that are not blank, the header first; separated by what gives the header known columns.

    Raises:
        ValueError: a quote is never closed, or a row has more values than the header.
    """
    if "\n" not in text:  # lines of old Macs
        text = text.replace("\r", "\n")
    first, _, rest = text.partition("\n")
    if match := re.fullmatch(r"sep=(.)\r?", first.strip("\ufeff")):  # Excel's own line
        text, separator = rest, match[1]
    else:
        separator = _find_separator(text, known_columns)
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        width = 0
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            if not any(map(str.strip, row)):
                continue
            if width and any(map(str.strip, row[width:])):
                raise ValueError(f"a row has {len(row)} values and the header {width}: {summarize_names(row, 3)}")
            width = width or len(row)
            yield row[:width]
    except csv.Error as error:
        raise ValueError(f"{error}") from None
    finally:
        csv.field_size_limit(limit)


def _find_separator(text: str, known_columns: frozenset[str]) -> str:
    """The separator by which the first row has the most known columns, then the most columns."""
    header = next((line for line in io.StringIO(text) if line.strip()), "")

    def score(separator: str) -> tuple[int, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return sum(name.strip().lower() in known_columns for name in names), len(names)

    return max(SEPARATORS, key=score)
