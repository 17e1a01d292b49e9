"""What a client may send, and the photos of a request read within that: nothing is held that is not allowed."""

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

PHOTO_FIELD = "photo"
"""The name of the multipart field; several of them are several photos."""
MAX_OTHER_FIELDS = 32
"""Other fields that are read over."""


@dataclass(frozen=True)
class Limits:
    """Each has a status of its own when it is passed."""

    max_body_bytes: int = 32 * 2**20
    """Of a request's body: 413."""
    max_photos: int = 32
    """In a request: 413."""
    max_pixels: int = 50_000_000
    """Of a photo: 422, as any photo that cannot be read, told from its first bytes."""
    timeout_seconds: float = 30.0
    """For the answer, once a request's body is there: 503. The body has four times as long, from phones too: 408."""
    max_concurrent_requests: int = 64
    """At a time, being read, waiting and worked on: 429."""


class RequestError(Exception):
    """A request that is not answered: its status, why, and after how many seconds to try again, where that helps."""

    def __init__(self, status: int, reason: str, wait: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, wait


async def read_photos(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """(file name, bytes) of each photo of a multipart request.

    Raises Refused: 413 too much, 415 not multipart, 422 damaged or without a photo, 408 too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise RequestError(415, f"send multipart/form-data with a field {PHOTO_FIELD!r} for each photo")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise _body_too_large(limits)
    limited_request = Request(request.scope, _BodyLimiter(request.receive, limits))
    try:
        async with (
            asyncio.timeout(4 * limits.timeout_seconds),
            limited_request.form(max_files=limits.max_photos, max_fields=MAX_OTHER_FIELDS) as form,
        ):
            uploads = [
                part for name, part in form.multi_items() if name == PHOTO_FIELD and isinstance(part, UploadFile)
            ]
            photos = [(part.filename or "", await part.read()) for part in uploads]
    except TimeoutError:
        raise RequestError(408, f"the photos did not come in within {4 * limits.timeout_seconds:g} seconds") from None
    except HTTPException as error:  # what starlette says of a form that it cannot read
        if error.detail.startswith("Too many"):
            raise RequestError(413, f"more than the limit of {limits.max_photos} photos in a request") from None
        raise RequestError(422, f"damaged multipart form: {error.detail}") from None
    if not photos:
        raise RequestError(422, f"no photo in the request: send each as a file in a field {PHOTO_FIELD!r}")
    return photos


class _BodyLimiter:
    """`receive` of an ASGI server that refuses more bytes than allowed, whatever length the client claims.

    FastAPI's own `max_body_size` answers in plain text, where all else here is JSON.
    """

    def __init__(self, receive: Any, limits: Limits) -> None:
        self.receive, self.limits, self.received_bytes = receive, limits, 0

    async def __call__(self) -> Any:
        message = await self.receive()
        self.received_bytes += len(message.get("body", b""))
        if self.received_bytes > self.limits.max_body_bytes:
            raise _body_too_large(self.limits)
        return message


def _body_too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"more than the limit of {limits.max_body_bytes / 2**20:,.0f} MiB in a request")
