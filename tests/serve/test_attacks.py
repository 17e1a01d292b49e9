"""Whatever comes in, nothing crashes, memory stays bounded, and the next request is answered."""

import io
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

MUCH = 200 * 2**20
"""Bytes by which a server may grow: far less than any of these would take if they were held, or decoded."""


@pytest.fixture(scope="module")
def photo(small_photos: Path) -> bytes:
    return (small_photos / "disc" / "00.jpg").read_bytes()


@pytest.fixture(autouse=True)
def unharmed(server: Any, photo: bytes) -> Iterator[None]:
    """After each of them the server is as it was."""
    before = server.memory()
    yield
    assert server.process.poll() is None
    (answer,) = httpx.post(f"{server.url}/predict", files=[("photo", ("a.jpg", photo))], timeout=30).json()
    assert answer["label"] == "disc"
    assert server.memory() < before + MUCH


def part(content: bytes, name: str = 'name="photo"; filename="a.jpg"') -> bytes:
    return f"--edge\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + content + b"\r\n"


def send(
    server: Any, pieces: Iterable[bytes], headers: str = "", wait: float = 0, close: bool = False
) -> tuple[int, bytes]:
    """A request as raw bytes -> status and body, which may come before all is sent; 0 where there was none."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n{headers}\r\n"
    with socket.create_connection(server.address, timeout=60) as opened:
        try:
            opened.sendall(head.encode())
            for piece in pieces:
                opened.sendall(piece)
                time.sleep(wait)
            if close:
                opened.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough
        told = b""
        try:
            while b"\r\n\r\n" not in told or (b"content-length" in told and not told.rstrip().endswith((b"}", b"]"))):
                if not (more := opened.recv(65536)):
                    break
                told += more
        except ConnectionResetError:
            pass
    return (int(told.split()[1]) if told else 0), told.partition(b"\r\n\r\n")[2]


def chunked(content: Iterable[bytes]) -> Iterator[bytes]:
    for piece in content:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def endless(megabytes: int) -> Iterator[bytes]:
    yield part(b"")[:-2]
    for _ in range(megabytes):
        yield bytes(2**20)


def test_a_gigabyte_that_is_announced(server: Any):
    status, body = send(server, [], f"Content-Length: {2**30}\r\n")
    assert status == 413 and b"32 MiB" in body


def test_a_gigabyte_that_is_not(server: Any):
    status, _ = send(server, chunked(endless(1024)), "Transfer-Encoding: chunked\r\n")
    assert status in (413, 0)  # the answer may be lost where the client goes on sending
    assert send(server, chunked(endless(33)), "Transfer-Encoding: chunked\r\n")[0] in (413, 0)


def test_more_than_it_says_and_less(server: Any, photo: bytes):
    whole = part(photo) + b"--edge--\r\n"
    status, _ = send(server, [whole], f"Content-Length: {len(whole) - 100}\r\n", close=True)
    assert status in (200, 400, 422)
    status, _ = send(server, [whole[:300]], f"Content-Length: {len(whole)}\r\n", close=True)
    assert status in (0, 400, 422)


def test_a_slow_client(serving: Callable[..., Any], photo: bytes):
    with serving("--max-seconds", "0.25") as slow:
        whole = part(photo)
        pieces = [whole[k : k + 10] for k in range(0, 200, 10)]
        status, body = send(slow, pieces, f"Content-Length: {len(whole)}\r\n", wait=0.1)
        assert status == 408 and b"within 1 seconds" in body
        idle = [socket.create_connection(slow.address) for _ in range(200)]  # that never ask anything
        assert httpx.get(f"{slow.url}/health").status_code == 200
        for one in idle:
            one.close()


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """A real picture of one colour, 1 bit a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    squeeze, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refused(server: Any, content: bytes) -> str:
    answer = httpx.post(f"{server.url}/predict", files=[("photo", ("a.png", content))], timeout=60)
    assert answer.status_code == 422, answer.text
    return answer.json()[0]["error"]


def test_more_pixels_than_memory(server: Any):
    assert "30000 x 30000 pixels, more than the limit of 50,000,000" in refused(server, png(30_000, 30_000))
    assert "8000 x 8000 pixels, more than the limit of 50,000,000" in refused(server, png(8_000, 8_000))


@pytest.mark.slow
def test_a_hundred_megabytes_about_a_photo(serving: Callable[..., Any]):
    """EXIF, far beyond what is ever needed, to a server that takes so much; it is read over."""
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 270, 2, 100 * 2**20, 26) + bytes(4)
    block = exif + bytes(100 * 2**20)
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    with serving("--max-mib", "128") as large:
        for _ in range(3):
            sent = [("photo", ("a.png", png(64, 64, chunk)))]
            answer = httpx.post(f"{large.url}/predict", files=sent, timeout=60)
            assert answer.status_code == 200 and "label" in answer.json()[0]
            grown = large.memory()
        assert grown < 1.5 * 2**30


def test_a_photo_that_is_something_else_too(server: Any, photo: bytes):
    """It is answered as the photo it is, as JSON that no browser takes for anything else."""
    for more in (b"<script>alert(1)</script>", b"PK\x03\x04" + bytes(100), b"<?php system('id'); ?>"):
        answer = httpx.post(f"{server.url}/predict", files=[("photo", ("a.html", photo + more, "text/html"))])
        assert answer.json()[0]["label"] == "disc" and answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "damaged" in refused(server, b"GIF89a/*" + b"*/=1;alert(1)")


@pytest.mark.parametrize(
    "name", ["../../../../tmp/owned.jpg", "/etc/passwd", "a\0.jpg", "C:\\x.jpg", "%2e%2e%2f", "长" * 3000]
)
def test_names_lead_nowhere(server: Any, photo: bytes, name: str):
    whole = part(photo, f'name="photo"; filename="{name}"') + b"--edge--\r\n"
    status, body = send(server, [whole], f"Content-Length: {len(whole)}\r\n")
    assert status in (200, 422) and (status == 422 or b'"label": "disc"' in body)
    assert not Path("/tmp/owned.jpg").exists()


def test_names_that_look_like_headers(server: Any, photo: bytes):
    found = httpx.post(f"{server.url}/predict", files=[("photo", ("a\r\nX-Evil: yes\r\n\r\n.jpg", photo))])
    assert "x-evil" not in found.headers
    for header in ("evil", "content-type"):
        asked = httpx.get(f"{server.url}/health?{header}=%0d%0aX-Evil:%20yes", headers={"X-Forwarded-For": "1, 2"})
        assert asked.status_code == 200 and "x-evil" not in asked.headers
    status, _ = send(server, [], "Content-Length: 0\r\nX-Evil: a\r\n b\r\n")
    assert status in (400, 422)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--edge",
        b"--edge--\r\n",
        b"no edge at all",
        b"--edge\r\n\r\n\r\n--edge--\r\n",
        b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n--edge--\r\n",
        b'--edge\r\nContent-Disposition: form-data; name="photo"\r\n\r\nno file\r\n--edge--\r\n',
        b"--edge\r\n" + b"A" * 70_000 + b": b\r\n\r\nx\r\n--edge--\r\n",
        part(b"x", 'name="other"; filename="a"') + b"--edge--\r\n",
        part(b"\xff" * 100, 'name="photo') + b"--edge--\r\n",
        part(b"x")[:-1],
    ],
)
def test_damaged_forms(server: Any, body: bytes):
    status, told = send(server, [body], f"Content-Length: {len(body)}\r\n")
    assert status == 422 and b"error" in told


def test_other_kinds_of_bodies(server: Any, photo: bytes):
    for kind in (
        "image/jpeg",
        "application/json",
        "application/x-www-form-urlencoded",
        "",
        "multipart/mixed; boundary=edge",
    ):
        answer = httpx.post(f"{server.url}/predict", content=photo, headers={"Content-Type": kind})
        assert answer.status_code == 415 and "multipart/form-data" in answer.json()["error"]
    bare = httpx.post(f"{server.url}/predict", content=photo, headers={"Content-Type": "multipart/form-data"})
    assert bare.status_code == 422


def test_ten_thousand_parts(server: Any):
    for name in ('name="photo"; filename="a"', 'name="field"'):
        whole = part(b"x", name) * 10_000 + b"--edge--\r\n"
        status, body = send(server, [whole], f"Content-Length: {len(whole)}\r\n")
        assert status in (413, 0) and (not body or b"limit of 32 photos" in body)
    nothing = httpx.post(f"{server.url}/predict", files=[("photo", (f"{k}", b"x")) for k in range(32)])
    assert nothing.status_code == 422 and len(nothing.json()) == 32


def test_a_photo_that_goes_over_itself_for_ever(server: Any):
    packed = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(packed, "JPEG", progressive=True)
    content = packed.getvalue()
    scan = content.rindex(b"\xff\xda")
    again = content[:scan] + content[scan:-2] * 2000 + content[-2:]
    assert "goes" in refused(server, again[: 30 * 2**20])


def test_nonsense_in_place_of_http(server: Any):
    for nonsense in (
        bytes(range(256)) * 10,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 200_000,
        b"\x16\x03\x01\x02\0\x01",
    ):
        with socket.create_connection(server.address, timeout=10) as opened:
            try:
                opened.sendall(nonsense + b"\r\n\r\n")
                told = opened.recv(1000)
            except ConnectionResetError:
                told = b""
            assert not told or told.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")), told


def test_two_lengths(server: Any, photo: bytes):
    """What a proxy in front could read in two ways is not read at all."""
    whole = part(photo) + b"--edge--\r\n"
    both = f"Content-Length: {len(whole)}\r\nContent-Length: 10\r\n"
    assert send(server, [whole], both)[0] == 400
    mixed = f"Content-Length: {len(whole)}\r\nTransfer-Encoding: chunked\r\n"
    assert send(server, chunked([whole, b""]), mixed)[0] in (200, 400)
