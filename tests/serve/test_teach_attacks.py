"""Whatever is sent to `fieldmark teach`: no error of its own, nobody else waits, nothing is written but its folder."""

import contextlib
import hashlib
import json
import shutil
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from served import Served, teaching
from teach_clients import Client, draw_images, journal, prepare

from fieldmark.core.progress import Reporter
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline.teach import Teaching
from fieldmark.serve.teach_app import PAGE_FILES, create_teach_app

N = 30
TRUNCATED, BOMB, LONG, TEXT = "truncated.jpg", "bomb.png", "long.png", "x-text.jpg"
MUCH = 400 * 2**20
"""Bytes by which the server may grow."""


def png(width: int, height: int) -> bytes:
    """A picture of one colour, 1 bit a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    squeeze, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = draw_images(tmp_path_factory.mktemp("attacked") / "images", N)
    (folder / TRUNCATED).write_bytes((folder / "disc-00.jpg").read_bytes()[:1500])
    (folder / BOMB).write_bytes(png(30_000, 30_000))
    (folder / LONG).write_bytes(png(20_000, 1))
    (folder / TEXT).write_text("<script>alert(1)</script>")
    return folder


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(images, tmp_path_factory.mktemp("attacked") / "session")


@pytest.fixture(scope="module")
def server(images: Path, prepared: Path) -> Iterator[Served]:
    with teaching(images, prepared, "--ignore-labels") as served:
        yield served


@pytest.fixture(scope="module")
def names(images: Path) -> list[str]:
    """In the order of the ids."""
    return sorted(file.name for file in images.iterdir())


def files_around(images: Path, session: Path) -> dict[str, str]:
    """The images, and all files beside them and beside the session, with what they hold."""
    found = [*images.parent.rglob("*"), *session.parent.rglob("*")]
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in found
        if file.is_file() and session not in file.parents
    }


@pytest.fixture(autouse=True)
def unharmed(server: Served, images: Path, prepared: Path) -> Iterator[None]:
    """After each of them the server answers, has had no error, and has written into its folder alone."""
    memory, files, entries = server.memory(), files_around(images, prepared), {each.name for each in prepared.iterdir()}
    yield
    assert server.process.poll() is None
    Client(server.url).state()
    assert not [line for line in server.lines() if line.get("status", 200) >= 500 or "fault" in line]
    assert server.memory() < memory + MUCH
    assert files_around(images, prepared) == files
    new = {each.name for each in prepared.iterdir()} - entries
    assert new <= {"labels.csv", "answers.jsonl", "answers.jsonl.lock"}


def post(server: Served, path: str, content: bytes, **headers: str) -> httpx.Response:
    more = {"Authorization": "Bearer secret", "Content-Type": "application/json", **headers}
    sent = {name: value for name, value in more.items() if value}
    return httpx.post(server.url + path, content=content, headers=sent, timeout=30)


def good(server: Served, **more: Any) -> bytes:
    return json.dumps({"author": "a", "answers": [{"id": 1, "action": "label", "label": "x"}], **more}).encode()


# ---- who may ask


@pytest.fixture(scope="module")
def routes(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(method, path) of all routes that need the token."""
    session = Teaching(shutil.copytree(prepared, tmp_path_factory.mktemp("routes") / "copy"), Reporter())
    application, close = create_teach_app(session, "secret", "en")
    close()
    session.close()
    found = list[tuple[str, str]]()
    for route in application.app.routes:  # type: ignore[attr-defined]
        found += [(method, route.path) for method in sorted(route.methods) if route.path not in PAGE_FILES]
    return found


def test_every_route_needs_the_token(server: Served, prepared: Path, routes: list[tuple[str, str]]):
    assert {path for _, path in routes} >= {"/state", "/next", "/answers", "/undo", "/image", "/train", "/train/stop"}
    before = len(journal(prepared)) if (prepared / "answers.jsonl").exists() else 0
    attempts: list[dict[str, Any]] = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic c2VjcmV0"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer secret secret"},
        {"Authorization": b"Bearer s\xe9cret"},
        {"Cookie": "token=secret", "X-Token": "secret"},
    ]
    for method, path in routes:
        for headers in attempts:
            kind, content = {"Content-Type": "application/json"}, good(server) if method == "POST" else None
            url = f"{server.url}{path}?token=secret&id=1"
            response = httpx.request(
                method, url, content=content, headers=headers if content is None else headers | kind
            )
            assert response.status_code == 401, (method, path, headers)
            assert response.headers["www-authenticate"] == "Bearer"
    for file in PAGE_FILES:
        assert httpx.get(server.url + file).status_code == 200
    for path in ("/docs", "/openapi.json", "/redoc", "/metrics", "/teach_page/teach.js", "/../session.json"):
        assert httpx.get(server.url + path).status_code == 404
    assert (len(journal(prepared)) if (prepared / "answers.jsonl").exists() else 0) == before


def test_pages_of_other_sites_cannot_label(server: Served, prepared: Path):
    """What a browser sends without asking first: a form, or text; it has no token, and this server has no cookies."""
    elsewhere = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
    for path in ("/answers", "/undo", "/train", "/train/stop"):
        for kind in kinds:
            assert (
                post(server, path, good(server), **elsewhere, **{"Authorization": "", "Content-Type": kind}).status_code
                == 401
            )
            if path != "/train/stop":
                with_token = post(server, path, good(server), **elsewhere, **{"Content-Type": kind})
                assert with_token.status_code == 415 and "application/json" in with_token.json()["error"]
        asked = {
            **elsewhere,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        before = httpx.options(server.url + path, headers=asked)
        assert before.status_code == 405
        assert not [name for name in before.headers if name.startswith("access-control")]
    for path in ("/", "/teach.js", "/state", "/image?id=1"):
        headers = httpx.get(server.url + path, headers={**elsewhere, "Authorization": "Bearer secret"}).headers
        assert not [name for name in headers if name.startswith("access-control")] and "set-cookie" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin" and headers["x-frame-options"] == "DENY"
        assert (
            "default-src 'none'" in headers["content-security-policy"] and headers["referrer-policy"] == "no-referrer"
        )
    assert not (prepared / "answers.jsonl").exists() or "evil" not in (prepared / "answers.jsonl").read_text()


# ---- bodies


def one(**values: Any) -> dict[str, Any]:
    return {"answers": [{"id": 1, "action": "label", "label": "x", **values}]}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b"{}\0", b"\xef\xbb\xbf{}", b"{}", b'{"answers": []}'),
        *(b"[" * 100_000, b'{"answers":' * 50_000, b'{"answers": [' + b"[" * 100 + b"]" * 100 + b"]}"),
        *(json.dumps(one(id=it)).encode() for it in (-1, -(2**63), 1.5, "x", None, [1], {"a": 1}, float("nan"))),
        *(b'{"answers": [{"id": %s, "label": "x"}]}' % it for it in (b"Infinity", b"-Infinity", b"1e400", b"9" * 5000)),
        *(json.dumps(one(action=it)).encode() for it in ("undo", "LABEL", "", None, 1, "delete")),
        *(json.dumps(one(label=it)).encode() for it in ("", "  ", "\u200b\u202e", "a\0b", "x" * 101, "x" * 401, 1, [])),
        *(json.dumps(one(label=it)).encode() for it in ("a\u202eb", "\u2066x\u2069", "\ufeffx", "\x1b[31m", "a\x7fb")),
        b'{"answers": [{"id": 1, "label": "\\ud800"}]}',
        b'{"answers": [{"id": 1, "label": "\\udc80\\udcff"}]}',
        *(json.dumps({**one(), name: "k" * 65}).encode() for name in ("author", "key")),
        *(json.dumps({**one(), name: it}).encode() for name in ("author", "key") for it in (1, None, [], {})),
        *(json.dumps({**one(), "next": it}).encode() for it in (-1, 51, 10**30, "many", None)),
        *(json.dumps({**one(), "after": it}).encode() for it in ([-1], [1.5], "1,2", [1] * 201, {"a": 1}, [[1]])),
        json.dumps({"answers": [{"id": 1, "action": "exclude"}] * 10_000}).encode(),
        json.dumps({"answers": [{"id": 1, "action": "exclude"}] * 201}).encode(),
        json.dumps({"answers": [{"id": 2, "action": "exclude"}, {"id": 1}]}).encode(),
        json.dumps(one(path="../../etc/passwd" * 300)).encode(),
    ],
    ids=lambda body: hashlib.sha256(body).hexdigest()[:6],
)
def test_bodies_that_are_refused(server: Served, prepared: Path, body: bytes):
    file = prepared / "answers.jsonl"
    before = file.read_bytes() if file.exists() else b""
    response = post(server, "/answers", body)
    assert response.status_code == 422, response.text
    assert set(response.json()) == {"error"} and len(response.text) < 500
    assert (file.read_bytes() if file.exists() else b"") == before


@pytest.mark.parametrize("id", [N + 4, 10**6, 2**31, 2**63, 2**64, 10**30, 10**1000])
def test_ids_beyond_the_end(server: Served, prepared: Path, id: int):
    client = Client(server.url, "a")
    for path in (f"/image?id={id}", f"/similar?id={id}"):
        assert client.send("GET", path).status_code in (404, 422)
    assert post(server, "/answers", b'{"answers": [{"id": %d, "label": "x"}]}' % id).status_code in (404, 422)
    assert client.send("GET", f"/next?after={id}").status_code == 200
    assert post(server, "/answers", b'{"answers": [{"id": 3, "label": "x"}], "after": [%d]}' % id).status_code == 200
    assert client.send("GET", f"/next?n=2&after={'1,' * 1000}").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        *("/next?n=0", "/next?n=51", "/next?n=x", "/next?n=" + "9" * 5000, "/next?after=-1", "/next?after=a"),
        *("/next?after=1;2", "/next?after=" + "1," * 1001, "/next?author=" + "a" * 65, "/next?after=%00", "/similar"),
        *("/similar?id=-1", "/similar?id=1.5", "/similar?id=NaN", "/similar?id=1&n=0", "/similar?id=1&n=51"),
        *("/groups?n=0", "/groups?n=51", "/image", "/image?id=-1", "/image?id=..%2F..%2Fetc%2Fpasswd", "/image?id=1e3"),
        *("/image?id=1&size=0", "/image?id=1&size=100000", "/image?id=1&size=-64", "/image?id=" + "9" * 6000),
    ],
)
def test_queries_that_are_refused(server: Served, query: str):
    response = Client(server.url).send("GET", query)
    assert response.status_code == 422 and set(response.json()) == {"error"} and len(response.text) < 500


def test_numbers_of_other_scripts(server: Served):
    assert Client(server.url).send("GET", "/next", params={"after": "٣,३"}).status_code in (200, 422)


@pytest.mark.parametrize(
    "budget", ["", "0m", "5", "-5m", "5m; rm -rf /", "--out=/tmp/x", "1e9h", "99999h", "５m", "5m\n"]
)
def test_budgets_that_are_none(server: Served, budget: str):
    assert post(server, "/train", json.dumps({"budget": budget}).encode()).status_code == 422
    assert Client(server.url).state()["training"]["state"] == "none"


def test_more_than_a_megabyte(server: Served):
    long = good(server, key="k")[:-1] + b" " * (1 << 20) + b"}"
    response = post(server, "/answers", long)
    assert response.status_code == 413 and "1 MiB" in response.json()["error"]

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(2**20)

    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    with contextlib.suppress(httpx.TransportError):  # the answer may be lost where the client goes on sending
        assert httpx.post(f"{server.url}/answers", content=endless(), headers=headers).status_code == 413


LABELS = [
    *("=cmd()", "+1", "-1", "@x", '=HYPERLINK("http://x")', "a,b", 'say "hi"', "'", ";", "../../etc", "a/b", "..", "."),
    *(
        "con",
        "名字",
        "é",
        "e\u0301",
        "x" * 100,
        "<script>alert(1)</script>",
        "{{7*7}}",
        "%s%n",
        "null",
        "NaN",
        "0",
        "#",
    ),
]


def test_labels_are_what_they_are(images: Path, prepared: Path, server: Served, tmp_path: Path, names: list[str]):
    """Formulas and paths are text: labels.csv is read as what was typed, and the state says the same."""
    client = Client(server.url, "labels")
    answers = [{"id": k, "action": "label", "label": label} for k, label in enumerate(LABELS)]
    assert len(answers) <= N
    assert set(LABELS) <= set(client.answer(*answers)["classes"])
    assert set(LABELS) <= set(client.state()["classes"])
    time.sleep(2.5)
    found = {Path(photo.path).name: photo.label for photo in read_catalog(prepared / "labels.csv").photos}
    assert [found[names[k]] for k in range(len(LABELS))] == LABELS
    spaced = client.answer({"id": 0, "label": " a \t b\n\r c "}, {"id": 1, "label": "=1\u00a0+2"})
    assert {"a b c", "=1 +2"} <= set(spaced["classes"])
    assert client.undo()["undone"]["ids"] == [0, 1] and len(client.undo()["undone"]["ids"]) == len(LABELS)


def test_authors_and_keys_are_any_text(server: Served, prepared: Path):
    for text in ("", "\0", "../..", "\n{}\n", "\u202e", '"},{"', "长" * 64):
        client, before = (
            Client(server.url, text),
            len(journal(prepared)) if (prepared / "answers.jsonl").exists() else 0,
        )
        client.answer({"id": 4, "label": "x"}, key=text)
        assert [line.get("author", "") for line in journal(prepared)[before:]] == [text]
        assert client.undo(key=f"{text[:-1]}u")["undone"]["ids"] == [4]


# ---- images


def test_images_that_are_none(server: Served, names: list[str]):
    client = Client(server.url)
    for name in (BOMB, TEXT):
        began = time.monotonic()
        response = client.send("GET", f"/image?id={names.index(name)}&size=1600")
        assert response.status_code == 422 and time.monotonic() - began < 5
        assert "cannot be read" in response.json()["error"] and str(Path.home()) not in response.text
    assert client.send("GET", f"/image?id={names.index(TRUNCATED)}").status_code in (200, 422)
    assert client.send("GET", f"/image?id={names.index(LONG)}&size=64").status_code in (200, 422)
    asked = {one["id"] for one in client.next(50)}
    assert names.index(TEXT) not in asked and names.index(BOMB) not in asked


def test_an_image_that_has_gone_or_became_something_else(images: Path, server: Served, names: list[str]):
    client, file = Client(server.url), images / "disc-00.jpg"
    before, id = file.read_bytes(), names.index("disc-00.jpg")
    try:
        file.unlink()
        assert "no such file" in client.ask("GET", f"/image?id={id}", 422)["error"]
        file.mkdir()
        assert "error" in client.ask("GET", f"/image?id={id}", 422)
        file.rmdir()
        file.symlink_to("/dev/zero")
        assert "error" in client.ask("GET", f"/image?id={id}", 422)
    finally:
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(before)


# ---- many, and slow ones


def raw(server: Served, content: bytes, length: int) -> socket.socket:
    head = f"POST /answers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: {length}\r\n"
    opened = socket.create_connection(server.address, timeout=60)
    opened.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
    return opened


def test_slow_bodies_keep_nobody_waiting(server: Served):
    """A hundred that never end, more than there are places; and two hundred connections that say nothing."""
    slow = [raw(server, b'{"answers": [', 1000) for _ in range(100)]
    idle = [socket.create_connection(server.address) for _ in range(200)]
    client = Client(server.url, "slow")
    try:
        for _ in range(5):
            began = time.monotonic()
            client.answer({"id": 5, "label": "x"}, next=1)
            assert client.undo()["undone"] and time.monotonic() - began < 5
        slow[0].settimeout(40)
        assert slow[0].recv(100).startswith(b"HTTP/1.1 408")
    finally:
        for one_ in (*slow, *idle):
            one_.close()


def test_half_a_body(server: Served, prepared: Path):
    before = len(journal(prepared)) if (prepared / "answers.jsonl").exists() else 0
    whole = good(server)
    for length, content in ((len(whole) + 100, whole), (len(whole), whole[:10])):
        opened = raw(server, content, length)
        opened.shutdown(socket.SHUT_WR)
        opened.recv(1000)
        opened.close()
    assert (len(journal(prepared)) if (prepared / "answers.jsonl").exists() else 0) == before


def test_fifty_clients_at_once(server: Served, prepared: Path):
    """For five seconds: all of them are answered, what was acknowledged is recorded, and once."""
    before, statuses, written = len(journal(prepared)), Counter[int](), list[tuple[int, str]]()
    end = time.monotonic() + 5

    def work(k: int) -> None:
        client = Client(server.url, f"client {k}")
        paths = ("/state", f"/image?id={k % N}", f"/similar?id={k % N}", "/groups", f"/next?n=5&author={client.author}")
        while time.monotonic() < end:
            body = {"author": client.author, "answers": [{"id": k % N, "label": f"{k}"}], "next": 1, "after": []}
            response = client.send("POST", "/answers", json=body)
            statuses[response.status_code] += 1
            if response.status_code == 200:
                written.append((response.json()["numbers"][0], client.author))
            statuses[client.send("GET", paths[k % len(paths)]).status_code] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429} and statuses[200] > 100
    lines = journal(prepared)
    assert len(written) == len(dict(written)) == len(lines) - before
    assert all(lines[number]["author"] == author for number, author in written)


def test_images_do_not_keep_answers_waiting(images: Path, server: Served, names: list[str]):
    """Two hundred requests for large images at once, and an answer among them."""
    headers, client = {"Authorization": "Bearer secret"}, Client(server.url, "quick")
    path = f"{server.url}/image?id={names.index(LONG)}&size=1600"
    threads = [threading.Thread(target=lambda: httpx.get(path, headers=headers, timeout=60)) for _ in range(100)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    client.answer({"id": 6, "label": "x"})
    assert time.monotonic() - began < 5
    for thread in threads:
        thread.join()
    assert client.undo()["undone"]
