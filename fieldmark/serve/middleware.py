"""Around every request: a place in the house, security headers, a line in the log, Prometheus figures."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import MutableHeaders

from fieldmark.inference.prediction import Prediction
from fieldmark.serve.limits import RequestError

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
logger = logging.getLogger("fieldmark.serve")


class ServiceMiddleware:
    """An ASGI application around `app`, counting what comes and goes; `registry` is what `/metrics` shows.

    Not `ready`, it answers as before, and asks clients to close their connections.
    """

    def __init__(self, max_concurrent_requests: int) -> None:
        self.app: Any = None
        self.max_concurrent_requests, self.requests_in_progress, self.is_ready, self.registry = (
            max_concurrent_requests,
            0,
            True,
            CollectorRegistry(),
        )
        requests_help = "Requests by route, method and status"
        self.request_counter = Counter(
            "fieldmark_requests", requests_help, ("route", "method", "status"), registry=self.registry
        )
        latency_help = "Seconds from a request's headers to the end of its answer"
        self.latency_histogram = Histogram(
            "fieldmark_seconds", latency_help, ("route",), buckets=LATENCY_BUCKETS, registry=self.registry
        )
        photos_help = "Photos by what was said of them: known, unknown, unreadable"
        self.photo_counter = Counter("fieldmark_photos", photos_help, ("answer",), registry=self.registry)
        in_progress_gauge = Gauge(
            "fieldmark_predictions_in_progress", "Requests being read or worked on", registry=self.registry
        )
        in_progress_gauge.set_function(lambda: self.requests_in_progress)

    @contextlib.contextmanager
    def limit_concurrency(self) -> Iterator[None]:
        """One of the places for requests at a time; raises Refused (429) where all are taken."""
        if self.requests_in_progress >= self.max_concurrent_requests:
            raise RequestError(429, f"busy with {self.max_concurrent_requests} requests, which is the limit", wait=1)
        self.requests_in_progress += 1
        try:
            yield
        finally:
            self.requests_in_progress -= 1

    def count_predictions(self, predictions: list[Prediction]) -> None:
        for prediction in predictions:
            outcome = "unreadable" if prediction.error is not None else "known" if prediction.known else "unknown"
            self.photo_counter.labels(outcome).inc()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def send_with_headers(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if not self.is_ready:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self._record_request(scope, status, time.perf_counter() - started)

    def _record_request(self, scope: Any, status: int, seconds: float) -> None:
        # The route, not the path: what a stranger asked for must neither fill the memory nor stand in the log.
        route, method = getattr(scope.get("route"), "path", "other"), scope["method"]
        method = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self.request_counter.labels(route, method, status).inc()
        self.latency_histogram.labels(route).observe(seconds)
        request_stats = scope.get("state", {}).get("noted", {})
        logger.info(
            "request",
            extra={"told": {"method": method, "route": route, "status": status} | request_stats, "s": seconds},
        )


class JsonFormatter(logging.Formatter):
    """A record -> a line of JSON: never a photo, nor a photo's name."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        entry |= {"event": record.getMessage()} | getattr(record, "told", {})
        if hasattr(record, "s"):
            entry["ms"] = round(1e3 * record.s, 1)  # type: ignore[attr-defined]  # given as `extra`
        if record.exc_info:
            entry["fault"] = self.formatException(record.exc_info)
        return json.dumps(entry)
