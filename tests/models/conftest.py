"""A web server on this machine that serves what a test gives it, also as a small hub."""

import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest


class Server(ThreadingHTTPServer):
    """`files` by path, each with further headers; `asked` are the requests so far, `on_request` is called with each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.asked: list[str] = []
        self.on_request: Callable[[], object] = lambda: None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, path: str, content: bytes, **headers: str) -> None:
        self.files[path] = content, headers

    def publish(self, repository: str, content: bytes, *, digest: str | None = None, size: int | None = None) -> None:
        """The content as the repository's model.safetensors; with a wrong `digest` or `size` where given."""
        headers = {"ETag": f'"{digest or sha256(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        if size is not None:
            headers["X-Linked-Size"] = str(size)
        self.files[f"/{repository}/resolve/main/model.safetensors"] = content, headers


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.on_request()
        content, headers = self.server.files.get(self.path, (b"no such file", {}))
        self.send_response(200 if self.path in self.server.files else 404)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def hub(server: Server, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server in the place of the public hub, with an empty cache in `tmp_path / "hub"`."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return server
