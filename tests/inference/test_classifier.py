"""The prediction for an image is the same whichever way it comes in, and a bad image is a row, never an end."""

import io
import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import preprocess
from fieldmark.data.locate import find_images
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction


@pytest.fixture(scope="module")
def classifier(small_run: Path) -> Classifier:
    return fieldmark.load(small_run)


def without_path(predictions: list[Prediction]) -> list[Prediction]:
    return [replace(prediction, path="") for prediction in predictions]


@pytest.fixture(scope="module")
def alone(classifier: Classifier, small_photos: Path) -> dict[str, Prediction]:
    """The prediction for each image by itself."""
    return {str(f): classifier.predict(f) for f in sorted(small_photos.glob("*/*.jpg"))}


def test_it_knows_the_photos(alone: dict[str, Prediction]):
    assert sum(Path(path).parent.name == prediction.label for path, prediction in alone.items()) > 40
    for path, prediction in alone.items():
        row = prediction.to_dict()
        assert list(row) == ["path", "label", "confidence", "known", "top", "model"]
        assert row["path"] == prediction.path == path and row["known"] is prediction.known
        assert row["top"][0] == {"label": prediction.label, "confidence": prediction.confidence}
        assert Prediction.from_dict(json.loads(json.dumps(row))) == prediction
        confidences = [ranked.confidence for ranked in prediction.top]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1, abs=1e-5)


def test_every_way_in_gives_the_same_floats(
    classifier: Classifier, alone: dict[str, Prediction], small_photos: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = list(alone.values())
    assert classifier.predict(small_photos) == expected
    assert classifier.predict(str(small_photos)) == expected
    assert classifier.predict(list(alone)) == expected
    assert classifier.predict(map(Path, alone)) == expected
    assert classifier.predict(str(small_photos / "*" / "*.jpg")) == expected
    assert classifier.predict(str(small_photos / "*")) == expected
    assert classifier.predict(str(small_photos / "**")) == expected
    assert without_path(classifier.predict([Path(path).read_bytes() for path in alone])) == without_path(expected)
    listed = "\n".join(alone).encode() + b"\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert classifier.predict("-") == expected


def test_what_came_before_changes_nothing(classifier: Classifier, alone: dict[str, Prediction]):
    order = list(alone) * 2
    random.Random(0).shuffle(order)
    assert classifier.predict(order) == [alone[path] for path in order]


@pytest.mark.parametrize("part", [".", "bundle", "bundle/model.onnx"])
def test_run_bundle_and_file_answer_alike(part: str, small_run: Path, alone: dict[str, Prediction]):
    path, prediction = next(iter(alone.items()))
    assert Classifier(small_run / part).predict(path) == prediction


def test_bad_photos_are_rows_in_their_place(classifier: Classifier, alone: dict[str, Prediction], tmp_path: Path):
    good = next(iter(alone))
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a photo")
    (tmp_path / "half.jpg").write_bytes(Path(good).read_bytes()[:900])
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    bad = [str(tmp_path / name) for name in ("zero.jpg", "text.jpg", "half.jpg", "link.jpg", "none.jpg", "*.none")]
    mixed = [path for other in bad for path in (other, good)]
    predictions = classifier.predict(mixed)
    assert [prediction.path for prediction in predictions] == mixed
    assert predictions[1::2] == [alone[good]] * len(bad)
    for prediction in predictions[::2]:
        assert list(prediction.to_dict()) == ["path", "error"]
        assert prediction.error and "\n" not in prediction.error and prediction.label is None
        assert Prediction.from_dict(prediction.to_dict()) == prediction
    (nameless,) = classifier.predict([b"GIF89a"])
    assert nameless.path == "" and nameless.error
    (tmp_path / "empty").mkdir()
    assert classifier.predict([]) == classifier.predict(tmp_path / "empty") == []


@pytest.mark.parametrize("top", [1, 2, 3, 5, 1000])
def test_top(classifier: Classifier, alone: dict[str, Prediction], top: int):
    path, prediction = next(iter(alone.items()))
    cut = classifier.predict(path, top=top)
    assert cut == replace(prediction, top=prediction.top[:top])
    assert len(cut.top) == min(top, 3)


def test_the_threshold_decides_what_is_known(small_run: Path, alone: dict[str, Prediction]):
    classifier = Classifier(small_run)
    path = next(iter(alone))
    score = float(classifier.infer(preprocess(path, classifier.info.preprocessing))["known_score"])
    for least, known in ((score, True), (score + 1e-4, False)):
        classifier.info = replace(classifier.info, threshold=least)
        assert classifier.predict(path).known is known


# ---- which photos


def test_a_folder_is_walked_in_order_without_litter(tmp_path: Path):
    wanted = ["B.JPG", "a b.png", "a/2.jpg", "a/b/长 'x'.webp", "z[1].jpeg"]
    for name in [*wanted, ".hidden.jpg", ".git/1.jpg", "Thumbs.db", "notes.txt", "a/.x/3.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(path, tmp_path) for path, _ in find_images([tmp_path])]
    assert found == ["B.JPG", "a b.png", "z[1].jpeg", "a/2.jpg", "a/b/长 'x'.webp"]
    assert sorted(found) == sorted(wanted)
    named = str(tmp_path / "z[1].jpeg")  # looks like a pattern, but is there
    assert list(find_images([named])) == [(named, named)]
    pattern = str(tmp_path / "*.jp*g")
    assert [path for path, _ in find_images([pattern])] == [named]


def test_names_on_stdin_keep_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = os.fsencode(tmp_path) + b"/caf\xe9 .jpg"
    Path(os.fsdecode(name)).touch()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(name + b"\r\n\n" + name), encoding="utf-8"))
    assert [os.fsencode(path) for path, _ in find_images(["-"])] == [name, name]


def test_what_is_done_is_left_out(classifier: Classifier, alone: dict[str, Prediction], small_photos: Path):
    some = set(list(alone)[::3])
    assert list(classifier.stream([small_photos], skip=some.__contains__)) == [
        prediction for path, prediction in alone.items() if path not in some
    ]


def test_several_at_once_are_as_they_are_alone(classifier: Classifier, alone: dict[str, Prediction]):
    photos = [preprocess(path, classifier.info.preprocessing) for path in list(alone)[:5]]
    for one, photo in zip(classifier.infer_batch(np.stack(photos)), photos, strict=True):
        for name, value in classifier.infer(photo).items():
            np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-4 if name == "evidence" else 1e-5)


# ---- a model trained on crops to bounding boxes


def test_a_model_trained_on_crops_warns_once(
    crops_model: Path, small_run: Path, small_photos: Path, tmp_path: Path, here, caplog: pytest.LogCaptureFixture
):
    photo = next(small_photos.glob("*/*.jpg"))
    classifier = fieldmark.load(crops_model)
    predictions = [classifier.predict(photo) for _ in range(2)]
    assert predictions[0] == predictions[1] == fieldmark.load(small_run).predict(photo)
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "fieldmark.inference")]
    for options in (["--json"], ["--heatmap", tmp_path / "maps", "--json"], ["--csv", tmp_path / "predictions.csv"]):
        done = here("predict", crops_model, photo, photo, *options)
        assert done.code == 0 and done.err.count("warning: the model was trained on images cropped") == 1
        assert here("predict", small_run, photo, "--json").err == ""
    assert len(json.loads(here("predict", crops_model, photo, "--json").out)) == 1


# ---- execution providers


@pytest.mark.parametrize(
    ("installed", "broken", "used"),
    [
        (["CPUExecutionProvider"], False, ["CPUExecutionProvider"]),
        (["AzureExecutionProvider", "CPUExecutionProvider"], False, ["CPUExecutionProvider"]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            False,
            ["CUDAExecutionProvider", "CPUExecutionProvider"],
        ),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], True, ["CPUExecutionProvider"]),
    ],
)
def test_a_gpu_is_used_where_onnxruntime_supports_it(
    installed: list[str], broken: bool, used: list[str], small_run: Path, alone, monkeypatch: pytest.MonkeyPatch
):
    """A GPU without a working driver falls back to the CPU, without a word on stdout."""
    create, sessions = onnxruntime.InferenceSession, []

    def session(model: str, options: Any, providers: list[tuple[str, dict[str, str]]], **others: Any) -> Any:
        names = [name for name, _ in providers]
        sessions.append(names)
        if broken and "CUDAExecutionProvider" in names:
            raise RuntimeError("no driver")
        return create(model, options, providers=["CPUExecutionProvider"], **others)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: installed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    classifier = Classifier(small_run)
    assert sessions[-1] == used and len(sessions) == 1 + broken
    path, prediction = next(iter(alone.items()))
    assert classifier.predict(path) == prediction
    Classifier(small_run, providers=["CPUExecutionProvider"])
    assert sessions[-1] == ["CPUExecutionProvider"]


# ---- what is no model


def test_no_model(tmp_path: Path, small_photos: Path):
    for path in (tmp_path, tmp_path / "none", small_photos, next(small_photos.glob("*/*.jpg"))):
        with pytest.raises(FieldmarkError, match="is no run, bundle or exported model"):
            Classifier(path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(FieldmarkError, match="--resume"):
        Classifier(tmp_path)
