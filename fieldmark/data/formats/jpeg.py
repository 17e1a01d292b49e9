"""The structure of a JPEG, as far as it decides what decoding costs."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fieldmark.data.formats.limits import UnreadableImageError, check_pixels, check_scans

_BUFFERED_MULTIPLE = 2  # coefficients of 2 bytes for up to 4 channels, half of what a pixel takes (limits.py)
_MAX_SEGMENTS = 10_000  # a profile and an extended XMP are some hundreds
_MAX_JUNK = 1 << 16  # bytes between segments, over which Pillow goes one by one
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # but for those within the data of a scan


class Segment(NamedTuple):
    """A segment of a JPEG: its marker, where it is, and where its length is."""

    marker: int
    start: int
    at: int


def check_header(content: bytes) -> bool:
    """Whether decoding holds the coefficients of the whole image, at any scale.

    So it is with progressive ones and those of one component a scan.

    Raises:
        UnreadableImageError: it has 12 bits a channel, or an endless header, which Pillow would read byte by byte.
    """
    end, components, is_progressive = 2, 0, False
    for marker, start, at in _segments(content):
        if start - end > _MAX_JUNK:
            raise UnreadableImageError("damaged: a JPEG of endless junk")
        end = at + int.from_bytes(content[at : at + 2], "big")
        if marker in _START_OF_FRAME and len(content) > at + 7:
            components, is_progressive = content[at + 7], marker in _PROGRESSIVE
            if content[at + 2] == 12:
                raise UnreadableImageError("a JPEG of 12 bits a channel: save it with 8")
        elif marker == _SCAN:
            return is_progressive or content[at + 2 : at + 3] < bytes([components])
    if len(content) - end > _MAX_JUNK:
        raise UnreadableImageError("damaged: a JPEG of endless junk")
    return True


def check_cost(content: bytes, width: int, height: int, is_buffered: bool) -> None:
    """Refuse what would take too much memory or time: a few kilobytes can have thousands of scans.

    Args:
        content: the bytes of the file.
        width: of the image in the file, whatever the scale at which it is decoded.
        height: likewise.
        is_buffered: `check_header` of it.

    Raises:
        UnreadableImageError: it would.
    """
    if not is_buffered:
        check_scans(1, width, height)
        return
    check_pixels(width, height, _BUFFERED_MULTIPLE)
    try:
        check_scans(content.count(b"\xff\xda"), width, height)  # at most so many; as fast as reading
    except UnreadableImageError:
        check_scans(sum(segment.marker == _SCAN for segment in _segments(content)), width, height)


def _segments(content: bytes) -> Iterator[Segment]:
    """The segments of the first image; what lies behind it, as the film of a phone's photo, is none.

    Raises:
        UnreadableImageError: there are too many.
    """
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(content, at)
        if not found or content[found.start() + 1] == _END:
            return
        yield Segment(content[found.start() + 1], found.start(), found.end())
        at = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2], "big"))
    raise UnreadableImageError("damaged: a JPEG of endless segments")
