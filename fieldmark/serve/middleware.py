"""Around every request: a place in the house, security headers, a line in the log, Prometheus figures."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import MutableHeaders

from fieldmark.inference.writers import Answer
from fieldmark.serve.limits import Refused

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
log = logging.getLogger("fieldmark.serve")


class Watch:
    """An ASGI application around `app`, counting what comes and goes; `registry` is what `/metrics` shows.

    Not `ready`, it answers as before, and asks clients to close their connections.
    """

    def __init__(self, places: int) -> None:
        self.app: Any = None
        self.places, self.taken, self.ready, self.registry = places, 0, True, CollectorRegistry()
        asked = "Requests by route, method and status"
        self.requests = Counter("fieldmark_requests", asked, ("route", "method", "status"), registry=self.registry)
        took = "Seconds from a request's headers to the end of its answer"
        self.seconds = Histogram("fieldmark_seconds", took, ("route",), buckets=SECONDS, registry=self.registry)
        answered = "Photos by what was said of them: known, unknown, unreadable"
        self.photos = Counter("fieldmark_photos", answered, ("answer",), registry=self.registry)
        here = Gauge("fieldmark_predictions_in_progress", "Requests being read or worked on", registry=self.registry)
        here.set_function(lambda: self.taken)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for requests at a time; raises Refused (429) where all are taken."""
        if self.taken >= self.places:
            raise Refused(429, f"busy with {self.places} requests, which is the limit", wait=1)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def told(self, answers: list[Answer]) -> None:
        for answer in answers:
            kind = "unreadable" if "error" in answer else "known" if answer["known"] else "unknown"
            self.photos.labels(kind).inc()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if not self.ready:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            self._done(scope, status, time.perf_counter() - began)

    def _done(self, scope: Any, status: int, seconds: float) -> None:
        # The route, not the path: what a stranger asked for must neither fill the memory nor stand in the log.
        route, method = getattr(scope.get("route"), "path", "other"), scope["method"]
        method = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self.requests.labels(route, method, status).inc()
        self.seconds.labels(route).observe(seconds)
        noted = scope.get("state", {}).get("noted", {})
        log.info("request", extra={"told": {"method": method, "route": route, "status": status} | noted, "s": seconds})


class Lines(logging.Formatter):
    """A record -> a line of JSON: never a photo, nor a photo's name."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        told |= {"event": record.getMessage()} | getattr(record, "told", {})
        if hasattr(record, "s"):
            told["ms"] = round(1e3 * record.s, 1)  # type: ignore[attr-defined]  # given as `extra`
        if record.exc_info:
            told["fault"] = self.formatException(record.exc_info)
        return json.dumps(told)
