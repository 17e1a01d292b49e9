"""Standard input -> the names of images, or the image whose bytes it holds.

A list has a name a line, or a NUL byte after each name (`find -print0`); bytes that are no text are kept. It may have a
byte order mark, be in UTF-16 (PowerShell's `>`), end its lines with CRLF, and have blank lines, and blanks or quotes
around a name. What is neither a list nor an image is refused.
"""

import codecs
import locale
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import MAX_FILE_BYTES

STDIN = "-"
"""Names standard input, and in a prediction the image that was read from there."""
MAX_NAME_BYTES = 2**16
_CHUNK_BYTES = 2**16
_HEAD_BYTES = 32
"""So many bytes show what this is."""
_IMAGE_HEAD = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|II\*\0|MM\0\*|BM.{4}\0{4}.{4}.\0{3}|\0\0..ftyp|\0{3}\x0cjP  |\xff\x4f\xff\x51"
    rb"|P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s|GIF8[79]a(?![^\0-\x1f]*\.\w+([\0\r\n]|\Z))",
    re.DOTALL,
)
_MAY_BECOME_HEAD = re.compile(rb"[\xef\xfe\xff\x89\0]|RI|II|MM|BM|GI|P[1-6]|.?\Z|.\0", re.DOTALL)
_OTHER_HEAD = re.compile(
    rb"PK\x03\x04|%PDF|%!PS|\x1f\x8b|BZh|\xfd7z|7z\xbc\xaf|Rar!|\x7fELF|\x28\xb5\x2f\xfd", re.DOTALL
)
_IMAGE_END_AND_START = re.compile(rb"\xff\xd9\xff\xd8\xff|IEND\xaeB`\x82\x89PNG")
_MULTI_PICTURE = b"MPF\0"
"""In a JPEG of several pictures, as phones take: it is one photo."""
_REFUSAL = "stdin holds no list of names and no image: give a name a line, or the bytes of one image"


def read_stdin() -> Iterator[tuple[str, bytes | None]]:
    """The names in a list on stdin, as they come; or `STDIN` and the bytes of the image that it holds.

    Raises:
        FieldmarkError: it holds neither, or several images one after another.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise FieldmarkError("stdin is closed: give names of images in place of -")
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    head = _read_head(read)
    if _IMAGE_HEAD.match(head):
        yield STDIN, _read_image(head, read)
        return
    for name in _split_names(head, iter(lambda: read(_CHUNK_BYTES), b"")):
        if name := _clean(_to_text(name)):
            yield name, None


def _read_head(read: Callable[[int], bytes]) -> bytes:
    """The first bytes: no more than are there already, if these are the beginning of a name."""
    head = read(_CHUNK_BYTES)
    while 0 < len(head) < _HEAD_BYTES and _MAY_BECOME_HEAD.match(head):
        if not (chunk := read(_CHUNK_BYTES)):
            break
        head += chunk
    return head


def _read_image(head: bytes, read: Callable[[int], bytes]) -> bytes:
    content = bytearray(head)
    while chunk := read(_CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_FILE_BYTES:
            raise FieldmarkError(f"stdin holds more than {MAX_FILE_BYTES >> 20} MiB: give the names of the images")
    if _IMAGE_END_AND_START.search(content) and _MULTI_PICTURE not in content[: 2**20]:
        raise FieldmarkError("stdin holds several images one after another: give their names, one a line")
    return bytes(content)


def _split_names(head: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    """The names in UTF-8 or in the bytes of the file system."""
    encoding = _wide_encoding(head)
    if encoding:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        head, rest = decoder.decode(head).encode(), (decoder.decode(chunk).encode() for chunk in rest)
    head = head.removeprefix(codecs.BOM_UTF8)
    if _is_binary(head):
        raise FieldmarkError(_REFUSAL)
    separator, pending = b"\0" if b"\0" in head else b"\n", b""
    for chunk in chain([head], rest):
        *names, pending = (pending + chunk).split(separator)
        yield from names
        if len(pending) > MAX_NAME_BYTES:
            raise FieldmarkError(_REFUSAL)
    yield pending


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its byte order mark or by the zeros beside letters of ASCII."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[:8:2], head[1:8:2]
    if len(head) < 8 or any(even) == any(odd):
        return None
    return ("utf-16-le" if all(even) else None) if any(even) else ("utf-16-be" if all(odd) else None)


def _is_binary(head: bytes) -> bool:
    controls = len(re.findall(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]", head))
    return bool(_OTHER_HEAD.match(head)) or b"\0\0" in head or controls > 2 + len(head) // 50


def _to_text(name: bytes) -> str:
    try:
        return os.fsdecode(name.rstrip(b"\r\n"))
    except UnicodeDecodeError:  # on Windows
        return name.rstrip(b"\r\n").decode(locale.getpreferredencoding(False), "replace")


def _clean(name: str) -> str:
    """The name as it stands if there is such a file, else without the blanks and quotes around it."""
    if os.path.lexists(name):
        return name
    bare = name.strip()
    return bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'" else bare
