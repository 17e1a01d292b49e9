"""An HTTP address -> its bytes, within limits of size, time and tries; none from the machine's own network.

The connections are those of fsspec's HTTPFileSystem, so that a user's settings for it (headers, certificates in
~/.config/fsspec) hold here as well. Each connection is checked when it is made, at the IP address it is made to: so
redirects and names that resolve to another address the second time are checked too.
"""

import asyncio
import concurrent.futures
import errno
import ipaddress
import os
import socket
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, BinaryIO, TypeVar

from fieldmark.core import parallel
from fieldmark.core.text import one_line, sanitize_for_terminal
from fieldmark.data.image import UnreadableImageError

T = TypeVar("T")

MAX_SECONDS = 60.0
"""For an image or a listing, with all tries; an archive has a second more for each `MIN_BYTES_PER_SECOND`."""
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 20.0
"""For a connection, and between two packets."""
MIN_BYTES_PER_SECOND = 100 * 2**10
MAX_TRIES = 3
BACKOFF_SECONDS = 0.5
"""Before the second try; twice as long before each further one, or as long as the server asks for."""
PASSING_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers that may be another at the next try."""
PASSING_ERRNOS = frozenset((errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ETIMEDOUT, socket.EAI_AGAIN))
CHUNK_BYTES = 2**16
MAX_PAGE_BYTES = 2**25
"""Of a page with links, or a part of a file."""
ALLOW_VARIABLE = "FIELDMARK_ALLOW_PRIVATE_HOSTS"
PERMISSION = f"--allow-private-hosts or {ALLOW_VARIABLE}=1"
PRIVATE_REASON = f"leads to this machine or its own network, which is not read: permit it by {PERMISSION}"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class FailedFetchError(UnreadableImageError):
    """What an address gave in place of its content; `may_pass` if another try may succeed."""

    def __init__(self, reason: str, *, may_pass: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass, self.wait = may_pass, wait


def allows_private_hosts(choice: bool | None = None) -> bool:
    """Whether addresses of the machine's own network may be read: the choice, or that of the environment."""
    if choice is not None:
        return choice
    return os.environ.get(ALLOW_VARIABLE, "").strip().lower() in ("1", "true", "t", "yes", "y", "on")


def is_private(address: str) -> bool:
    """Whether an IP address is not one of the public internet: loopback, private, link-local, shared, multicast, ...

    An IPv6 address that carries an IPv4 address (mapped, 6to4, NAT64) is what that one is.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_private(str(inner))
        if ip.is_site_local:
            return True
    return not ip.is_global or ip.is_multicast or ip.is_reserved


def _open_public_socket(info: tuple[Any, ...]) -> socket.socket:
    """The socket for a connection to an address that the resolver gave; OSError if that is a private one."""
    family, kind, protocol, _, address = info
    if is_private(address[0]):
        raise OSError(PRIVATE_REASON)
    return socket.socket(family, kind, protocol)


async def open_public_session(**settings: Any) -> Any:
    """An aiohttp session that connects to public addresses alone; `get_client` of fsspec's HTTPFileSystem."""
    return _make_session(_open_public_socket, settings)


async def open_session(**settings: Any) -> Any:
    """An aiohttp session that connects to any address."""
    return _make_session(None, settings)


def _make_session(socket_factory: Any, settings: dict[str, Any]) -> Any:
    import aiohttp

    class BoundedResponse(aiohttp.ClientResponse):
        """Reads no more than `MAX_PAGE_BYTES` into memory at once."""

        async def read(self) -> bytes:
            if self._body is None:
                body = bytearray()
                async for chunk in self.content.iter_chunked(CHUNK_BYTES):
                    body += chunk
                    _check_size(len(body), MAX_PAGE_BYTES)
                self._body = bytes(body)
            return self._body

    settings.pop("loop", None)
    timeout = aiohttp.ClientTimeout(total=MAX_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    connector = aiohttp.TCPConnector(socket_factory=socket_factory)
    defaults = {"connector": connector, "timeout": timeout, "response_class": BoundedResponse}
    return aiohttp.ClientSession(**defaults | settings)


def wait_for(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """The result of a coroutine that runs in the loop of another thread; it is cancelled if this thread is."""
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        while not parallel.is_cancelled():
            if concurrent.futures.wait([future], timeout=0.1).done:
                return future.result()
        raise FailedFetchError("interrupted")
    finally:
        future.cancel()


def fetch(system: Any, url: str, file: BinaryIO, max_bytes: int, *, is_archive: bool = False) -> None:
    """Write the content of the address into the file.

    Args:
        system: fsspec's HTTPFileSystem.
        is_archive: a large file may take longer than an image, if it does come.

    Raises:
        UnreadableImageError: it cannot be read, or the file cannot be written; the text is the reason.
    """
    wait_for(_fetch(system, url, file, max_bytes, is_archive), system.loop)


async def _fetch(system: Any, url: str, file: BinaryIO, max_bytes: int, is_archive: bool) -> None:
    deadline = asyncio.timeout(None if is_archive else MAX_SECONDS)
    try:
        async with deadline:
            await _try_repeatedly(system, url, file, max_bytes)
    except TimeoutError:
        raise FailedFetchError(f"not read within {MAX_SECONDS:g} seconds") from None


async def _try_repeatedly(system: Any, url: str, file: BinaryIO, max_bytes: int) -> None:
    for number in range(1, MAX_TRIES + 1):
        file.seek(0)
        file.truncate()
        try:
            return await _transfer(system, url, file, max_bytes)
        except FailedFetchError as error:
            wait = max(error.wait, BACKOFF_SECONDS * 2 ** (number - 1))
            if not error.may_pass:
                raise
            if number == MAX_TRIES or wait > MAX_SECONDS:
                raise FailedFetchError(f"{error} (tried {number} times)" if number > 1 else str(error)) from None
        await asyncio.sleep(wait)


async def _transfer(system: Any, url: str, file: BinaryIO, max_bytes: int) -> None:
    """One try."""
    import aiohttp

    loop, timeout = asyncio.get_running_loop(), aiohttp.ClientTimeout(None, None, SILENT_SECONDS, CONNECT_SECONDS)
    start, size = loop.time(), 0
    try:
        session = await system.set_session()
        async with asyncio.timeout(MAX_SECONDS):  # a header may drip
            response = await session.get(system.encode_url(url), timeout=timeout, **system.kwargs)
        async with response:
            _check_status(response)
            _check_size(response.content_length or 0, max_bytes)
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                size += len(chunk)
                _check_size(size, max_bytes)
                if loop.time() - start > MAX_SECONDS + size / MIN_BYTES_PER_SECOND:
                    raise FailedFetchError(f"too slow: {size:,} bytes in {loop.time() - start:.0f} seconds")
                file.write(chunk)
    except UnreadableImageError:
        raise
    except Exception as error:  # aiohttp's own, the system's, and those of names that are no host names
        raise to_failure(error) from None


def _check_status(response: Any) -> None:
    status = response.status
    if status < 400:
        return
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    wait = response.headers.get("Retry-After", "")
    raise FailedFetchError(
        f"HTTP {status} {phrase}".strip(),
        may_pass=status in PASSING_STATUSES,
        wait=float(wait) if wait.isdecimal() and wait.isascii() else 0.0,
    )


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise FailedFetchError(f"more than {max_bytes >> 20:,} MiB")


def to_failure(error: Exception) -> FailedFetchError:
    """An error of a connection with a reason for people."""
    import aiohttp

    cause = getattr(error, "os_error", None) or error
    number = getattr(cause, "errno", None)
    may_pass = number in PASSING_ERRNOS
    text = sanitize_for_terminal(one_line(getattr(cause, "strerror", None) or cause) or type(error).__name__)
    if PRIVATE_REASON in str(cause):
        return FailedFetchError(PRIVATE_REASON)
    match error:
        case aiohttp.ClientConnectorDNSError():
            return FailedFetchError(f"unknown host ({text})", may_pass=may_pass)
        case aiohttp.ClientSSLError():
            return FailedFetchError(f"no secure connection ({text})")
        case TimeoutError():
            return FailedFetchError("no answer in time", may_pass=True)
        case aiohttp.ClientConnectorError():
            return FailedFetchError(f"no connection ({text})", may_pass=may_pass)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionError():
            return FailedFetchError(f"the connection was lost ({text})", may_pass=True)
        case aiohttp.TooManyRedirects():
            return FailedFetchError("too many redirects")
        case ValueError() | aiohttp.NonHttpUrlClientError():  # also of names that are no host names
            return FailedFetchError(f"no address of HTTP: {text}")
    return FailedFetchError(f"cannot be read: {type(error).__name__} {text}", may_pass=may_pass)
