"""What `fieldmark serve` prints is an address that a browser can open."""

import socket

import pytest

from fieldmark.cli.commands import use


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:8000", "Open:  http://127.0.0.1:8000   (Ctrl-C ends it)"),
        ("http://192.168.0.7:8000", "Open:  http://192.168.0.7:8000   (Ctrl-C ends it)"),
        (
            "http://0.0.0.0:8931",
            "Open:  http://127.0.0.1:8931 on this computer, http://desk:8931 on others   (Ctrl-C ends it)",
        ),
        ("http://[::]:80", "Open:  http://[::1]:80 on this computer, http://desk:80 on others   (Ctrl-C ends it)"),
    ],
)
def test_the_address_of_all_interfaces_is_replaced_by_those_that_can_be_opened(
    url: str, line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(socket, "gethostname", lambda: "desk")
    assert use._open_line(url) == line
