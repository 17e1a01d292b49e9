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
from fieldmark.serve.batcher import Desk
from fieldmark.serve.limits import FIELD, Limits, Refused, photos_of
from fieldmark.serve.middleware import Watch

PAGE = Path(__file__).with_name("page")
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
PHOTO = {"type": "array", "items": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: PHOTO}}}
SENT = {"requestBody": {"required": True, "content": {"multipart/form-data": FORM}}}
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


class Json(Response):
    """JSON as everywhere in Fieldmark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return io.text(content, indent=None).encode()


def create(desk: Desk, limits: Limits, token: str | None = None, origins: Sequence[str] = ()) -> Watch:
    """The application; with a `token`, all but the page's own files and health wants `Authorization: Bearer TOKEN`.

    Pages of other `origins` may ask it by script; by default none may.
    """
    info, watch = desk.classifier.info, Watch(limits.requests)
    app = watch.app = FastAPI(
        title="Fieldmark",
        version=__version__,
        docs_url=None,  # a page that brings its scripts from elsewhere
        redoc_url=None,
        default_response_class=Json,
    )

    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_headers=["Authorization"])

    async def allowed(given: Bearer) -> None:
        # Compared in a time that tells nothing of the token.
        if token and not (given and hmac.compare_digest(given.credentials.encode(), token.encode())):
            raise Refused(401, "this needs a token: Authorization: Bearer TOKEN")

    private: Any = [Depends(allowed)]

    @app.exception_handler(Refused)
    async def refused(_: Request, problem: Refused) -> Response:
        headers = {"Retry-After": str(problem.wait)} if problem.wait else {}
        if problem.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Json({"error": problem.reason}, problem.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, problem: HTTPException) -> Response:
        return Json({"error": problem.detail}, problem.status_code, problem.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> Response:
        return Json({"error": "; ".join(str(one["msg"]) for one in problem.errors())}, 422)

    @app.exception_handler(Exception)
    async def fault(_: Request, problem: Exception) -> Response:
        return Json({"error": "a fault of Fieldmark, which stands in the log"}, 500)

    for path, name in FILES.items():
        app.get(path, include_in_schema=False)(_file(name))

    @app.post("/predict", dependencies=private, openapi_extra=SENT)
    async def predict(request: Request, evidence: bool = False) -> Response:
        """What is on photos: a list with an answer for each; 422 where none of them can be read."""
        with watch.place():
            photos = await photos_of(request, limits)
            request.state.noted = {"photos": len(photos), "bytes": sum(len(content) for _, content in photos)}
            waiting = [asyncio.wrap_future(desk.ask(name, content, evidence)) for name, content in photos]
            del photos
            try:
                async with asyncio.timeout(limits.seconds):
                    answers = await asyncio.gather(*waiting)
            except TimeoutError:
                raise Refused(503, f"no answer within {limits.seconds:g} seconds: too much to do", wait=5) from None
            finally:
                for answer in waiting:
                    answer.cancel()
        watch.told(answers)
        return Json(answers, 422 if all("error" in answer for answer in answers) else 200)

    @app.get("/card", dependencies=private)
    async def card() -> Any:
        """Classes, network, preprocessing, limits, and the model card of the training."""
        shown = ("classes", "preprocessing", "temperature", "threshold", "fingerprint", "versions")
        told = {name: info[name] for name in shown if name in info} | {"network": info["network"].get("backbone")}
        least = {"bytes": limits.bytes, "photos": limits.photos, "pixels": limits.pixels}
        return told | {"limits": least, "text": desk.classifier.card()}

    @app.get("/health")
    async def health() -> Any:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Any:
        """Whether it takes photos; 503 while it finishes what it began."""
        if not watch.ready:
            raise Refused(503, "finishing what it began", wait=5)
        return {"status": "ready", "batch": desk.batch}

    @app.get("/metrics", dependencies=private, response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(watch.registry), media_type=CONTENT_TYPE_LATEST)

    return watch


def _file(name: str) -> Any:
    async def page() -> Response:
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

    return page
