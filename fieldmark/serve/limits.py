"""What a client may send, and the photos of a request read within that: nothing is held that is not allowed."""

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

FIELD = "photo"
"""The name of the multipart field; several of them are several photos."""
MORE = 32
"""Other fields that are read over."""


@dataclass(frozen=True)
class Limits:
    """Each has a status of its own when it is passed."""

    bytes: int = 32 * 2**20
    """Of a request's body: 413."""
    photos: int = 32
    """In a request: 413."""
    pixels: int = 50_000_000
    """Of a photo: 422, as any photo that cannot be read, told from its first bytes."""
    seconds: float = 30.0
    """For the answer, once a request's body is there: 503. The body has four times as long, from phones too: 408."""
    requests: int = 64
    """At a time, being read, waiting and worked on: 429."""


class Refused(Exception):
    """A request that is not answered: its status, why, and after how many seconds to try again, where that helps."""

    def __init__(self, status: int, reason: str, wait: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.wait = status, reason, wait


async def photos_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """(file name, bytes) of each photo of a multipart request.

    Raises Refused: 413 too much, 415 not multipart, 422 damaged or without a photo, 408 too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refused(415, f"send multipart/form-data with a field {FIELD!r} for each photo")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.bytes:
        raise _too_much(limits)
    counted = Request(request.scope, _Counted(request.receive, limits))
    try:
        async with asyncio.timeout(4 * limits.seconds), counted.form(max_files=limits.photos, max_fields=MORE) as form:
            sent = [part for name, part in form.multi_items() if name == FIELD and isinstance(part, UploadFile)]
            photos = [(part.filename or "", await part.read()) for part in sent]
    except TimeoutError:
        raise Refused(408, f"the photos did not come in within {4 * limits.seconds:g} seconds") from None
    except HTTPException as problem:  # what starlette says of a form that it cannot read
        if problem.detail.startswith("Too many"):
            raise Refused(413, f"more than the limit of {limits.photos} photos in a request") from None
        raise Refused(422, f"damaged multipart form: {problem.detail}") from None
    if not photos:
        raise Refused(422, f"no photo in the request: send each as a file in a field {FIELD!r}")
    return photos


class _Counted:
    """`receive` of an ASGI server that refuses more bytes than allowed, whatever length the client claims.

    FastAPI's own `max_body_size` answers in plain text, where all else here is JSON.
    """

    def __init__(self, receive: Any, limits: Limits) -> None:
        self.receive, self.limits, self.n = receive, limits, 0

    async def __call__(self) -> Any:
        message = await self.receive()
        self.n += len(message.get("body", b""))
        if self.n > self.limits.bytes:
            raise _too_much(self.limits)
        return message


def _too_much(limits: Limits) -> Refused:
    return Refused(413, f"more than the limit of {limits.bytes / 2**20:,.0f} MiB in a request")
