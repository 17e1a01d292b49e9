"""The web application of `fieldmark teach`: the page, questions and answers as JSON, and the images.

Every route but the page's files needs the token, which a page of another origin does not have: it can neither read
images nor label them.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from fieldmark import __version__
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.thumbnails import to_jpeg
from fieldmark.pipeline.teach import EXPORT_SECONDS, Teaching, TrainingJob
from fieldmark.pipeline.teaching.export import DECISIONS_FILE, LABELS_FILE
from fieldmark.pipeline.teaching.journal import Answer, UnwritableError
from fieldmark.pipeline.teaching.questions import Question
from fieldmark.serve.app import JsonResponse, add_error_handlers, add_page_routes, token_checker
from fieldmark.serve.limits import BodyLimiter, RequestError
from fieldmark.serve.middleware import ConcurrencyLimiter, Metrics, ServiceMiddleware, logger

PAGE_FILES = {
    "/": "teach_page/index.html",
    "/base.css": "page/base.css",
    "/teach.css": "teach_page/teach.css",
    "/teach.js": "teach_page/teach.js",
}
MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 10.0
"""In which the body of a request has to arrive."""
MAX_ANSWERS = 200
"""Answers in a request."""
MAX_QUESTIONS = 50
IMAGE_HEADERS = {"Cache-Control": "private, max-age=3600"}
Id = Annotated[int, Field(ge=0)]
Author = Annotated[str, Field(max_length=64)]
Key = Annotated[str, Field(max_length=64)]
"""Of a request; it is repeated with the same one if its response was lost."""
B = TypeVar("B", bound=BaseModel)


class AnswerBody(BaseModel):
    """What one image shows.

    The page keeps answers until they are taken. Numbers are others if images were added meanwhile, paths are not.
    """

    id: Id
    path: Annotated[str, Field(max_length=4096)] | None = None
    action: Literal["label", "exclude", "skip"] = "label"
    label: Annotated[str, Field(max_length=400)] | None = None


class AnswersBody(BaseModel):
    """Answers that are taken back together."""

    author: Author = ""
    key: Key = ""
    answers: Annotated[list[AnswerBody], Field(min_length=1, max_length=MAX_ANSWERS)]
    next: Annotated[int, Field(ge=0, le=MAX_QUESTIONS)] = 1
    after: Annotated[list[Id], Field(max_length=MAX_ANSWERS)] = []


class UndoBody(BaseModel):
    author: Author = ""
    key: Key = ""


class TrainBody(BaseModel):
    budget: Annotated[str, Field(max_length=8)] = "5m"


class _Teacher:
    """The session in the words of the API: images are numbers."""

    def __init__(self, session: Teaching, language: str) -> None:
        self.session, self.language, self.job = session, language, TrainingJob(session)
        self._groups: tuple[object, dict[str, Any]] | None = None

    def name(self, number: int) -> str:
        if number >= len(self.session.names):
            raise RequestError(404, f"there is no image {number}")
        return self.session.names[number]

    def name_of(self, answer: AnswerBody) -> str:
        """The image that a person has seen; an answer from before images were added has another number for it."""
        names = self.session.names
        if answer.path is None or (answer.id < len(names) and _shown(names[answer.id]) == answer.path):
            return self.name(answer.id)
        if answer.path not in self.session.row_of:
            raise RequestError(404, f"the images have changed, there is no {answer.path!r} any more")
        return answer.path

    def question(self, question: Question) -> dict[str, Any]:
        session, values = self.session, asdict(question)
        others = [
            {"id": session.row_of[name], "path": name, "label": session.label_of(name)} for name in question.others
        ]
        return {"id": session.row_of[question.path], **values, "others": others}

    def questions(self, n: int, author: str, held: Sequence[int]) -> list[dict[str, Any]]:
        names = self.session.names
        return [
            self.question(each)
            for each in self.session.next(n, author, [names[row] for row in held if row < len(names)])
        ]

    def progress(self) -> dict[str, Any]:
        return {"metrics": asdict(self.session.metrics), "classes": list(self.session.classes)}

    def state(self) -> dict[str, Any]:
        session = self.session
        done, total = session.reading
        has_decisions = bool(session.images.labels)
        return {
            "lang": self.language,
            "name": session.name,
            "folder": str(session.folder.resolve()),
            **self.progress(),
            "reading": {"done": done, "total": total},
            "training": asdict(self.job.state()),
            "labels_file": str((session.folder / LABELS_FILE).resolve()),
            "decisions_file": str((session.folder / DECISIONS_FILE).resolve()) if has_decisions else None,
        }

    def answer(self, body: AnswersBody) -> dict[str, Any]:
        answers = [Answer(self.name_of(a), a.action, a.label, author=body.author) for a in body.answers]
        written = self.session.record(answers, body.key)
        questions = self.questions(body.next, body.author, body.after)
        return {"numbers": [answer.number for answer in written], "questions": questions, **self.progress()}

    def undo(self, body: UndoBody) -> dict[str, Any]:
        undone = self.session.undo(body.author, body.key)
        if not undone:
            return {"undone": None, "questions": [], **self.progress()}
        ids = [self.session.row_of[answer.path] for answer in undone]
        question = self.question(self.session.question_about(undone[0].path))
        return {"undone": {"ids": ids}, "questions": [question], **self.progress()}

    def similar(self, number: int, n: int) -> dict[str, Any]:
        keys = ("id", "path", "proposal", "confidence")
        found = map(self.question, self.session.similar(self.name(number), n))
        return {"images": [{key: each[key] for key in keys} for each in found]}

    def groups(self, n: int) -> dict[str, Any]:
        """Kept as long as nothing is answered: it takes a second on many images."""
        row_of, state = self.session.row_of, (n, len(self.session.journal.answers), self.session.reading)
        if self._groups is None or self._groups[0] != state:
            clusters = self.session.clusters(n)
            groups = [{"images": [{"id": row_of[name], "path": name} for name in each]} for each in clusters]
            self._groups = state, {"groups": groups}
        return self._groups[1]

    def image(self, number: int, size: int) -> bytes:
        try:
            return to_jpeg(self.session.images.read_bytes(self.name(number)), size)
        except (UnreadableImageError, FieldmarkError, OSError) as error:
            raise RequestError(422, f"the image cannot be read: {error}") from None


def _shown(path: str) -> str:
    """A path as a browser sends it back: undecodable bytes of a name are no characters."""
    return path.encode("utf-8", "replace").decode()


def create_teach_app(session: Teaching, token: str, language: str) -> tuple[ServiceMiddleware, Callable[[], None]]:
    """Create the ASGI application.

    Args:
        session: which learns in the background.
        token: what requests must carry as `Authorization: Bearer TOKEN`.
        language: `en` or `zh`, for a person who has not chosen.

    Returns:
        the application, and what ends its training and its thread.
    """
    app = FastAPI(title="Fieldmark teach", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    teacher, limiter = _Teacher(session, language), ConcurrencyLimiter(64)
    service = ServiceMiddleware(app, Metrics(limiter))
    add_error_handlers(app)
    _add_error_handler(app)
    add_page_routes(app, PAGE_FILES)
    needs_token = [Depends(token_checker(token))]
    # Apart from the threads that answer: neither large images nor a search for groups keep an answer waiting.
    # So many images are decoded at a time as there are cores, which bounds the memory.
    decoders = ThreadPoolExecutor(runtime.available_cpus(), "image")
    searcher = ThreadPoolExecutor(1, "groups")
    _add_read_routes(app, teacher, needs_token)
    _add_slow_routes(app, teacher, decoders, searcher, needs_token)
    _add_write_routes(app, teacher, limiter, needs_token)
    exporter = _Exporter(session)

    def close() -> None:
        for executor in (decoders, searcher):
            executor.shutdown(wait=False, cancel_futures=True)
        teacher.job.stop()
        exporter.close()

    return service, close


def _add_error_handler(app: FastAPI) -> None:
    """A page drops an answer of which the status says that it is wrong (4xx), and sends it again later else."""

    @app.exception_handler(FieldmarkError)
    async def on_error(_: Request, error: FieldmarkError) -> Response:
        return JsonResponse({"error": str(error)}, 503 if isinstance(error, UnwritableError) else 422)

    @app.exception_handler(OSError)
    async def on_system_error(_: Request, error: OSError) -> Response:
        logger.error("the system says: %s", error)
        return JsonResponse({"error": f"{error.filename or 'the session'}: {error.strerror or error}"}, 503)


def _add_read_routes(app: FastAPI, teacher: _Teacher, needs_token: list[Any]) -> None:
    @app.get("/state", dependencies=needs_token)
    def state() -> Response:
        return JsonResponse(teacher.state())

    @app.get("/next", dependencies=needs_token)
    def next_questions(
        n: Annotated[int, Query(ge=1, le=MAX_QUESTIONS)] = 1,
        author: Annotated[str, Query(max_length=64)] = "",
        after: Annotated[str, Query(max_length=2000, pattern=r"^[\d,]*$")] = "",
    ) -> Response:
        held = [int(number) for number in after.split(",") if number]
        return JsonResponse({"questions": teacher.questions(n, author, held)})

    @app.get("/similar", dependencies=needs_token)
    def similar(id: Annotated[int, Query(ge=0)], n: Annotated[int, Query(ge=1, le=MAX_QUESTIONS)] = 24) -> Response:
        return JsonResponse(teacher.similar(id, n))


def _add_slow_routes(
    app: FastAPI, teacher: _Teacher, decoders: Executor, searcher: Executor, needs_token: list[Any]
) -> None:
    @app.get("/groups", dependencies=needs_token)
    async def groups(n: Annotated[int, Query(ge=1, le=MAX_QUESTIONS)] = 12) -> Response:
        return JsonResponse(await asyncio.get_running_loop().run_in_executor(searcher, teacher.groups, n))

    @app.get("/image", dependencies=needs_token)
    async def image(id: Annotated[int, Query(ge=0)], size: Annotated[int, Query(ge=64, le=1600)] = 800) -> Response:
        content = await asyncio.get_running_loop().run_in_executor(decoders, teacher.image, id, size)
        return Response(content, media_type="image/jpeg", headers=IMAGE_HEADERS)


def _add_write_routes(app: FastAPI, teacher: _Teacher, limiter: ConcurrencyLimiter, needs_token: list[Any]) -> None:
    async def respond(request: Request, model: type[B], act: Callable[[B], object]) -> Response:
        body = await _read_json(request, model)  # a slow one holds no place
        with limiter.acquire():
            return JsonResponse(await run_in_threadpool(act, body))

    @app.post("/answers", dependencies=needs_token)
    async def answers(request: Request) -> Response:
        return await respond(request, AnswersBody, teacher.answer)

    @app.post("/undo", dependencies=needs_token)
    async def undo(request: Request) -> Response:
        return await respond(request, UndoBody, teacher.undo)

    @app.post("/train", dependencies=needs_token)
    async def train(request: Request) -> Response:
        return await respond(request, TrainBody, lambda body: asdict(teacher.job.start(body.budget)))

    @app.post("/train/stop", dependencies=needs_token)
    async def stop(request: Request) -> Response:
        return JsonResponse(asdict(await run_in_threadpool(teacher.job.stop)))


async def _read_json(request: Request, model: type[B]) -> B:
    """The body of a request.

    Raises:
        RequestError: 400 cut off, 408 too slow, 413 too large, 415 not JSON, 422 not what is expected.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "send application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await Request(request.scope, BodyLimiter(request.receive, MAX_BODY_BYTES)).body()
    except ClientDisconnect:
        raise RequestError(400, "the request was cut off") from None
    except TimeoutError:
        raise RequestError(408, f"the request did not arrive within {BODY_SECONDS:g} seconds") from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestError(422, f"{place}: {first['msg']}" if place else str(first["msg"])) from None


class _Exporter:
    """Keeps labels.csv up to date, in a thread: the page never waits for it."""

    def __init__(self, session: Teaching) -> None:
        self.session, self.is_closed = session, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        pause = EXPORT_SECONDS
        while not self.is_closed.wait(pause):
            began = time.monotonic()
            try:
                self.session.export_if_changed()
            except OSError:  # as a full disk; the answers themselves are in the journal
                logger.exception("labels.csv cannot be written")
            pause = max(EXPORT_SECONDS, 10 * (time.monotonic() - began))  # 100,000 rows take a second

    def close(self) -> None:
        self.is_closed.set()
        self.thread.join()
