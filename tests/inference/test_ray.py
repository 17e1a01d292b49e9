"""Ray gives the plain predictor's answers, one for each photo, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from fieldmark.core.progress import Reporter
from fieldmark.data.locate import ContainedImage, RemoteImage, UnreadableSource
from fieldmark.data.pack import write_shards
from fieldmark.inference import ray
from fieldmark.inference.classifier import CROPS_WARNING, Classifier

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("all_cores")


@pytest.mark.parametrize(
    "place",
    [
        ("/a/é.jpg", "/a/é.jpg"),
        (os.fsdecode(b"\xff.jpg"), os.fsdecode(b"/\xff.jpg")),
        ("x.tar/鳥 1.png", ContainedImage("/d/x.tar", "鳥 1.png")),
        ("s3://b/p.jpg", RemoteImage("s3://b/p.jpg")),
        ("s3://b/y.tar/p.jpg", ContainedImage("s3://b/y.tar", "p.jpg")),
        ("y.tar", UnreadableSource("y.tar cannot be read")),
    ],
)
def test_a_place_survives_the_way_to_another_machine(place):
    text = ray._serialize_source(place)
    assert (
        text.isascii()
        and ray._deserialize_source(text) == place
        and type(ray._deserialize_source(text)[1]) is type(place[1])
    )


def test_relative_names_lead_to_the_photo_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path, source in (("a.jpg", "a.jpg"), ("x.tar/a.jpg", ContainedImage("x.tar", "a.jpg"))):
        name, there = ray._deserialize_source(ray._serialize_source((path, source)))
        assert (name, str(getattr(there, "container", there))) == (path, str(tmp_path / path[:5]))


def test_the_answers_are_those_of_the_plain_predictor(small_run: Path, small_photos: Path, tmp_path: Path, command):
    """Folders, shards, bad photos and odd names at once; stdout holds one JSON document; the exit code is the same."""
    write_shards(small_photos, tmp_path / "shards", Reporter(quiet=True))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "text.jpg").write_text("no photo")
    (tmp_path / "odd" / os.fsdecode(b"\xff 1.jpg")).write_bytes(next(small_photos.glob("*/*.jpg")).read_bytes())
    (tmp_path / "torn.tar").write_text("no tar")
    photos = [small_photos, tmp_path / "shards", tmp_path / "odd", tmp_path / "torn.tar", tmp_path / "none.jpg"]
    done = command("predict", small_run, *photos, "--engine", "ray", "--top", 2, "--json")
    assert done.code == 1 and done.err == "", done.err
    plain = [prediction.to_dict() for prediction in Classifier(small_run).predict(list(map(str, photos)), top=2)]
    assert sorted(done.json, key=lambda row: row["path"]) == sorted(plain, key=lambda row: row["path"])
    assert len(plain) == 48 + 48 + 2 + 2 and sum("error" in row for row in plain) == 3


def test_the_actors_use_the_cpu_where_there_is_a_gpu(small_run: Path, monkeypatch: pytest.MonkeyPatch):
    create, used = onnxruntime.InferenceSession, []

    def session(model: str, options: Any, providers: list[tuple[str, dict[str, str]]], **others: Any) -> Any:
        used.append([name for name, _ in providers])
        return create(model, options, providers=["CPUExecutionProvider"], **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=bytes))
    ray._PredictorActor([(small_run / "bundle" / "model.onnx").read_bytes()], 1)
    assert used == [["CPUExecutionProvider"]]


def test_a_model_trained_on_crops_warns_once(
    crops_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ray.init", lambda **options: 1 / 0)  # after the warning
    with pytest.raises(ZeroDivisionError):
        next(ray.RayPredictor(crops_model).stream(["a.jpg", "b.jpg"]))
    assert [record.getMessage() for record in caplog.records] == [CROPS_WARNING]


@pytest.mark.slow
def test_a_predictor_that_dies_loses_no_photo_and_none_stands_twice(
    small_run: Path, small_photos: Path, tmp_path: Path
):
    """Nor is any asked again of which an earlier run has left the answer."""
    (many := tmp_path / "many").mkdir()
    files, names = sorted(small_photos.glob("*/*.jpg")), [many / f"{k:04}.jpg" for k in range(1000)]
    for k, name in enumerate(names):
        os.link(files[k % len(files)], name)
    words = [sys.executable, "-m", "fieldmark.cli", "predict", small_run, many, "--engine", "ray"]
    answers, killed = tmp_path / "answers.jsonl", 0
    plain = [prediction.to_dict() for prediction in Classifier(small_run).predict(list(map(str, names[:96])))]
    before = "".join(json.dumps(row) + "\n" for row in plain[48:])
    answers.write_text(before)
    words += ["--jsonl", answers, "--resume"]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        time.sleep(0.05)
        if not killed and answers.read_bytes().count(b"\n") > 150:
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    named = file.read_bytes()
                except OSError:  # gone meanwhile
                    continue
                if named.startswith(b"ray::MapWorker") and not killed:
                    killed = int(file.parent.name)
                    os.kill(killed, signal.SIGKILL)
    assert process.stderr
    with process.stderr:
        said = process.stderr.read()  # Ray may tell of the death
        assert process.returncode == 0 and "Traceback" not in said and killed, said
    assert answers.read_text().startswith(before)
    rows = {row["path"]: row for row in map(json.loads, answers.read_text().splitlines())}
    assert answers.read_text().count("\n") == len(rows) == 1000 and rows.keys() == set(map(str, names))
    assert all(rows[row["path"]] == row for row in plain)


def test_what_goes_with_which_engine(small_run: Path, small_photos: Path, here, monkeypatch: pytest.MonkeyPatch):
    refusals = {
        ("--engine", "spark"): "--engine is 'spark', but can be plain or ray",
        ("--address", "auto"): "--address is for --engine ray",
        ("--engine", "ray", "--heatmap", "maps"): "--heatmap",
    }
    for options, message in refusals.items():
        assert message in here("predict", small_run, small_photos, *options).refusal
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = here("predict", small_run, small_photos, "--engine", "ray").refusal
    assert refused == "this needs ray: pip install 'fieldmark[ray]'"


def test_a_typo_leaves_no_file_of_answers(small_run: Path, small_photos: Path, tmp_path: Path, here):
    for words in (["typo"], [small_run, "--engine", "ray", "--address", "ray://host:10001"]):
        done = here("predict", words[0], small_photos, *words[1:], "--csv", tmp_path / "a.csv")
        assert done.code == 2 and not (tmp_path / "a.csv").exists(), done.err
    assert "--address auto" in done.refusal
