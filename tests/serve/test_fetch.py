"""The service takes images as bytes; nothing that a client names is opened or fetched."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from addresses import PHOTO, serving
from served import running
from tiny import write_model


@pytest.mark.parametrize("filename", ["photo.jpg", "{url}/ok.jpg", "file:///etc/hostname", "/etc/hostname", "-"])
def test_a_name_is_a_name(filename: str, named_photos):
    status, rows = named_photos(filename, PHOTO)
    assert status == 200 and rows[0]["label"] == "red"


def test_an_address_is_no_image(named_photos):
    status, rows = named_photos("a.jpg", b"{url}/ok.jpg")
    assert status == 422 and rows[0]["error"] == "not a photo (text?)"


def test_a_field_of_text_is_no_image(named_photos):
    status, _ = named_photos(None, b"{url}/ok.jpg")
    assert status == 422


@pytest.fixture(scope="module")
def named_photos(tmp_path_factory: pytest.TempPathFactory):
    """Sends a photo under a file name -> status and rows; the web server that it may name was not asked."""
    model = write_model(tmp_path_factory.mktemp("tiny") / "model.onnx")
    with serving() as web, running(model) as served:

        def send(filename: str | None, content: bytes) -> tuple[int, list[dict[str, str]]]:
            kind = "" if filename is None else f'; filename="{filename.format(url=web.url)}"'
            head = f'--x\r\nContent-Disposition: form-data; name="photo"{kind}\r\n\r\n'.encode()
            body = head + content.replace(b"{url}", web.url.encode()) + b"\r\n--x--\r\n"
            asked = Request(f"{served.url}/predict", body, {"Content-Type": "multipart/form-data; boundary=x"})
            try:
                with urlopen(asked) as reply:
                    result = reply.status, json.load(reply)
            except HTTPError as error:
                with error:
                    result = error.code, json.load(error)
            assert not web.requests
            return result

        yield send
