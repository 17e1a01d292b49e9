"""The web application: the page, `POST /predict`, the model's card, health, readiness and metrics."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, params
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from fieldmark import __version__
from fieldmark.core import io
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction
from fieldmark.serve.batcher import Batcher
from fieldmark.serve.limits import PHOTO_FIELD, Limits, RequestError, read_photos
from fieldmark.serve.middleware import ConcurrencyLimiter, Metrics, RequestStats, ServiceMiddleware

PAGE_FILES = {
    "/": "page/index.html",
    "/base.css": "page/base.css",
    "/page.css": "page/page.css",
    "/page.js": "page/page.js",
}
PHOTO_SCHEMA = {"type": "array", "items": {"type": "string", "format": "binary"}}
FORM_SCHEMA = {"schema": {"type": "object", "required": [PHOTO_FIELD], "properties": {PHOTO_FIELD: PHOTO_SCHEMA}}}
REQUEST_BODY_SCHEMA = {"requestBody": {"required": True, "content": {"multipart/form-data": FORM_SCHEMA}}}
PUBLIC_INFO_KEYS = ("classes", "preprocessing", "temperature", "threshold", "fingerprint", "versions")
"""What `GET /card` shows of `bundle.json`, beside the identifier of the model."""
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
Dependencies = Sequence[params.Depends]


class JsonResponse(Response):
    """A response in Fieldmark's JSON: not ASCII only, null for NaN."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return io.to_json(content, indent=None).encode()


def create_app(
    batcher: Batcher, limits: Limits, token: str | None = None, origins: Sequence[str] = ()
) -> ServiceMiddleware:
    """Create the ASGI application.

    Args:
        batcher: predicts the images.
        limits: what a request may hold.
        token: if given, all routes but the page's files, `/health` and `/ready` require `Authorization: Bearer TOKEN`.
        origins: other origins whose scripts may send requests (CORS); none by default.
    """
    app = FastAPI(
        title="Fieldmark",
        version=__version__,
        docs_url=None,  # FastAPI's page loads scripts from a CDN
        redoc_url=None,
        default_response_class=JsonResponse,
    )
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_headers=["Authorization"])
    limiter = ConcurrencyLimiter(limits.max_concurrent_requests)
    metrics = Metrics(limiter)
    service = ServiceMiddleware(app, metrics)
    requires_token = [Depends(token_checker(token))]
    add_error_handlers(app)
    add_page_routes(app, PAGE_FILES)
    _add_predict_route(app, batcher, limits, limiter, metrics, requires_token)
    _add_card_route(app, batcher.classifier, limits, requires_token)
    _add_status_routes(app, service, batcher.max_batch_size)
    _add_metrics_route(app, metrics, requires_token)
    return service


def token_checker(token: str | None) -> Callable[[HTTPAuthorizationCredentials | None], Awaitable[None]]:
    """The dependency that raises `RequestError` (401) unless a request carries the token."""

    async def check_token(credentials: Bearer) -> None:
        # Compared in constant time, so that response times do not leak the token.
        if token and not (credentials and hmac.compare_digest(credentials.credentials.encode(), token.encode())):
            raise RequestError(401, "missing or wrong token: send the header Authorization: Bearer TOKEN")

    return check_token


def add_error_handlers(app: FastAPI) -> None:
    """Make every error a JSON document `{"error": ...}`."""

    @app.exception_handler(RequestError)
    async def on_request_error(_: Request, error: RequestError) -> Response:
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JsonResponse({"error": error.reason}, error.status, headers)

    @app.exception_handler(HTTPException)
    async def on_http_exception(_: Request, error: HTTPException) -> Response:
        return JsonResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_: Request, error: RequestValidationError) -> Response:
        return JsonResponse({"error": "; ".join(str(item["msg"]) for item in error.errors())}, 422)

    @app.exception_handler(Exception)
    async def on_unexpected_error(_: Request, error: Exception) -> Response:
        return JsonResponse({"error": "internal error of Fieldmark: see the server's log"}, 500)


def add_page_routes(app: FastAPI, files: Mapping[str, str]) -> None:
    """Serve the files of a page, path -> file below this folder, without a token."""
    folder = Path(__file__).parent

    def page_route(name: str) -> Callable[[], Awaitable[Response]]:
        async def page() -> Response:
            return FileResponse(folder / name, headers={"Cache-Control": "no-cache"})

        return page

    for path, name in files.items():
        app.get(path, include_in_schema=False)(page_route(name))


def _add_predict_route(
    app: FastAPI,
    batcher: Batcher,
    limits: Limits,
    limiter: ConcurrencyLimiter,
    metrics: Metrics,
    dependencies: Dependencies,
) -> None:
    @app.post("/predict", dependencies=dependencies, openapi_extra=REQUEST_BODY_SCHEMA)
    async def predict(request: Request, evidence: bool = False) -> Response:
        """Classify photos: a list with one prediction for each; status 422 if none of them can be read."""
        with limiter.acquire():
            photos = await read_photos(request, limits)
            request.state.stats = RequestStats(len(photos), sum(len(content) for _, content in photos))
            predictions = await _predict_photos(batcher, photos, evidence, limits.timeout_seconds)
        metrics.count_predictions(predictions)
        rows = [prediction.to_dict() for prediction in predictions]
        return JsonResponse(rows, 422 if all("error" in row for row in rows) else 200)


async def _predict_photos(
    batcher: Batcher, photos: list[tuple[str, bytes]], evidence: bool, timeout_seconds: float
) -> list[Prediction]:
    """The predictions for (file name, bytes), in order; `photos` is emptied. Raises `RequestError` (503) if late."""
    futures = [asyncio.wrap_future(batcher.submit(name, content, evidence)) for name, content in photos]
    photos.clear()  # each file is released once it has been decoded
    try:
        async with asyncio.timeout(timeout_seconds):
            return await asyncio.gather(*futures)
    except TimeoutError:
        raise RequestError(
            503, f"no prediction within {timeout_seconds:g} seconds: the server is overloaded", wait=5
        ) from None
    finally:
        for future in futures:
            future.cancel()


def _add_card_route(app: FastAPI, classifier: Classifier, limits: Limits, dependencies: Dependencies) -> None:
    @app.get("/card", dependencies=dependencies, response_model=Any)
    async def card() -> dict[str, object]:
        """Classes, network, preprocessing, limits of a request, and the model card."""
        info = classifier.info
        values = info.to_dict()
        return {
            **{name: values[name] for name in PUBLIC_INFO_KEYS if name in values},
            "model": classifier.model_id,
            "network": info.network.get("backbone"),
            "trained_on_crops": info.is_trained_on_crops,
            "limits": {"bytes": limits.max_body_bytes, "photos": limits.max_photos, "pixels": limits.max_pixels},
            "text": classifier.read_model_card(),
        }


def _add_status_routes(app: FastAPI, service: ServiceMiddleware, max_batch_size: int) -> None:
    @app.get("/health", response_model=Any)
    async def health() -> dict[str, object]:
        """Liveness: the process responds."""
        return {"status": "ok"}

    @app.get("/ready", response_model=Any)
    async def ready() -> dict[str, object]:
        """Readiness: the service accepts photos; status 503 while it shuts down."""
        if not service.is_ready:
            raise RequestError(503, "shutting down", wait=5)
        return {"status": "ready", "batch": max_batch_size}


def _add_metrics_route(app: FastAPI, service_metrics: Metrics, dependencies: Dependencies) -> None:
    @app.get("/metrics", dependencies=dependencies, response_class=Response)
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(generate_latest(service_metrics.registry), media_type=CONTENT_TYPE_LATEST)
