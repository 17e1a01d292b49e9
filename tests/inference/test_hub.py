"""A classifier is pushed to a hub and loaded from it: a local server that speaks the hub's protocol."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.hf_api
import pytest

import fieldmark as fm
from fieldmark.core.errors import FieldmarkError
from fieldmark.inference import hub


class Hub:
    """Repositories in memory; every push makes a revision."""

    def __init__(self) -> None:
        self.revisions: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []

    def commit_of(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        pushed = self.revisions.get(repository, [])
        for number in range(len(pushed) - 1, -1, -1):
            if revision in ("main", self.commit_of(repository, number)):
                return self.commit_of(repository, number), pushed[number]
        return None


def handler_of(state: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            state.requests.append(f"{self.command} {self.path}")

        def reply(self, code: int, content: bytes = b"{}", **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            content, path = self.body(), self.path.partition("?")[0]
            repository = "/".join(path.split("/")[3:5])
            if path == "/api/repos/create":
                wanted = json.loads(content)
                name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
                state.revisions.setdefault(name, [])
                state.private[name] = wanted.get("private") is True or wanted.get("visibility") == "private"
                self.reply(200, json.dumps({"url": f"{base(self)}/{name}"}).encode())
            elif path == "/api/validate-yaml":
                self.reply(200, b'{"errors": [], "warnings": []}')
            elif "/preupload/" in path:
                modes = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(content)["files"]
                ]
                self.reply(200, json.dumps({"files": modes}).encode())
            elif "/commit/" in path:
                entries = [json.loads(line) for line in content.splitlines()]
                files = {
                    entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
                    for entry in entries
                    if entry["key"] == "file"
                }
                state.revisions[repository].append(files)
                commit = state.commit_of(repository, len(state.revisions[repository]) - 1)
                answer = {"commitOid": commit, "commitUrl": f"{base(self)}/{repository}/commit/{commit}"}
                self.reply(200, json.dumps(answer).encode())
            else:
                self.reply(404)

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                found = state.find("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
                answer = {"id": "/".join(parts[2:4]), "sha": found[0] if found else None, "siblings": []}
                self.reply(200, json.dumps(answer).encode())
                return
            found = state.find("/".join(parts[:2]), parts[3]) if parts[2:3] == ["resolve"] else None
            if found is None:
                self.reply(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            elif (name := "/".join(parts[4:])) not in found[1]:
                self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=found[0])
            else:
                tag = hashlib.sha256(found[1][name]).hexdigest()
                self.reply(200, found[1][name], ETag=f'"{tag}"', X_Repo_Commit=found[0])

        do_HEAD = do_GET

    def base(handler: BaseHTTPRequestHandler) -> str:
        return f"http://{handler.headers['Host']}"

    return Handler


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for module in (huggingface_hub.constants, huggingface_hub.hf_api, huggingface_hub.file_download):
        for name, value in (("ENDPOINT", address), ("HF_HUB_CACHE", str(tmp_path / "cache"))):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield state
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_loaded(served: Hub, small_run: Path, small_photos: Path, here):
    address = fm.push(fm.Run.load(small_run), "user/parts", private=True)
    assert address == "hf://user/parts" and served.private == {"user/parts": True}
    (files,) = served.revisions["user/parts"]
    assert set(files) == {*hub.REQUIRED_FILES, *hub.OPTIONAL_FILES}
    assert "hf://user/parts" in files["README.md"].decode() and "BUNDLE" not in files["README.md"].decode()
    photos = sorted(small_photos.glob("*/*.jpg"))[:5]
    assert fm.load(address).predict(photos) == fm.load(small_run).predict(photos)
    done = here("predict", address, photos[0], "--json")
    assert done.code == 0 and done.json[0]["label"] == fm.load(small_run).predict(photos[0]).label
    assert fm.load(address).embed(photos[0]).ndim == 1


def test_a_revision_can_be_named(served: Hub, small_run: Path, here):
    for _ in range(2):
        done = here("push", small_run, "user/parts", "--json")
        assert done.code == 0 and done.json == {"address": "hf://user/parts"}
    served.revisions["user/parts"][1]["model.onnx"] = b"another"
    first = served.commit_of("user/parts", 0)
    assert fm.load(f"hf://user/parts@{first}").classes == fm.load(small_run).classes
    with pytest.raises(FieldmarkError, match=r"model\.onnx is damaged"):
        fm.load("hf://user/parts")


def test_what_cannot_be_loaded_or_pushed_ends_in_one_line(served: Hub, small_run: Path, tmp_path: Path, here):
    done = here("predict", "hf://user/none", "photo.jpg")
    assert done.code == 2 and "hf://user/none cannot be loaded" in done.err and done.err.count("\n") == 1
    served.revisions["user/other"] = [{"bundle.json": b"{}"}]
    with pytest.raises(FieldmarkError, match="hf://user/other cannot be loaded"):
        fm.load("hf://user/other")
    with pytest.raises(FieldmarkError, match="is no run, bundle or exported model"):
        fm.push(tmp_path, "user/parts")
    with pytest.raises(FieldmarkError, match=r"no card\.md"):
        fm.push(small_run / "bundle", "user/parts")
    with pytest.raises(FieldmarkError, match="cannot be pushed"):
        fm.push(small_run, "no/valid/name")
