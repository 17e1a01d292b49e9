"""How fast `fieldmark teach` answers: `python benchmarks/teach_speed.py --work W [--images 5000] [--classes 20]`.

A session whose features are made up: unit vectors around a centre for each class, and tiny image files. The server is a
process of its own; one person answers every 0.2 seconds, after --answers answers that were given before. A table is
printed: the time of POST /answers with the next question in its response, of the other requests, of one
`session.learn()`, of the start, and the memory of the server. A slow test of the project checks its bounds on a small
session (tests/serve/test_teach.py), this one is for large ones: --images 100000.
"""

import argparse
import http.client
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.pipeline.teach import open_session
from fieldmark.pipeline.teaching.sources import SessionSettings, open_session_images
from fieldmark.pipeline.teaching.store import READ

PAUSE = 0.2
SPREAD = 0.8
"""Length of the noise beside the centre of a class, of length 1."""
BATCH = 200


def make_images(folder: Path, n: int, n_classes: int) -> None:
    """`n` tiny images; the name of each begins with its class, in whose folder it is but every 19th."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (90, 140, 60)).save(buffer, "JPEG")
    for k in range(n_classes):
        (folder / f"class {k:02}").mkdir(parents=True)
    for k in range(n):
        given = (k + (k % 19 == 7)) % n_classes
        (folder / f"class {given:02}" / f"{k % n_classes:02}-{k:06}.jpg").write_bytes(buffer.getvalue())


def make_session(folder: Path, images: Path, n_classes: int, *, has_labels: bool) -> None:
    """A session on these images, with made-up features."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    SessionSettings(str(images.resolve()), None, ignore_labels=not has_labels).save(folder)
    store, rng = open_session_images(folder).store, np.random.default_rng(0)
    k = store.features.shape[1]
    centres = rng.normal(0, 1 / np.sqrt(k), (n_classes, k))
    labels = np.array([int(Path(name).name[:2]) for name in open_session_images(folder).images.sources])
    for rows in np.array_split(np.arange(len(labels)), 1 + len(labels) // 10_000):
        x = centres[labels[rows]] + SPREAD * rng.normal(0, 1 / np.sqrt(k), (len(rows), k))
        store.features[rows] = x / np.linalg.norm(x, axis=1, keepdims=True)
    store.status[:] = READ


class Client:
    """One connection that is kept."""

    def __init__(self, url: str) -> None:
        address, _, self.token = url.partition("/#token=")
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {content[:200]!r}")
        return json.loads(content) if path[:6] != "/image" else content


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what it returns."""
    began = time.perf_counter()
    result = act()
    return 1e3 * (time.perf_counter() - began), result


def answer_of(image: dict[str, Any]) -> dict[str, Any]:
    """The true answer."""
    return {"id": image["id"], "action": "label", "label": f"class {Path(image['path']).name[:2]}"}


def memory(process: subprocess.Popen[bytes], name: str = "VmRSS") -> float:
    """GiB; of Linux."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def row(name: str, times: list[float]) -> str:
    p95 = sorted(times)[int(0.95 * (len(times) - 1) + 0.5)]
    return f"| {name} | {statistics.median(times):.0f} ms | {p95:.0f} ms | {max(times):.0f} ms |"


def measure(url: str, names: list[str], n_before: int, n_posts: int) -> list[str]:
    """The rows of the table, with a running server."""
    ask, author = Client(url), {"author": "one"}
    for begin in range(0, n_before, BATCH):
        # Every seventh image, so that some are test images, and not the first ones of the queue.
        rows = [(7 * k) % len(names) for k in range(begin, min(begin + BATCH, n_before))]
        answers = [answer_of({"id": k, "path": names[k]}) for k in rows]
        ask("POST", "/answers", {**author, "answers": answers, "next": 0})
    time.sleep(2)
    question = ask("GET", "/next?n=1&author=one")["questions"][0]
    posts, others = list[float](), dict[str, list[float]]()
    for _ in range(n_posts):
        body = {**author, "answers": [answer_of(question)], "next": 1}
        took, reply = timed(lambda body=body: ask("POST", "/answers", body))
        posts.append(took)
        question = reply["questions"][0]
        time.sleep(PAUSE)
    paths = ("/state", "/next?n=3&author=two", f"/similar?id={question['id']}", f"/image?id={question['id']}")
    for path in (*paths, "/groups"):
        others[path.partition("?")[0]] = [timed(lambda path=path: ask("GET", path))[0] for _ in range(10)]
    undone = [timed(lambda: ask("POST", "/undo", author))[0] for _ in range(10)]
    rows = [row("POST /answers", posts), row("POST /undo", undone)]
    return rows + [row(f"GET {path}", times) for path, times in others.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for images and session; kept")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--labelled", action="store_true", help="the images have labels, which are checked")
    parser.add_argument("--answers", type=int, default=1000, help="given before")
    parser.add_argument("--posts", type=int, default=100, help="that are measured")
    options = parser.parse_args()
    images = options.work / f"images-{options.images}-{options.classes}"
    if not images.exists():
        make_images(images, options.images, options.classes)
    folder = options.work / f"session-{options.images}-{options.classes}{'-labelled' * options.labelled}"
    make_session(folder, images, options.classes, has_labels=options.labelled)
    words = [str(images), "--out", str(folder), "--port", "0", "--json"]
    words += [] if options.labelled else ["--ignore-labels"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "fieldmark.cli", "teach", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        url = json.loads(b"".join(process.stdout.readline() for _ in range(4)))["url"]
        try:
            Client(url)("GET", "/state")
            started = time.perf_counter() - began
            names = sorted(str(file.relative_to(images)) for file in images.glob("*/*"))
            rows = measure(url, names, options.answers, options.posts)
            now, peak = memory(process), memory(process, "VmHWM")
        finally:
            process.terminate()
    with open_session(images, out=folder, ignore_labels=not options.labelled) as session:
        learned = [timed(session.learn)[0] for _ in range(7)]
        n_answers = len(session.journal.answers)
    given = ", all with labels" if options.labelled else ""
    print(f"{options.images:,} images, {options.classes} classes{given}, {n_answers:,} answers\n")
    print("| | median | 95 % | slowest |\n| --- | ---: | ---: | ---: |")
    print("\n".join([*rows, row("session.learn()", learned)]))
    print(f"\nStart: {started:.1f} s. Memory of the server: {now:.2f} GiB, at most {peak:.2f} GiB.")


if __name__ == "__main__":
    main()
