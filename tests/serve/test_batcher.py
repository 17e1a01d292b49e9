"""Images that wait together are predicted as one batch, and get the predictions that they get alone."""

import base64
import io
import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.data.image import preprocess
from fieldmark.data.thumbnails import PAGE_THUMBNAIL_SIZE
from fieldmark.explanation import overlay
from fieldmark.serve.batcher import BATCH_SIZES, Batcher, encode_overlay, find_fastest_batch_size


@pytest.fixture(scope="module")
def classifier(small_run: Path) -> fieldmark.load:
    return fieldmark.load(small_run)


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_are_those_of_predict(batch: int, small_run: Path, small_photos: Path, monkeypatch: pytest.MonkeyPatch):
    classifier = fieldmark.load(small_run)
    batcher, files = Batcher(classifier, batch), sorted(small_photos.glob("*/*.jpg"))
    expected = classifier.predict([*map(str, files)])
    sizes, infer_batch, lock = [], classifier.infer_batch, threading.Lock()

    def counted(photos: np.ndarray):
        with lock:
            sizes.append(len(photos))
        return infer_batch(photos)

    monkeypatch.setattr(classifier, "infer_batch", counted)
    asked = [batcher.submit(str(file), file.read_bytes()) for file in files]
    asked.append(batcher.submit("bad", b"no photo, " * 9))
    wait(asked)
    batcher.close()
    for found, alone in zip((one.result() for one in asked), expected, strict=False):
        assert (found.path, found.label, found.known) == (alone.path, alone.label, alone.known)
        assert found.confidence == pytest.approx(alone.confidence, abs=1e-5)
    assert asked[-1].result().to_dict() == {"path": "bad", "error": "not a photo (text?)"}
    assert sum(sizes) == len(files) and max(sizes) == batch


def test_nobody_works_for_what_was_given_up(classifier, small_photos: Path):
    batcher, content = Batcher(classifier, 1), next(small_photos.glob("*/*.jpg")).read_bytes()
    asked = [batcher.submit(str(k), content) for k in range(40)]
    dropped = [one for one in asked[20:] if one.cancel()]
    batcher.close()
    assert dropped and all(one.cancelled() for one in dropped)
    assert all(one.result().label for one in asked if one not in dropped)


def test_a_fault_is_told_and_the_next_photo_answered(classifier, small_photos: Path, monkeypatch: pytest.MonkeyPatch):
    batcher, content = Batcher(classifier, 1), next(small_photos.glob("*/*.jpg")).read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(classifier, "infer_batch", lambda photos: 1 / 0)
        assert isinstance(batcher.submit("a", content).exception(30), ZeroDivisionError)
    assert batcher.submit("a", content).result(30).label
    batcher.close()


def test_the_batch_is_measured(classifier):
    assert find_fastest_batch_size(classifier, 2, min_seconds=0.02) in BATCH_SIZES


def test_the_layer_covers_what_the_overlay_covers(classifier, small_photos: Path):
    photo = preprocess(next(small_photos.glob("*/*.jpg")), classifier.info.preprocessing)
    evidence = classifier.infer(photo)["evidence"]
    drawn = overlay.heatmap_layer(evidence, photo.shape[0])
    laid = Image.alpha_composite(Image.fromarray(photo).convert("RGBA"), drawn).convert("RGB")
    np.testing.assert_allclose(np.asarray(laid, int), overlay.overlay_heatmap(photo, evidence).astype(int), atol=2)
    small = Image.open(io.BytesIO(base64.b64decode(encode_overlay(evidence).partition(",")[2])))
    assert small.mode == "RGBA" and small.width == small.height <= PAGE_THUMBNAIL_SIZE
    assert not np.asarray(overlay.heatmap_layer(np.zeros((4, 4), np.float32), 8))[..., 3].any()
