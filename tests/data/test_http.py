"""What an address gives within the limits, and which addresses are not read at all."""

import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from addresses import PHOTO, WebServer, serving, unused_address, wait_until

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.data import http, remote
from fieldmark.data.image import UnreadableImageError
from fieldmark.data.locate import ImageSource, find_images
from fieldmark.data.remote import read

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits that a test can wait for."""
    monkeypatch.setattr(http, "MAX_SECONDS", 0.4)
    clear_sessions()
    yield
    clear_sessions()


def clear_sessions() -> None:
    """Later sessions have the limits that are set now."""
    remote._http_system.cache_clear()
    fsspec.get_filesystem_class("http").clear_instance_cache()


def reason(address: str, allow_private: bool = True) -> str:
    with pytest.raises(UnreadableImageError) as raised:
        read(address, allow_private)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- which addresses are private

PRIVATE = (
    *("127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1"),
    *("fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::7f00:1"),
    *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2002:c0a8:101::1", "2001:0:1::1"),
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_of_the_own_network_is_private(address: str):
    assert http.is_private(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str):
    assert not http.is_private(address)


@pytest.mark.parametrize(
    ("choice", "variable", "allowed"),
    [
        (None, "", False),
        (None, "1", True),
        (None, "true", True),
        (None, "0", False),
        (False, "1", False),
        (True, "", True),
    ],
)
def test_who_permits_private_addresses(
    choice: bool | None, variable: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(http.ALLOW_VARIABLE, variable)
    assert http.allows_private_hosts(choice) is allowed


# ---- what is refused


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f.1", "[::1]"])
def test_no_name_of_this_machine_is_read(web: WebServer, host: str):
    port, before = web.server_address[1], web.requests.total()
    why = reason(f"http://{host}:{port}/ok.jpg", allow_private=False)
    assert "--allow-private-hosts" in why or "no address of HTTP" in why
    assert web.requests.total() == before


@pytest.mark.parametrize(
    "address",
    [
        "zip://a.jpg::{web}/photos.zip",
        "simplecache::{web}/ok.jpg",
        "filecache::{web}/ok.jpg",
        "{web}/photos.zip",
        "{web}/folder/",
        "{web}/folder/*.jpg",
        "ftp://127.0.0.1/a.jpg",
        "sftp://10.0.0.1/a.jpg",
        "smb://nas/photos/a.jpg",
        "webhdfs://10.0.0.1/a.jpg",
        "reference::{web}/a.json",
        "dir::ftp://127.0.0.1/a.jpg",
        "zip://a.jpg::ftp://127.0.0.1/a.zip",
        "generic::{web}/ok.jpg",
    ],
)
def test_no_way_around_leads_to_this_machine(web: WebServer, address: str):
    before = web.requests.total()
    found = list(find_images([address.format(web=web.url)]))
    assert len(found) == 1
    with pytest.raises(UnreadableImageError, match=r"--allow-private-hosts|no such file"):  # fsspec hides why
        found[0][1].read()  # type: ignore[union-attr]
    assert web.requests.total() == before


@pytest.fixture
def only_127_0_0_2_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "is_private", lambda address: address == "127.0.0.2")


@pytest.mark.usefixtures("only_127_0_0_2_is_private")
def test_a_redirect_to_a_private_address_is_refused(web: WebServer):
    with serving("127.0.0.2") as inner:
        assert read(f"{web.url}/to/{web.url}/ok.jpg", allow_private=False) == PHOTO
        assert "--allow-private-hosts" in reason(f"{web.url}/to/{inner.url}/ok.jpg", allow_private=False)
        assert not inner.requests
        assert read(f"{web.url}/to/{inner.url}/ok.jpg", allow_private=True) == PHOTO


@pytest.mark.usefixtures("only_127_0_0_2_is_private")
def test_the_address_that_is_connected_to_is_the_one_that_is_checked(web: WebServer, monkeypatch: pytest.MonkeyPatch):
    """A name whose second answer is another address: each connection is checked at its own."""
    answers, lookup = ["127.0.0.1", "127.0.0.2"], socket.getaddrinfo

    def rebinding(host: Any, *others: Any, **options: Any) -> Any:
        return lookup(answers.pop(0) if host == "rebinding.test" else host, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    address = f"http://rebinding.test:{web.server_address[1]}"
    assert read(f"{address}/ok.jpg", allow_private=False) == PHOTO
    clear_sessions()  # which keep names for ten seconds
    assert "--allow-private-hosts" in reason(f"{address}/ok.jpg", allow_private=False)
    assert not answers


def test_redirects_to_files_are_not_followed(web: WebServer, tmp_path: Any):
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    assert "no address of HTTP" in reason(f"{web.url}/to/{(tmp_path / 'secret.jpg').as_uri()}")


# ---- what an address gives in place of an image


def test_a_photo_is_asked_for_once(web: WebServer):
    ((name, source),) = find_images([f"{web.url}/ok/once.jpg?size=1"], allow_private_hosts=True)
    assert name == f"{web.url}/ok/once.jpg?size=1" and web.requests["/ok/once.jpg?size=1"] == 0
    assert source.read() == PHOTO  # type: ignore[union-attr]
    assert web.requests["/ok/once.jpg?size=1"] == 1


@pytest.mark.parametrize(
    ("path", "expected", "tries"),
    [
        ("404/a.jpg", "HTTP 404 Not Found", 1),
        ("403/a.jpg", "HTTP 403 Forbidden", 1),
        ("410/a.jpg", "HTTP 410 Gone", 1),
        ("500/a.jpg", "HTTP 500 Internal Server Error (tried 3 times)", 3),
        ("503/a.jpg", "HTTP 503 Service Unavailable (tried 3 times)", 3),
        ("429/a.jpg", "HTTP 429 Too Many Requests (tried 3 times)", 3),
        ("599/a.jpg", "HTTP 599", 1),
    ],
)
def test_a_status_is_a_reason(web: WebServer, path: str, expected: str, tries: int):
    assert reason(f"{web.url}/{path}") == expected
    assert web.requests[f"/{path}"] == tries


@pytest.mark.parametrize("path", ["flaky/503", "flaky/429", "flaky/500", "reset/a.jpg", "half/a.jpg"])
def test_what_passes_is_tried_again(web: WebServer, path: str):
    assert read(f"{web.url}/{path}", allow_private=True) == PHOTO
    assert web.requests[f"/{path}"] == (3 if "flaky" in path else 2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["drip/a.jpg", "headers/a.jpg", "silent/a.jpg"])
def test_no_server_holds_a_prediction_up(web: WebServer, path: str):
    start = time.monotonic()
    assert "not read within 0.4 seconds" in reason(f"{web.url}/{path}")
    assert time.monotonic() - start < 2


def test_a_photo_has_a_limit_of_bytes(web: WebServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 2**20)
    assert reason(f"{web.url}/endless/a.jpg") == "more than 1 MiB"


@pytest.mark.usefixtures("impatient")
def test_an_archive_has_limits_of_bytes_and_of_speed(web: WebServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FieldmarkError, match="too slow"):
        remote.download(f"{web.url}/drip/a.zip", tmp_path / "a.zip", allow_private=True)
    monkeypatch.undo()
    monkeypatch.setattr(remote, "MAX_ARCHIVE_BYTES", 2**20)
    with pytest.raises(FieldmarkError, match="more than 1 MiB"):
        remote.download(f"{web.url}/endless/a.zip", tmp_path / "b.zip", allow_private=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://{web}/ok.jpg", "no secure connection"),
        ("http://{unused}/ok.jpg", "no connection"),
        ("http://{web}/loop", "too many redirects"),
        ("http://a..b/x.jpg", "no address of HTTP"),
        ("http://[zz]/x.jpg", "no address of HTTP"),
        ("http:///x.jpg", "no address of HTTP"),
        ("http://{host}:99999/x.jpg", "no address of HTTP"),
    ],
)
def test_what_is_no_server_is_a_reason(web: WebServer, address: str, expected: str):
    server = web.url.removeprefix("http://")
    unused = unused_address().removeprefix("http://")
    why = reason(address.format(web=server, unused=unused, host="127.0.0.1"))
    assert re.match(expected, why), why


def test_an_unknown_host_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert reason("https://no-such-host.invalid/a.jpg") == "unknown host (Name or service not known)"


def test_a_folder_and_a_glob_are_listed(web: WebServer):
    def content(address: str) -> list[tuple[str, ImageSource]]:
        return list(find_images([address], allow_private_hosts=True))

    links = [f"{web.url}/folder/1.jpg", f"{web.url}/folder/2.jpg"]
    assert [name for name, _ in content(f"{web.url}/folder/")] == links
    assert [name for name, _ in content(f"{web.url}/folder/*.jpg")] == links
    ((name, source),) = content(f"{web.url}/ok/200/")  # no folder, but a photo
    assert name == f"{web.url}/ok/200/" and source.read() == PHOTO  # type: ignore[union-attr]
    zipped = content(f"{web.url}/photos.zip")
    assert [name for name, _ in zipped] == [f"{web.url}/photos.zip/{name}.jpg" for name in "ab"]
    assert zipped[0][1].read() == PHOTO  # type: ignore[union-attr]
    ((name, source),) = content(f"zip://a.jpg::{web.url}/photos.zip")
    assert name == f"zip://a.jpg::{web.url}/photos.zip" and source.read() == PHOTO  # type: ignore[union-attr]
    names = [name for name, _ in content(f"zip://*.jpg::{web.url}/photos.zip")]
    assert names == [f"zip://{name}.jpg::{web.url}/photos.zip" for name in "ab"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("404/", "HTTP 404"), ("404/*.jpg", "HTTP 404"), ("folder/*.png", "no such file")],
)
def test_what_cannot_be_listed_is_a_row(web: WebServer, path: str, expected: str):
    ((name, source),) = find_images([f"{web.url}/{path}"], allow_private_hosts=True)
    assert name == f"{web.url}/{path}"
    with pytest.raises(UnreadableImageError, match=expected):
        source.read()  # type: ignore[union-attr]


@pytest.mark.usefixtures("impatient")
def test_no_server_holds_a_listing_up(web: WebServer):
    with pytest.raises(FieldmarkError, match=r"not listed within 0.4 seconds"):
        remote.find(f"{web.url}/silent/", allow_private=True)


def test_fetches_end_with_the_call_that_wants_them(web: WebServer):
    addresses = [f"{web.url}/ok/first.jpg", *(f"{web.url}/silent/{k}" for k in range(9))]
    rows = ordered_map(lambda address: read(address, True), addresses, 2)
    assert next(rows) == PHOTO
    wait_until(lambda: web.requests["/silent/1"])
    start = time.monotonic()
    rows.close()
    assert time.monotonic() - start < 2
