"""`predict` on lists of addresses: a bad one is a row, the others are predicted, and nothing leads to this machine."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from addresses import PHOTO, WebServer, photo, unused_address

import fieldmark
from fieldmark.core import runtime
from fieldmark.data import http, remote
from fieldmark.data.locate import ContainedImage, RemoteImage
from fieldmark.inference import ray
from fieldmark.inference.classifier import Classifier

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("quick_retries")
ALLOWED = "--allow-private-hosts"


@pytest.fixture
def green(tmp_path: Path) -> Path:
    (file := tmp_path / "green.jpg").write_bytes(photo("lime"))
    return file


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_bad_addresses_are_rows_among_the_others(
    tiny_model: Path, web: WebServer, green: Path, here: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http, "MAX_SECONDS", 2)
    monkeypatch.setattr(runtime, "available_cpus", lambda: 8)  # or they are waited for one by one
    remote._http_system.cache_clear()
    bad = {
        "https://no-such-host.invalid/a.jpg": "unknown host",
        f"{unused_address()}/a.jpg": "no connection",
        f"{web.url}/404/a.jpg": "HTTP 404 Not Found",
        f"{web.url}/500/a.jpg": "HTTP 500 Internal Server Error (tried 3 times)",
        f"{web.url}/html/a.jpg": "not a photo (a web page?)",
        f"{web.url}/silent/a.jpg": "not read within 2 seconds",
        f"{web.url}/drip/a.jpg": "not read within 2 seconds",
        web.url.replace("http:", "https:") + "/a.jpg": "no secure connection",
        "nosuch://host/a.jpg": "nosuch:// is not known",
        f"{web.url}/404/": "HTTP 404",
        f"{web.url}/404/*.jpg": "HTTP 404",
        f"{web.url}/404/a.zip": "cannot be fetched: HTTP 404",
    }
    named = [name for address in bad for name in (address, str(green), f"{web.url}/ok.jpg")]
    done = here("predict", tiny_model, *named, ALLOWED, "--json")
    assert done.code == 1 and done.err == ""
    assert [row["path"] for row in done.json] == named
    for row, name in zip(done.json, named, strict=True):
        assert bad[name] in row["error"] if name in bad else row["label"] in ("red", "绿, green")
    assert not any("\n" in row.get("error", "") for row in done.json)


def test_resuming_asks_again_for_those_that_failed(
    tiny_model: Path, web: WebServer, green: Path, tmp_path: Path, here: Any
):
    """As for every image that could not be read: the network may be back."""
    out, passing = tmp_path / "out.csv", f"{web.url}/flaky/404"
    named = [green, f"{web.url}/404/gone.jpg", passing, f"{web.url}/ok/resumed.jpg"]
    words = ("predict", tiny_model, *named, ALLOWED, "--csv", out)
    assert here(*words).code == 1
    assert [row["path"] for row in rows(out)] == list(map(str, named))
    assert [bool(row["error"]) for row in rows(out)] == [False, True, True, False]
    assert here(*words, "--resume").code == 1
    assert here(*words, "--resume").code == 1
    done = {row["path"]: row for row in rows(out)}
    assert len(rows(out)) == len(done) == 4 and done[passing]["label"] == "red"
    assert "HTTP 404" in done[str(named[1])]["error"]
    assert web.requests["/ok/resumed.jpg"] == 1  # not fetched again


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_dead_host_in_a_list_on_stdin(
    tiny_model: Path, green: Path, kind: str, tmp_path: Path, here: Any, monkeypatch: pytest.MonkeyPatch
):
    listed = f"{green}\nhttps://no-such-host.invalid/a.jpg\n{green}\n".encode()
    for options in ([], ["--resume"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
        assert here("predict", tiny_model, "-", f"--{kind}", tmp_path / "out", *options).code == 1
        assert (tmp_path / "out").read_text().count("green.jpg") == 2
        assert (tmp_path / "out").read_text().count("no-such-host") == 1


def test_an_image_on_stdin(tiny_model: Path, tmp_path: Path, here: Any, monkeypatch: pytest.MonkeyPatch):
    words = ("predict", tiny_model, "-", "--jsonl", tmp_path / "out.jsonl")
    for options, colour in (([], "red"), (["--resume"], "blue")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo(colour))))
        assert here(*words, *options).code == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["path"], row["label"]) for row in found] == [("-", "red"), ("-", "blue")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PHOTO)))
    assert here("predict", tiny_model, "-", "--heatmap", tmp_path / "maps").code == 0
    assert len(list((tmp_path / "maps").iterdir())) == 1


@pytest.mark.parametrize("heatmap", [False, True])
def test_who_permits_addresses_of_this_machine(
    tiny_model: Path, web: WebServer, heatmap: bool, tmp_path: Path, here: Any, monkeypatch: pytest.MonkeyPatch
):
    address = f"{web.url}/ok.jpg"

    def predict(*options: str) -> Any:
        folder = tmp_path / f"maps{len(list(tmp_path.iterdir()))}"
        return here("predict", tiny_model, address, "--json", *options, *(["--heatmap", folder] if heatmap else []))

    (refused,) = predict().json
    assert ALLOWED in refused["error"] and http.ALLOW_VARIABLE in refused["error"]
    assert predict(ALLOWED).json[0]["label"] == "red"
    monkeypatch.setenv(http.ALLOW_VARIABLE, "1")
    assert predict().json[0]["label"] == "red"


def test_explain_takes_the_permission_too(small_run: Path, web: WebServer, tmp_path: Path, here: Any):
    words = ("explain", small_run, f"{web.url}/ok.jpg", "--json", "--out")
    assert ALLOWED in here(*words, tmp_path / "refused").refusal
    done = here(*words, tmp_path / "out", ALLOWED)
    assert done.code == 0 and [row["path"] for row in done.json["photos"]] == [f"{web.url}/ok.jpg"]


def test_the_same_in_python(tiny_model: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch):
    address = f"{web.url}/ok.jpg"
    for predict in (Classifier(tiny_model).predict, Classifier(tiny_model).predict_proba):
        with pytest.raises(ValueError, match=f"{address} cannot be predicted: leads to this machine"):
            predict(address)
    (row,) = Classifier(tiny_model).predict([address])
    assert row.path == address and row.error
    permitted = fieldmark.load(tiny_model, allow_private_hosts=True)
    assert permitted.predict(address).label == "red"
    assert permitted.predict(f"{address}?size=3&crop[]=1").label == "red"  # one image, no glob
    assert [row.path for row in permitted.predict(f"{web.url}/folder/")] == [
        f"{web.url}/folder/{k}.jpg" for k in (1, 2)
    ]
    monkeypatch.setenv(http.ALLOW_VARIABLE, "1")
    assert Classifier(tiny_model).predict(address).label == "red"
    with pytest.raises(ValueError, match="leads to this machine"):
        Classifier(tiny_model, allow_private_hosts=False).predict(address)


@pytest.mark.parametrize(
    "source",
    [b"\xff\xd8", RemoteImage("http://h/a.jpg", True), ContainedImage("http://h/a.zip", "a.jpg", True)],
    ids=["bytes", "address", "archive"],
)
def test_permission_and_content_reach_another_machine(source: Any):
    assert ray._deserialize_source(ray._serialize_source(("name", source))) == ("name", source)
