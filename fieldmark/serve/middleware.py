"""Around every request: a limit of concurrency, security headers, a line in the log, metrics for Prometheus."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
"""Upper bounds of the histogram of latencies, in seconds."""
KNOWN_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
"""HTTP methods that the metrics and the log name; others are "other"."""
logger = logging.getLogger("fieldmark.serve")


class ConcurrencyLimiter:
    """Limits the requests for predictions that are read or processed at the same time."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests, self.in_progress = max_requests, 0

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold one of the slots inside the block. Raises `RequestError` (429) if all are taken."""
        if self.in_progress >= self.max_requests:
            raise RequestError(429, f"busy with {self.max_requests} requests, which is the limit", wait=1)
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1


class Metrics:
    """The metrics that `GET /metrics` exposes, in a `registry` of their own."""

    def __init__(self, limiter: ConcurrencyLimiter) -> None:
        self.registry = registry = CollectorRegistry()
        self.request_counter = Counter(
            "fieldmark_requests",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=registry,
        )
        self.latency_histogram = Histogram(
            "fieldmark_seconds",
            "Seconds from the headers of a request to the end of the response",
            ("route",),
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.photo_counter = Counter(
            "fieldmark_photos", "Photos by outcome: known, unknown, unreadable", ("answer",), registry=registry
        )
        in_progress_gauge = Gauge(
            "fieldmark_predictions_in_progress", "Requests for predictions in progress", registry=registry
        )
        in_progress_gauge.set_function(lambda: limiter.in_progress)

    def count_predictions(self, predictions: list[Prediction]) -> None:
        for prediction in predictions:
            outcome = "unreadable" if prediction.error is not None else "known" if prediction.known else "unknown"
            self.photo_counter.labels(outcome).inc()

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self.request_counter.labels(route, method, status).inc()
        self.latency_histogram.labels(route).observe(seconds)


@dataclass(frozen=True)
class RequestStats:
    """What a request for predictions carried; the route leaves it in `request.state.stats` for the log."""

    photos: int
    """Number of photos."""
    bytes: int
    """Their size in total."""


class ServiceMiddleware:
    """The ASGI application that adds headers to the responses of `app`, counts them and logs them.

    Set `is_ready` to False to drain the service: it still responds, and asks clients to close their connections.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics, self.is_ready = app, metrics, True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(message)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            self._record_request(scope, status, time.perf_counter() - started)

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers.update(SECURITY_HEADERS)
        headers.setdefault("Cache-Control", "no-store")
        if not self.is_ready:
            headers["Connection"] = "close"

    def _record_request(self, scope: Scope, status: int, seconds: float) -> None:
        # The route, not the path: clients must not be able to add label values without end, or text to the log.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        self.metrics.count_request(route, method, status, seconds)
        stats: RequestStats | None = scope.get("state", {}).get("stats")
        request = {"method": method, "route": route, "status": status} | (asdict(stats) if stats else {})
        logger.info("request", extra={"request": request, "seconds": seconds})


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON; requests are logged without photos and their names."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        entry |= {"event": record.getMessage()} | getattr(record, "request", {})
        seconds: float | None = getattr(record, "seconds", None)
        if seconds is not None:
            entry["ms"] = round(1e3 * seconds, 1)
        if record.exc_info:
            entry["fault"] = self.formatException(record.exc_info)
        return json.dumps(entry)
