"""The HTTP API of `fieldmark teach` without a classifier: answers stay in memory, images are of one colour.

`python tests/fake_teach.py PHOTOS` shows the page with the photos of a folder of classes.
"""

import asyncio
import hashlib
import io
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from fieldmark.serve import teach_app
from fieldmark.serve.middleware import SECURITY_HEADERS

PAGE_FOLDER = Path(teach_app.__file__).parent
UNKNOWN = {"share": None, "low": None, "high": None, "n": 0}
NO_TRAINING = {"state": "none", "line": "", "seconds": 0.0, "folder": None, "report": None, "accuracy": None}


class FakeTeach:
    """`requests` lists what was asked: method, path, body. `failures` are the statuses of the next answers to POSTs.

    The questions about the ids `again` come first, whatever label they have; `changes` are what is special about some.
    """

    def __init__(
        self, paths: Sequence[str], classes: Sequence[str] = (), token: str = "secret", lang: str = "en"
    ) -> None:
        self.paths, self.given, self.token, self.lang = list(paths), list(classes), token, lang
        self.classes = list(classes)
        self.truth = [Path(path).parent.name for path in paths]
        self.labels: dict[int, tuple[str, str | None]] = {}
        self.posts: list[tuple[str, list[int]]] = []
        self.replies: dict[str, Any] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.failures: list[int] = []
        self.again: list[int] = []
        self.changes: dict[int, dict[str, Any]] = {}
        self.metrics: dict[str, Any] = {}
        self.training = dict(NO_TRAINING)
        self.reading = {"done": len(paths), "total": len(paths)}
        self.folder: Path | None = None
        self.delay = 0.0

    # ---- what the answers hold
    def question(self, id: int) -> dict[str, Any]:
        proposal = self.truth[id] if self.truth[id] in self.classes else next(iter(self.classes), None)
        top = [[name, 0.87 if name == proposal else 0.13 / 2**n] for n, name in enumerate(self.classes)]
        question = {"id": id, "path": self.paths[id], "reason": "random", "purpose": "train", "proposal": proposal}
        question |= {"confidence": 0.87 if proposal else None, "label": None, "others": []}
        question["top"] = sorted(top, key=lambda row: -row[1])[:5]
        return question | self.changes.get(id, {})

    def open_ids(self, without: Sequence[int] = ()) -> list[int]:
        return [id for id in range(len(self.paths)) if id not in self.labels and id not in without]

    def next_questions(self, n: int, after: Sequence[int]) -> list[dict[str, Any]]:
        again = [id for id in self.again if id not in after]
        return [self.question(id) for id in [*again, *self.open_ids(after)][:n]]

    def all_metrics(self) -> dict[str, Any]:
        actions = [action for action, _ in self.labels.values()]
        counts = {name: sum(label == name for _, label in self.labels.values()) for name in self.classes}
        rows = [{"name": name, "labelled": n, "recall": UNKNOWN, "is_short": n < 2} for name, n in counts.items()]
        metrics = {"labelled": actions.count("label"), "unlabelled": len(self.open_ids())}
        metrics |= {"excluded": actions.count("exclude"), "skipped": actions.count("skip"), "suspicious": 0}
        metrics |= {"accuracy": UNKNOWN, "coverage": None, "selective_accuracy": UNKNOWN, "expected_gain": None}
        return metrics | {"next_labels": 100, "classes": rows, "history": []} | self.metrics

    def state(self) -> dict[str, Any]:
        state = {"lang": self.lang, "name": "photos", "folder": "/data/photos-teach", "classes": self.classes}
        state |= {"metrics": self.all_metrics(), "reading": self.reading, "training": self.training}
        return state | {"labels_file": "/data/photos-teach/labels.csv", "decisions_file": None}

    # ---- what the requests do
    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        for answer in body["answers"]:
            label = answer.get("label")
            self.labels[answer["id"]] = (answer["action"], label)
            if label is not None and label not in self.classes:
                self.classes.append(label)
        self.posts.append((body["author"], [answer["id"] for answer in body["answers"]]))
        numbers = [len(self.posts)] * len(body["answers"])
        return {"numbers": numbers, "questions": self.next_questions(body["next"], body["after"])}

    def undo(self, author: str) -> dict[str, Any]:
        mine = [number for number, (by, _) in enumerate(self.posts) if by == author]
        if not mine:
            return {"undone": None, "questions": []}
        _, ids = self.posts.pop(mine[-1])
        for id in ids:
            del self.labels[id]
        used = [label for _, label in self.labels.values()]
        self.classes = self.given + [name for name in self.classes if name in used and name not in self.given]
        return {"undone": {"ids": ids}, "questions": [self.question(ids[0])]}

    def image(self, id: int, size: int) -> bytes:
        file = io.BytesIO()
        if self.folder:
            image = ImageOps.exif_transpose(Image.open(self.folder / self.paths[id])).convert("RGB")
            image.thumbnail((size, size))
        else:
            image = Image.new("RGB", (64, 48), f"hsl({37 * id % 360}, 60%, 50%)")
        image.save(file, "JPEG", quality=88)
        return file.getvalue()

    # ---- HTTP
    async def respond(self, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "missing or wrong token"}, 401)
        body = await request.json() if request.method == "POST" else dict(request.query_params)
        path = request.url.path
        if path not in ("/image", "/state"):
            self.requests.append((request.method, path, body))
        await asyncio.sleep(self.delay)
        if request.method == "POST" and self.failures and (status := self.failures.pop(0)) != 200:
            return JSONResponse({"error": "out of order"}, status)
        if path == "/image":
            return Response(self.image(int(body["id"]), int(body["size"])), media_type="image/jpeg")
        return JSONResponse(self.reply(path, body))

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/state":
            return self.state()
        if path == "/next":
            after = [int(id) for id in body.get("after", "").split(",") if id]
            return {"questions": self.next_questions(int(body["n"]), after)}
        if path == "/similar":
            ids = self.open_ids([int(body["id"])])
            ids = [id for id in ids if self.truth[id] == self.truth[int(body["id"])]] if self.folder else ids
            keys = ("id", "path", "proposal", "confidence")
            questions = [self.question(id) for id in ids[: int(body["n"])]]
            return {"images": [{key: question[key] for key in keys} for question in questions]}
        if path == "/groups":
            found: dict[str, list[Any]] = {}
            for id in self.open_ids():
                found.setdefault(self.truth[id], []).append({"id": id, "path": self.paths[id]})
            return {"groups": [{"images": images[:24]} for images in found.values()][: int(body["n"])]}
        if path == "/train":
            self.training |= {"state": "running", "line": "epoch 1 of 8: loss 0.52", "seconds": 12.0}
        if path == "/train/stop":
            self.training = dict(NO_TRAINING)
        if path.startswith("/train"):
            return self.training
        if body["key"] not in self.replies:
            self.replies[body["key"]] = self.answer(body) if path == "/answers" else self.undo(body["author"])
        return self.replies[body["key"]] | {"metrics": self.all_metrics(), "classes": self.classes}

    def app(self) -> Starlette:
        def page(name: str) -> Any:
            return lambda request: FileResponse(PAGE_FOLDER / name, headers=SECURITY_HEADERS)

        files = [Route(path, page(name)) for path, name in teach_app.PAGE_FILES.items()]
        reads = [Route(f"/{name}", self.respond) for name in ("state", "next", "similar", "groups", "image")]
        writes = ("answers", "undo", "train", "train/stop")
        return Starlette(routes=files + reads + [Route(f"/{name}", self.respond, methods=["POST"]) for name in writes])


@contextmanager
def running(fake: FakeTeach, port: int = 0) -> Iterator[str]:
    """The URL of a server in a thread, ended behind the block."""
    server = uvicorn.Server(uvicorn.Config(fake.app(), port=port, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def with_photos(folder: Path, lang: str = "en") -> FakeTeach:
    """With the photos of a folder of classes, all kinds of reasons, and what is known after some hundred labels."""
    paths = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.jp*g"))
    random.Random(3).shuffle(paths)
    classes = sorted({Path(path).parent.name for path in paths})
    fake = FakeTeach(paths, classes, lang=lang)
    fake.folder = folder
    reasons = ["uncertain", "suspicious", "duplicates", "new", "random", "uncertain"]
    for id in range(len(paths)):
        share = int(hashlib.sha256(paths[id].encode()).hexdigest()[:4], 16) / 2**16
        other = classes[(classes.index(fake.truth[id]) + 1) % len(classes)]
        best, reason = 0.38 + 0.6 * share, reasons[id % len(reasons)]
        top = [[fake.truth[id], best], [other, 0.7 * (1 - best)]]
        change: dict[str, Any] = {"reason": reason, "confidence": best, "top": top}
        change["label"] = other if reason in ("suspicious", "duplicates") else None
        if reason == "duplicates":
            near = [(id + step) % len(paths) for step in (7, 13)]
            change["others"] = [{"id": n, "path": paths[n], "label": fake.truth[n]} for n in near]
        fake.changes[id] = change
    estimate = {"share": 0.87, "low": 0.81, "high": 0.91, "n": 104}
    history = [20, 40, 60, 90, 120, 160, 200, 260, 320, 390]
    recalls = (0.93, 0.88, 0.74, 0.91, 0.85, 0.52)
    fake.metrics = {
        "labelled": 390,
        "unlabelled": 2126,
        "excluded": 11,
        "skipped": 4,
        "suspicious": 3,
        "accuracy": estimate,
        "coverage": 0.72,
        "expected_gain": 0.021,
        "next_labels": 100,
        "selective_accuracy": estimate | {"share": 0.96},
        "history": [{"labelled": n, "accuracy": 0.9 - 0.55 * 0.99**n} for n in history],
        "classes": [
            {"name": name, "labelled": 96 - 15 * n, "recall": estimate | {"share": recalls[n % 6]}, "is_short": n == 5}
            for n, name in enumerate(classes)
        ],
    }
    return fake


if __name__ == "__main__":
    with running(with_photos(Path(sys.argv[1])), 8001) as url:
        print(f"{url}/#token=secret", flush=True)
        threading.Event().wait()
