"""Limits of a request, and the reading of its images within them: a body is never read past its limit."""

import asyncio
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

PHOTO_FIELD = "photo"
"""Name of the multipart field of an image; a request may have several."""
MAX_OTHER_FIELDS = 32
"""Other fields that are ignored; more of them are refused."""


@dataclass(frozen=True)
class Limits:
    """Limits of a request, each with the HTTP status of a request beyond it."""

    max_body_bytes: int = 32 * 2**20
    """Size of the body: 413."""
    max_photos: int = 32
    """Images: 413."""
    max_pixels: int = 50_000_000
    """Pixels that are decoded of an image: 422, as for any image that cannot be read; known from its header. Of a large
    JPEG they are those of a smaller scale (data/formats/limits.py)."""
    timeout_seconds: float = 30.0
    """For the predictions, once the body has arrived: 503. The body may take four times as long: 408."""
    max_concurrent_requests: int = 64
    """Requests for predictions in progress: 429."""


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status of the response.
        reason: text of the response.
        wait: seconds after which the client may try again (`Retry-After`).
    """

    def __init__(self, status: int, reason: str, wait: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, wait


async def read_photos(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """(file name, content) of each image of a multipart request.

    Raises:
        RequestError: 413 too much, 415 not multipart, 422 damaged or without an image, 408 too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise RequestError(415, f"send multipart/form-data with a field {PHOTO_FIELD!r} for each photo")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise _body_too_large(limits.max_body_bytes)
    limited_request = Request(request.scope, BodyLimiter(request.receive, limits.max_body_bytes))
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
        raise RequestError(408, f"the photos did not arrive within {4 * limits.timeout_seconds:g} seconds") from None
    except HTTPException as error:  # from starlette's parser of forms
        if error.detail.startswith("Too many"):
            raise RequestError(413, f"more than the limit of {limits.max_photos} photos in a request") from None
        raise RequestError(422, f"damaged multipart form: {error.detail}") from None
    if not photos:
        raise RequestError(422, f"no photo in the request: send each as a file in a field {PHOTO_FIELD!r}")
    return photos


class BodyLimiter:
    """An ASGI `receive` that raises `RequestError` (413) past the limit, whatever Content-Length says.

    FastAPI's own `max_body_size` responds in plain text, all other errors here are JSON.
    """

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive, self.max_bytes, self.received_bytes = receive, max_bytes, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.received_bytes += len(message.get("body", b""))
        if self.received_bytes > self.max_bytes:
            raise _body_too_large(self.max_bytes)
        return message


def _body_too_large(max_bytes: int) -> RequestError:
    return RequestError(413, f"more than the limit of {max_bytes / 2**20:,.0f} MiB in a request")
