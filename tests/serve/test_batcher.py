"""Photos that wait together are judged together, and get the answers that they get alone."""

import base64
import io
import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.data.image import prepare
from fieldmark.data.thumbnails import TILE
from fieldmark.explanation import overlay
from fieldmark.serve.batcher import BATCHES, Desk, fastest, layer


@pytest.fixture(scope="module")
def classifier(small_run: Path) -> fieldmark.load:
    return fieldmark.load(small_run)


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_are_those_of_predict(batch: int, small_run: Path, small_photos: Path, monkeypatch: pytest.MonkeyPatch):
    classifier = fieldmark.load(small_run)
    desk, files = Desk(classifier, batch), sorted(small_photos.glob("*/*.jpg"))
    expected = classifier.predict([*map(str, files)])
    sizes, judge_all, lock = [], classifier.judge_all, threading.Lock()

    def counted(photos: np.ndarray):
        with lock:
            sizes.append(len(photos))
        return judge_all(photos)

    monkeypatch.setattr(classifier, "judge_all", counted)
    asked = [desk.ask(str(file), file.read_bytes()) for file in files] + [desk.ask("bad", b"no photo, " * 9)]
    wait(asked)
    desk.close()
    for found, alone in zip((one.result() for one in asked), expected, strict=False):
        assert (found["path"], found["label"], found["known"]) == (alone["path"], alone["label"], alone["known"])
        assert found["confidence"] == pytest.approx(alone["confidence"], abs=1e-5)
    assert asked[-1].result() == {"path": "bad", "error": "not a photo (text?)"}
    assert sum(sizes) == len(files) and max(sizes) == batch


def test_nobody_works_for_what_was_given_up(classifier, small_photos: Path):
    desk, content = Desk(classifier, 1), next(small_photos.glob("*/*.jpg")).read_bytes()
    asked = [desk.ask(str(k), content) for k in range(40)]
    dropped = [one for one in asked[20:] if one.cancel()]
    desk.close()
    assert dropped and all(one.cancelled() for one in dropped)
    assert all(one.result()["label"] for one in asked if one not in dropped)


def test_a_fault_is_told_and_the_next_photo_answered(classifier, small_photos: Path, monkeypatch: pytest.MonkeyPatch):
    desk, content = Desk(classifier, 1), next(small_photos.glob("*/*.jpg")).read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(classifier, "judge_all", lambda photos: 1 / 0)
        assert isinstance(desk.ask("a", content).exception(30), ZeroDivisionError)
    assert desk.ask("a", content).result(30)["label"]
    desk.close()


def test_the_batch_is_measured(classifier):
    assert fastest(classifier, 2, least_s=0.02) in BATCHES


def test_the_layer_covers_what_the_overlay_covers(classifier, small_photos: Path):
    photo = prepare(next(small_photos.glob("*/*.jpg")), classifier.info["preprocessing"])
    evidence = classifier.judge(photo)["evidence"]
    drawn = overlay.layer(evidence, photo.shape[0])
    laid = Image.alpha_composite(Image.fromarray(photo).convert("RGBA"), drawn).convert("RGB")
    np.testing.assert_allclose(np.asarray(laid, int), overlay.overlay(photo, evidence).astype(int), atol=2)
    small = Image.open(io.BytesIO(base64.b64decode(layer(evidence).partition(",")[2])))
    assert small.mode == "RGBA" and small.width == small.height <= TILE
    assert not np.asarray(overlay.layer(np.zeros((4, 4), np.float32), 8))[..., 3].any()
