"""A bound socket, the application on it, and an end that finishes what it began."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.inference.classifier import CROPS_WARNING, Classifier
from fieldmark.serve.app import create_app
from fieldmark.serve.batcher import Batcher
from fieldmark.serve.limits import Limits
from fieldmark.serve.middleware import JsonFormatter, ServiceMiddleware, logger

DRAIN_SECONDS = 1.0
"""Seconds between the signal to end and the closed door, in which clients are told to close their connections; and as
many behind it, for requests of those who came in last."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that takes connections there; port 0 is any free one. FieldmarkError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        created = socket.create_server((host, port), family=family, backlog=socket.SOMAXCONN)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FieldmarkError(f"cannot listen on {host}:{port}: {reason}; --port 0 takes any free port") from None
    # Read anew, it knows that it is TCP; else asyncio lets small answers wait for the client's next word, some 40 ms.
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
    """Answers until SIGTERM or Ctrl-C, and then what it has taken in; the log is JSON lines on stderr.

    `listening` is called with the URL once it takes photos. Raises FieldmarkError where there is no model, or no such
    place to listen.
    """
    runtime.tune_malloc()
    classifier, listener = Classifier(model), bind_socket(host, port)
    Image.MAX_IMAGE_PIXELS = limits.max_pixels  # what decoding holds photos against
    _configure_json_logging()
    if classifier.info.is_trained_on_crops:
        logger.warning(CROPS_WARNING)
    batcher = Batcher(classifier)
    middleware = create_app(batcher, limits, token, origins)
    config = uvicorn.Config(
        middleware,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # who asks is not told anywhere
        timeout_graceful_shutdown=int(5 * limits.timeout_seconds) + 1,  # photos on their way, and their answer,
    )
    name, bound_port = listener.getsockname()[:2]
    on_ready(f"http://[{name}]:{bound_port}" if ":" in name else f"http://{name}:{bound_port}")
    try:
        _DrainingServer(config, middleware).run(sockets=[listener])
    finally:
        batcher.close()


class _DrainingServer(uvicorn.Server):
    """uvicorn's, with a drain period: a connection that it closes while a client writes would lose that request."""

    def __init__(self, config: uvicorn.Config, middleware: ServiceMiddleware) -> None:
        super().__init__(config)
        self.middleware = middleware

    def handle_exit(self, sig: int, frame: Any) -> None:
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


def _configure_json_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("fieldmark.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
