"""The server: a bound socket, the application on it, and a shutdown that completes the requests in progress."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.formats.limits import max_pixels_set_to
from fieldmark.inference.classifier import CROPS_WARNING, Classifier
from fieldmark.serve.app import create_app
from fieldmark.serve.batcher import Batcher
from fieldmark.serve.limits import Limits
from fieldmark.serve.middleware import JsonFormatter, ServiceMiddleware, logger

DRAIN_SECONDS = 1.0
"""Seconds from the signal to the close of the listening socket, in which clients are asked to close their connections;
and at most as many afterwards, for the requests on connections that were opened last."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        FieldmarkError: the address is invalid or in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        created = socket.create_server((host, port), family=family, backlog=socket.SOMAXCONN)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FieldmarkError(f"cannot listen on {host}:{port}: {reason}; --port 0 takes any free port") from None
    # Created anew from its descriptor, the socket knows that its protocol is TCP. Without that asyncio does not set
    # TCP_NODELAY, and small responses are delayed by some 40 ms.
    listener = socket.socket(fileno=created.detach())
    listener.setblocking(False)
    return listener


def serve(
    model: str | Path,
    host: str,
    port: int,
    limits: Limits,
    token: str | None,
    origins: Sequence[str],
    on_ready: Callable[[str], None],
) -> None:
    """Serve predictions until SIGTERM or Ctrl-C; requests in progress are completed. Logs JSON lines to stderr.

    Args:
        model: a run, a bundle or an exported .onnx file.
        host: address to listen on.
        port: its port; 0 is any free one.
        limits: limits of a request.
        token: bearer token that requests must carry; None for no check.
        origins: other origins whose scripts may send requests.
        on_ready: called with the URL once the socket listens.

    Raises:
        FieldmarkError: there is no model, or the address is invalid or in use.
    """
    runtime.tune_malloc()
    classifier, listener = Classifier(model), bind_socket(host, port)
    configure_json_logging()
    if classifier.info.is_trained_on_crops:
        logger.warning(CROPS_WARNING)
    batcher = Batcher(classifier)
    try:
        with max_pixels_set_to(limits.max_pixels):
            run_application(create_app(batcher, limits, token, origins), listener, limits.timeout_seconds, on_ready)
    finally:
        batcher.close()


def run_application(
    middleware: ServiceMiddleware, listener: socket.socket, timeout_seconds: float, on_ready: Callable[[str], None]
) -> None:
    """Run an application on a bound socket until SIGTERM or Ctrl-C.

    Args:
        timeout_seconds: time limit of a request, once its body has arrived.
        on_ready: called with the URL.
    """
    config = uvicorn.Config(
        middleware,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # addresses of clients are not used
        timeout_graceful_shutdown=int(5 * timeout_seconds) + 1,  # for the body and the predictions
    )
    name, bound_port = listener.getsockname()[:2]
    on_ready(f"http://[{name}]:{bound_port}" if ":" in name else f"http://{name}:{bound_port}")
    _DrainingServer(config, middleware).run(sockets=[listener])


class _DrainingServer(uvicorn.Server):
    """uvicorn's server with a drain period: closing a connection while the client writes would lose a request."""

    def __init__(self, config: uvicorn.Config, middleware: ServiceMiddleware) -> None:
        super().__init__(config)
        self.middleware = middleware

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.middleware.is_ready:  # the second signal
            self.should_exit = self.force_exit = True
        self.middleware.is_ready = False
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, setattr, self, "should_exit", True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.server_state.connections and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def configure_json_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("fieldmark.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
