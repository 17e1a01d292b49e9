"""`fieldmark.teach` on photos, with the features of a real network, and the training on what was labelled."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline.teach import Teaching, TrainingJob, default_folder
from fieldmark.pipeline.teaching import reader
from fieldmark.pipeline.teaching.sources import SessionSettings
from fieldmark.pipeline.teaching.store import READ

N = 36


def truth(path: str) -> str:
    return Path(path).name.partition("-")[0]


def open_it(photos: Path, out: Path, **words: object) -> Teaching:
    return fieldmark.teach(photos, out=out, progress=False, **words)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def photos(drawing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos without classes; their names say what they show."""
    folder = tmp_path_factory.mktemp("unlabelled") / "photos"
    folder.mkdir()
    for number in range(N):
        kind = number % 3
        drawing(kind, 300 + number).save(folder / f"{('disc', 'square', 'cross')[kind]}-{number}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a session that was labelled to its end."""
    folder = tmp_path_factory.mktemp("session") / "session"
    with open_it(photos, folder) as session:
        assert session.next() and session.reading == (N, N) and session.metrics.labelled == 0
        assert session.store.groups.shape == (N,) and (session.store.status == READ).all()
        while questions := session.next(3):
            for question in questions:
                session.answer(question.path, truth(question.path))
        repr_before = repr(session)
    assert "36 labelled, 0 not, accuracy" in repr_before and "8 test images" in repr_before
    return folder


def test_a_session_ends_with_labels_for_train(photos: Path, out: Path):
    catalog = read_catalog(out / "labels.csv")
    assert {Path(photo.path) for photo in catalog.photos} == set(photos.iterdir())
    assert all(photo.label == truth(photo.path) for photo in catalog.photos)
    assert not (out / "decisions.csv").exists()


def test_it_goes_on_where_it_ended(photos: Path, out: Path):
    with open_it(photos, out) as session:
        assert session.next() == [] and session.name == "photos"
        metrics = session.metrics
        assert (metrics.labelled, metrics.unlabelled, metrics.accuracy.n) == (N, 0, 8)
        right = [
            label == truth(name) for name, (label, _) in zip(session.names, session.predict(session.names), strict=True)
        ]
        assert np.mean(right) > 0.9 and metrics.accuracy.share is not None and metrics.accuracy.share > 0.5
        before = (out / "answers.jsonl").read_bytes()
    assert (out / "answers.jsonl").read_bytes() == before


def test_a_labelled_folder_with_more_images(photos: Path, small_photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = fieldmark.teach(small_photos, photos, progress=False)
    try:
        assert session.folder == default_folder(small_photos) == Path("runs/teach-photos")
        assert session.classes == ["cross, blue", "disc", "square"] and session.metrics.labelled == 48
        asked = session.next(5)
        assert all(question.path.startswith("photos/") for question in asked)
        session.answer(asked[0].path, "disc")
        assert session.undo()[0].path == asked[0].path
        assert session.predict(["disc/00.jpg"])[0][0] == "disc"
        session.answer("disc/00.jpg", "square")
        assert session.export() == Path("runs/teach-photos/labels.csv")
    finally:
        session.close()
    session.close()  # again
    assert "disc/00.jpg,disc,relabel,square" in (session.folder / "decisions.csv").read_text()


def test_the_network_of_a_run(small_run: Path, small_photos: Path, tmp_path: Path):
    with open_it(fieldmark.Run.load(small_run), tmp_path / "s") as session:  # type: ignore[arg-type]
        assert session.settings.model == small_run / "bundle" and session.metrics.labelled == 48
        predicted = session.predict(session.names)
        assert (
            np.mean(
                [label == name.partition("/")[0] for name, (label, _) in zip(session.names, predicted, strict=True)]
            )
            > 0.9
        )


def test_other_images_and_other_folders_are_refused(photos: Path, small_photos: Path, out: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for data, folder, reason in (
        (small_photos, out, "is a session on other images"),
        (photos, tmp_path / "full", "no session: give another out="),
        (tmp_path / "none", tmp_path / "new", "is missing"),
        (tmp_path / "full", tmp_path / "new2", "has no images"),
    ):
        with pytest.raises(FieldmarkError, match=reason) as refused:
            open_it(data, folder)
        assert "\n" not in str(refused.value)
    for words in ({"more": small_photos}, {"ignore_labels": True}):
        with pytest.raises(FieldmarkError, match="these images with another"):
            open_it(photos, out, **words)
    with pytest.raises(TypeError, match="path of a folder"):
        open_it([1, 2], tmp_path / "x")  # type: ignore[arg-type]
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]


def test_a_folder_named_as_the_best_run_of_a_search_is_one_of_images(photos: Path, tmp_path: Path, monkeypatch):
    opened = list[Path]()
    monkeypatch.setattr("fieldmark.pipeline.teach.Teaching", lambda folder, _: opened.append(folder))
    for name in ("best-ones", "others"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    open_it(tmp_path / "photos", tmp_path / "out")
    assert SessionSettings.load(opened[0]).data == str(tmp_path / "photos")


def test_a_reader_that_fails_says_why(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first >&2\necho no memory >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(reader, "sys", SimpleNamespace(executable=str(broken)))
    with pytest.raises(FieldmarkError, match="reading the images failed: no memory"):
        open_it(photos, tmp_path / "s")


PARENT = """
import sys, time
from pathlib import Path
from fieldmark.pipeline.teaching.reader import BackgroundReader
print(BackgroundReader(Path(sys.argv[1])).process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_the_reader_ends_with_its_parent(photos: Path, tmp_path: Path):
    SessionSettings(str(photos)).save(tmp_path)
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        stat = Path(f"/proc/{int(parent.stdout.readline())}/stat")
        assert stat.exists()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 40
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---- training


@pytest.mark.parametrize("budget", ["", "5", "m", "0m", "05m", "-5m", "5d", "5m --out x", "5m\n", "99999m", "1.5m"])
def test_a_budget_is_a_time(budget: str):
    job = TrainingJob(None)  # type: ignore[arg-type]
    with pytest.raises(FieldmarkError, match="no budget"):
        job.start(budget)
    assert job.state().state == "none"


def test_a_training_needs_two_classes_that_are_no_test_images():
    labels = {"1": ("cat", "train"), "2": ("dog", "test")}
    job = TrainingJob(SimpleNamespace(labels=labels))  # type: ignore[arg-type]
    with pytest.raises(FieldmarkError, match="two classes"):
        job.start("5m")
    assert job.stop().state == job.state().state == "none"


def test_one_training_at_a_time(photos: Path, out: Path, tmp_path: Path):
    with open_it(photos, out) as session:
        job = TrainingJob(session)
        try:
            state = job.start("5m")
            assert state.state == "running" and state.folder == str(out / "run-1") and state.report is None
            with pytest.raises(FieldmarkError, match="running"):
                job.start("5m")
        finally:
            assert job.stop().state != "running"
        assert job.stop().state != "running"


@pytest.mark.slow
def test_a_training_on_the_labels(photos: Path, out: Path):
    with open_it(photos, out) as session:
        job = TrainingJob(session)
        job.start("30s")
        while (state := job.state()).state == "running":
            time.sleep(0.5)
    assert state.state == "done" and state.line and state.seconds > 1, state
    assert state.folder and state.report and Path(state.report).exists()
    assert fieldmark.load(state.folder).classes == ["cross", "disc", "square"]
    assert state.accuracy is None or 0 <= state.accuracy <= 1
    assert not [name for name in os.listdir(out) if name.endswith(".half")]


def test_an_image_that_cannot_be_read_is_listed(tmp_path: Path):
    (photos := tmp_path / "photos").mkdir()
    for k in range(4):
        Image.new("RGB", (32, 32), (60 * k, 90, 30)).save(photos / f"{k}.png")
    (photos / "broken.png").write_bytes((photos / "1.png").read_bytes()[:40])
    with fieldmark.teach(photos, out=tmp_path / "out", progress=False) as session:
        assert "broken.png" not in {question.path for question in session.next(9)}
    rows = (tmp_path / "out" / "quarantine.csv").read_text().splitlines()
    assert rows[0] == "path,reason" and rows[1].startswith("broken.png,") and len(rows) == 2
