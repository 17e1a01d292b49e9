"""A web server of this machine that answers well, badly, late or never."""

import io
import re
import socket
import struct
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


def photo(colour: str = "red") -> bytes:
    """A JPEG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (50, 40), colour).save(file, "JPEG")
    return file.getvalue()


PHOTO = photo()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("a.jpg", PHOTO)
        zipped.writestr("b.jpg", PHOTO)
    return file.getvalue()


class WebServer(ThreadingHTTPServer):
    """`requests` counts those of each path. The first parts of a path say what happens:

    /ok any photo; /404, /500, ...: that status; /flaky/STATUS: that status twice, then a photo; /reset: the connection
    breaks once; /drip: a byte a moment; /headers: headers that never end; /silent: nothing; /endless: bytes without
    end; /html: a page; /to/URL: a redirect; /loop: one to itself; /folder/: links to two photos; /photos.zip.
    """

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.requests = Counter[str]()
        self.is_closing = threading.Event()
        super().__init__((host, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is none."""


class Handler(BaseHTTPRequestHandler):
    server: WebServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last, size, status = int(match[1]), int(match[2]), len(content), 206
            content = content[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self) -> None:
        kind, _, rest = self.path.lstrip("/").partition("/")
        self.server.requests[self.path] += 1
        number = self.server.requests[self.path]
        if kind.isdigit():
            self.reply(b"no", int(kind))
        elif kind == "flaky":
            self.reply(b"no", int(rest)) if number < 3 else self.reply(PHOTO)
        elif kind == "reset" and number == 1:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif kind == "half" and number == 1:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PHOTO)))
            self.end_headers()
            self.wfile.write(PHOTO[:300])
        elif kind in ("drip", "headers", "silent", "endless"):
            self.send_badly(kind)
        elif kind == "loop":
            self.reply(b"", 302, Location="/loop")
        elif kind == "to":
            self.reply(b"", 302, Location=rest)
        elif kind == "html":
            self.reply(b"<html>please log in</html>", Content_Type="text/html")
        elif kind == "folder":
            links = b'<a href="1.jpg">1</a> <a href="2.jpg">2</a> <a href="notes.txt">3</a>'
            self.reply(PHOTO if rest else links, Content_Type="image/jpeg" if rest else "text/html")
        else:
            self.reply(archive() if kind == "photos.zip" else PHOTO)

    do_HEAD = do_GET

    def send_badly(self, kind: str) -> None:
        if kind == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.server.is_closing.is_set():
                self.wfile.write(bytes(2**16))
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if kind == "drip" else b"") if kind != "silent" else b"")
        while not self.server.is_closing.wait(0.02):
            if kind != "silent":
                self.wfile.write(b"x")
                self.wfile.flush()


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[WebServer]:
    """A server in a thread, ended behind the block."""
    server = WebServer(host)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()


def unused_address() -> str:
    """Of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    """Fails if the condition does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
