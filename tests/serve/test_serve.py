"""What a server says is what `predict` says, each limit has a status, and its end loses nothing that it took."""

import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from served import running

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.inference.classifier import CROPS_WARNING
from fieldmark.serve.server import bind_socket


def photos(folder: Path, n: int = 3) -> list[Path]:
    return sorted(folder.glob("*/*.jpg"))[:: 48 // n][:n]


def form(*files: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("photo", (file.name, file.read_bytes())) for file in files]


def test_same_photo_same_answer(served: str, small_run: Path, small_photos: Path):
    some, classifier = photos(small_photos, 12), fieldmark.load(small_run)
    predictions = zip(some, classifier.predict(some), strict=True)
    expected = [replace(prediction, path=file.name).to_dict() for file, prediction in predictions]
    together = httpx.post(f"{served}/predict", files=form(*some)).json()
    alone = [httpx.post(f"{served}/predict", files=form(file)).json()[0] for file in some]
    assert together == alone == expected  # to the bit: JSON keeps every digit of a float


def test_a_bad_photo_is_a_row(served: str, small_photos: Path):
    (good,) = photos(small_photos, 1)
    sent = [*form(good), ("photo", ("notes.txt", b"not a photo")), *form(good)]
    found = httpx.post(f"{served}/predict", files=sent)
    assert found.status_code == 200 and [row["path"] for row in found.json()] == [good.name, "notes.txt", good.name]
    assert found.json()[1] == {"path": "notes.txt", "error": "not a photo (text?)"}
    alone = httpx.post(f"{served}/predict", files=sent[1:2])
    assert alone.status_code == 422 and alone.json() == found.json()[1:2]


def test_evidence_is_a_layer_over_the_photo(served: str, small_photos: Path):
    (file,) = photos(small_photos, 1)
    (answer,) = httpx.post(f"{served}/predict?evidence=true", files=form(file)).json()
    assert answer["evidence"].startswith("data:image/png;base64,")
    assert "evidence" not in httpx.post(f"{served}/predict", files=form(file)).json()[0]


def test_the_card(served: str, small_run: Path):
    info = json.loads((small_run / "bundle" / "bundle.json").read_text())
    card = httpx.get(f"{served}/card").json()
    for name in ("classes", "preprocessing", "temperature", "threshold", "fingerprint", "versions"):
        assert card[name] == info[name]
    assert card["model"] == info["model"]
    assert card["text"] == (small_run / "card.md").read_text()
    assert card["limits"] == {"bytes": 32 * 2**20, "photos": 32, "pixels": 50_000_000}
    assert card["network"] == "efficientnet_lite0" and card["trained_on_crops"] is False


def test_a_model_trained_on_crops_warns_once_and_its_card_says_so(crops_model: Path, small_photos: Path):
    with running(crops_model) as server:
        for file in photos(small_photos, 2):
            httpx.post(f"{server.url}/predict", files=form(file))
        assert httpx.get(f"{server.url}/card").json()["trained_on_crops"] is True
        warnings = [line["event"] for line in server.lines() if line["level"] == "WARNING"]
    assert warnings == [CROPS_WARNING]


def test_health_and_metrics(served: str, small_photos: Path):
    assert httpx.get(f"{served}/health").json() == {"status": "ok"}
    assert httpx.get(f"{served}/ready").json()["status"] == "ready"

    def count() -> float:
        found = re.search(r'fieldmark_photos_total\{answer="known"\} ([\d.]+)', httpx.get(f"{served}/metrics").text)
        return float(found[1]) if found else 0.0

    before = count()
    answers = httpx.post(f"{served}/predict", files=form(*photos(small_photos, 6))).json()
    assert count() == before + sum(answer["known"] for answer in answers)


def test_every_answer_has_the_headers(served: str):
    for path in ("/", "/page.js", "/card", "/none", "/predict"):
        headers = httpx.get(f"{served}{path}").headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers and "server" not in headers
    asked = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    crossing = httpx.options(f"{served}/predict", headers=asked)
    assert crossing.status_code == 405 and "access-control-allow-origin" not in crossing.headers


def test_pages_elsewhere_ask_only_where_they_may(serving: Callable[..., Any], small_photos: Path):
    sent = form(*photos(small_photos, 1))
    with serving("--origin", "https://shop.example") as server:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, allowed in (("https://shop.example", "https://shop.example"), ("https://else.example", None)):
            given = {"Origin": origin}
            before = httpx.options(f"{server.url}/predict", headers=given | asked)
            answer = httpx.post(f"{server.url}/predict", files=sent, headers=given)
            assert before.headers.get("access-control-allow-origin") == allowed
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_openapi_says_how_to_ask(served: str):
    told = httpx.get(f"{served}/openapi.json").json()
    asked = told["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert asked["required"] == ["photo"] and asked["properties"]["photo"]["items"]["format"] == "binary"


def test_a_token(served_with_token: str, small_photos: Path):
    url, sent = served_with_token, form(*photos(small_photos, 1))
    for path in ("/", "/page.js", "/health", "/ready"):
        assert httpx.get(url + path).status_code == 200
    for word in (None, "Bearer wrong", "Basic let me in", "Bearer", "Bearer l\u00e9t"):
        given: Any = {"Authorization": word.encode()} if word else {}
        posted = httpx.post(f"{url}/predict", files=sent, headers=given)
        for refused in (posted, httpx.get(f"{url}/card", headers=given), httpx.get(f"{url}/metrics", headers=given)):
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert "token" in refused.json()["error"]
    given = {"Authorization": "Bearer let me in"}
    assert httpx.post(f"{url}/predict", files=sent, headers=given).status_code == 200
    assert httpx.get(f"{url}/metrics", headers=given).status_code == 200


def test_the_log_tells_no_names(serving: Callable[..., Any], small_photos: Path):
    with serving() as server:
        file = ("secret-name\n.jpg", photos(small_photos, 1)[0].read_bytes())
        httpx.post(f"{server.url}/predict", files=[("photo", file)])
        httpx.get(f"{server.url}/secret-name?secret-name")
        time.sleep(0.2)
        lines = [line for line in server.lines() if line["event"] == "request"]
    assert [(line["route"], line["status"]) for line in lines] == [("/predict", 200), ("other", 404)]
    assert lines[0]["photos"] == 1 and lines[0]["bytes"] == len(file[1]) and lines[0]["ms"] > 0
    assert "secret" not in json.dumps(lines)


def test_too_much_at_once_is_refused_and_the_rest_answered(serving: Callable[..., Any], small_photos: Path):
    many = form(*photos(small_photos, 24))
    with serving("--max-requests", "2") as server, concurrent.futures.ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(httpx.post, f"{server.url}/predict", files=many, timeout=60) for _ in range(24)]
        answered = [one.result() for one in asked]
        busy = [one for one in answered if one.status_code == 429]
        assert {one.status_code for one in answered} == {200, 429} and len(busy) < 24
        assert all(one.headers["retry-after"] == "1" and "busy" in one.json()["error"] for one in busy)
        assert httpx.post(f"{server.url}/predict", files=many).status_code == 200


def test_what_takes_too_long_is_given_up(serving: Callable[..., Any], small_photos: Path):
    many = form(*photos(small_photos, 24))
    with serving("--max-seconds", "0.1", "--max-requests", "1000") as server:
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(httpx.post, f"{server.url}/predict", files=many, timeout=60) for _ in range(24)]
            statuses = {one.result().status_code for one in asked}
        assert 503 in statuses and statuses <= {200, 408, 503}
        time.sleep(0.5)
        assert httpx.post(f"{server.url}/predict", files=many[:1]).status_code == 200


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_its_end_loses_no_request(end: signal.Signals, serving: Callable[..., Any], small_photos: Path):
    some = form(*photos(small_photos, 6))
    with serving() as server:
        ended, answered = [], []

        def client() -> None:
            with httpx.Client(timeout=60) as opened:
                while not ended:
                    try:
                        answered.append(opened.post(f"{server.url}/predict", files=some).status_code)
                    except httpx.ConnectError:  # the door is closed: nothing was taken in
                        return

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client) for _ in range(4)]
            time.sleep(1)
            server.process.send_signal(end)
            for one in clients:
                one.result()  # no connection was broken
        assert server.process.wait(30) == 0
        assert len(answered) > 4 and set(answered) == {200}
        lines = [line for line in server.lines() if line["event"] == "request"]
        assert len(lines) == len(answered)


def test_who_came_in_last_is_answered(serving: Callable[..., Any], small_photos: Path):
    """A connection that was opened before the door closed, and whose request comes behind that."""
    boundary, content = b"b0undary", next(small_photos.glob("*/*.jpg")).read_bytes()
    body = b'--%s\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n' % boundary
    body += content + b"\r\n--%s--\r\n" % boundary
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=%s\r\n" % boundary
    with serving() as server, socket.create_connection(server.address) as opened:
        httpx.get(f"{server.url}/health")  # by now it has taken the connection in
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            while True:
                httpx.get(f"{server.url}/health")
        opened.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert opened.recv(12) == b"HTTP/1.1 200"
        assert server.process.wait(30) == 0


def test_the_command_says_where_it_listens_and_what_it_cannot_do(small_run: Path, tmp_path: Path, command, served: str):
    port = served.rpartition(":")[2]
    assert "--port 0" in command("serve", small_run, "--port", port).refusal
    assert "is no run" in command("serve", tmp_path).refusal
    for token in ("", "密码", "a\nb"):
        assert "--token" in command("serve", small_run, "--token", token).refusal
    with pytest.raises(FieldmarkError, match="cannot listen"):
        bind_socket("256.0.0.1", 0)


def test_outside_of_this_machine_it_warns_without_a_token(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    with serving("--host", "0.0.0.0") as server:
        assert "--token" in server.log.read_text().splitlines()[0]
    monkeypatch.setenv("FIELDMARK_TOKEN", "known")
    with serving("--host", "0.0.0.0") as server:
        assert httpx.get(f"http://127.0.0.1:{server.address[1]}/card").status_code == 401
        shown = subprocess.run(["ps", "-o", "args=", str(server.process.pid)], capture_output=True, text=True).stdout
        assert "known" not in shown and "--token" not in server.log.read_text()
