"""Classifier + limits -> the application: the page, `POST /predict`, the card, health, metrics."""

import asyncio
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from fieldmark import __version__
from fieldmark.core import io
from fieldmark.serve.batcher import Batcher
from fieldmark.serve.limits import PHOTO_FIELD, Limits, RequestError, read_photos
from fieldmark.serve.middleware import ServiceMiddleware

PAGE_FOLDER = Path(__file__).with_name("page")
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
PHOTO_SCHEMA = {"type": "array", "items": {"type": "string", "format": "binary"}}
FORM_SCHEMA = {"schema": {"type": "object", "required": [PHOTO_FIELD], "properties": {PHOTO_FIELD: PHOTO_SCHEMA}}}
REQUEST_BODY_SCHEMA = {"requestBody": {"required": True, "content": {"multipart/form-data": FORM_SCHEMA}}}
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


class JsonResponse(Response):
    """JSON as everywhere in Fieldmark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return io.to_json(content, indent=None).encode()


def create_app(
    batcher: Batcher, limits: Limits, token: str | None = None, origins: Sequence[str] = ()
) -> ServiceMiddleware:
    """The application; with a `token`, all but the page's own files and health wants `Authorization: Bearer TOKEN`.

    Pages of other `origins` may ask it by script; by default none may.
    """
    info, middleware = batcher.classifier.info, ServiceMiddleware(limits.max_concurrent_requests)
    app = middleware.app = FastAPI(
        title="Fieldmark",
        version=__version__,
        docs_url=None,  # a page that brings its scripts from elsewhere
        redoc_url=None,
        default_response_class=JsonResponse,
    )

    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_headers=["Authorization"])

    async def check_token(credentials: Bearer) -> None:
        # Compared in a time that tells nothing of the token.
        if token and not (credentials and hmac.compare_digest(credentials.credentials.encode(), token.encode())):
            raise RequestError(401, "this needs a token: Authorization: Bearer TOKEN")

    requires_token: Any = [Depends(check_token)]

    @app.exception_handler(RequestError)
    async def on_request_error(_: Request, problem: RequestError) -> Response:
        headers = {"Retry-After": str(problem.retry_after)} if problem.retry_after else {}
        if problem.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JsonResponse({"error": problem.reason}, problem.status, headers)

    @app.exception_handler(HTTPException)
    async def on_http_exception(_: Request, problem: HTTPException) -> Response:
        return JsonResponse({"error": problem.detail}, problem.status_code, problem.headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_: Request, problem: RequestValidationError) -> Response:
        return JsonResponse({"error": "; ".join(str(one["msg"]) for one in problem.errors())}, 422)

    @app.exception_handler(Exception)
    async def on_unexpected_error(_: Request, problem: Exception) -> Response:
        return JsonResponse({"error": "a fault of Fieldmark, which stands in the log"}, 500)

    for path, name in PAGE_FILES.items():
        app.get(path, include_in_schema=False)(_page_route(name))

    @app.post("/predict", dependencies=requires_token, openapi_extra=REQUEST_BODY_SCHEMA)
    async def predict(request: Request, evidence: bool = False) -> Response:
        """What is on photos: a list with an answer for each; 422 where none of them can be read."""
        with middleware.limit_concurrency():
            photos = await read_photos(request, limits)
            request.state.noted = {"photos": len(photos), "bytes": sum(len(content) for _, content in photos)}
            futures = [asyncio.wrap_future(batcher.submit(name, content, evidence)) for name, content in photos]
            del photos
            try:
                async with asyncio.timeout(limits.timeout_seconds):
                    predictions = await asyncio.gather(*futures)
            except TimeoutError:
                raise RequestError(
                    503, f"no answer within {limits.timeout_seconds:g} seconds: too much to do", wait=5
                ) from None
            finally:
                for answer in futures:
                    answer.cancel()
        middleware.count_predictions(predictions)
        rows = [prediction.to_dict() for prediction in predictions]
        return JsonResponse(rows, 422 if all("error" in row for row in rows) else 200)

    @app.get("/card", dependencies=requires_token)
    async def card() -> Any:
        """Classes, network, preprocessing, limits, and the model card of the training."""
        public_keys = ("classes", "preprocessing", "temperature", "threshold", "fingerprint", "versions")
        values = info.to_dict()
        card_data = {name: values[name] for name in public_keys if name in values}
        card_data["network"] = info.network.get("backbone")
        card_data["trained_on_crops"] = info.is_trained_on_crops
        limit_values = {"bytes": limits.max_body_bytes, "photos": limits.max_photos, "pixels": limits.max_pixels}
        return card_data | {"limits": limit_values, "text": batcher.classifier.read_model_card()}

    @app.get("/health")
    async def health() -> Any:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Any:
        """Whether it takes photos; 503 while it finishes what it began."""
        if not middleware.is_ready:
            raise RequestError(503, "finishing what it began", wait=5)
        return {"status": "ready", "batch": batcher.max_batch_size}

    @app.get("/metrics", dependencies=requires_token, response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(middleware.registry), media_type=CONTENT_TYPE_LATEST)

    return middleware


def _page_route(name: str) -> Any:
    async def page() -> Response:
        return FileResponse(PAGE_FOLDER / name, headers={"Cache-Control": "no-cache"})

    return page
