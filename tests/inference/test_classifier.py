"""A photo's answer is the same whichever way it comes in, and a bad photo is a row, never an end."""

import io
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import preprocess
from fieldmark.data.locate import find_images
from fieldmark.inference.classifier import PREFETCH_PER_WORKER, Classifier, parallel_map


@pytest.fixture(scope="module")
def classifier(small_run: Path) -> Classifier:
    return fieldmark.load(small_run)


def without_path(answers: list[dict]) -> list[dict]:
    return [{key: value for key, value in answer.items() if key != "path"} for answer in answers]


@pytest.fixture(scope="module")
def alone(classifier: Classifier, small_photos: Path) -> dict[str, dict]:
    """The answer to each photo by itself."""
    return {str(f): classifier.predict(f)[0] for f in sorted(small_photos.glob("*/*.jpg"))}


def test_it_knows_the_photos(alone: dict[str, dict]):
    assert sum(Path(path).parent.name == answer["label"] for path, answer in alone.items()) > 40
    for path, answer in alone.items():
        assert list(answer) == ["path", "label", "confidence", "known", "top"]
        assert answer["path"] == path
        assert answer["top"][0] == {"label": answer["label"], "confidence": answer["confidence"]}
        confidences = [row["confidence"] for row in answer["top"]]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1, abs=1e-5)


def test_every_way_in_gives_the_same_floats(
    classifier: Classifier, alone: dict[str, dict], small_photos: Path, monkeypatch: pytest.MonkeyPatch
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


def test_what_came_before_changes_nothing(classifier: Classifier, alone: dict[str, dict]):
    order = list(alone) * 2
    random.Random(0).shuffle(order)
    assert classifier.predict(order) == [alone[path] for path in order]


@pytest.mark.parametrize("part", [".", "bundle", "bundle/model.onnx"])
def test_run_bundle_and_file_answer_alike(part: str, small_run: Path, alone: dict[str, dict]):
    path, answer = next(iter(alone.items()))
    assert Classifier(small_run / part).predict(path) == [answer]


def test_bad_photos_are_rows_in_their_place(classifier: Classifier, alone: dict[str, dict], tmp_path: Path):
    good = next(iter(alone))
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a photo")
    (tmp_path / "half.jpg").write_bytes(Path(good).read_bytes()[:900])
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    bad = [str(tmp_path / name) for name in ("zero.jpg", "text.jpg", "half.jpg", "link.jpg", "none.jpg", "*.none")]
    mixed = [path for other in bad for path in (other, good)]
    answers = classifier.predict(mixed)
    assert [answer["path"] for answer in answers] == mixed
    assert answers[1::2] == [alone[good]] * len(bad)
    for answer in answers[::2]:
        assert list(answer) == ["path", "error"]
        assert answer["error"] and "\n" not in answer["error"]
    (nameless,) = classifier.predict(b"GIF89a")
    assert nameless["path"] == "" and nameless["error"]
    (tmp_path / "empty").mkdir()
    assert classifier.predict([]) == classifier.predict(tmp_path / "empty") == []


@pytest.mark.parametrize("top", [1, 2, 3, 5, 1000])
def test_top(classifier: Classifier, alone: dict[str, dict], top: int):
    path, answer = next(iter(alone.items()))
    (found,) = classifier.predict(path, top=top)
    assert found == answer | {"top": answer["top"][:top]}
    assert len(found["top"]) == min(top, 3)


def test_the_threshold_decides_what_is_known(small_run: Path, alone: dict[str, dict]):
    classifier = Classifier(small_run)
    path = next(iter(alone))
    score = float(classifier.infer(preprocess(path, classifier.info["preprocessing"]))["known_score"])
    for least, known in ((score, True), (score + 1e-4, False)):
        classifier.info = classifier.info | {"threshold": least}
        assert classifier.predict(path)[0]["known"] is known


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


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5))
def test_looking_ahead_keeps_the_order(numbers: list[int], workers: int):
    assert list(parallel_map(((str(n), n) for n in numbers), lambda n: n * n, workers)) == [
        (str(n), n * n) for n in numbers
    ]


def test_it_looks_only_so_far_ahead():
    """Of a million photos none is looked for before it is needed, nor behind the last that is asked for."""
    read, worked = [], []
    looks = parallel_map(((n, n) for n in range(1000) if not read.append(n)), worked.append, 2)
    for _ in range(3):
        next(looks)
    looks.close()
    assert len(worked) <= len(read) <= 3 + 2 * PREFETCH_PER_WORKER + 1


def test_what_is_done_is_left_out(classifier: Classifier, alone: dict[str, dict], small_photos: Path):
    some = set(list(alone)[::3])
    assert list(classifier.stream([small_photos], skip=some.__contains__)) == [
        a for p, a in alone.items() if p not in some
    ]


def test_several_at_once_are_as_they_are_alone(classifier: Classifier, alone: dict[str, dict]):
    photos = [preprocess(path, classifier.info["preprocessing"]) for path in list(alone)[:5]]
    for one, photo in zip(classifier.infer_batch(np.stack(photos)), photos, strict=True):
        for name, value in classifier.infer(photo).items():
            np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-4 if name == "evidence" else 1e-5)


def test_a_fault_while_looking_ahead_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(parallel_map([("a", 1), ("b", 0), ("c", 1)], lambda n: 1 / n))


# ---- what is no model


def test_no_model(tmp_path: Path, small_photos: Path):
    for path in (tmp_path, tmp_path / "none", small_photos, next(small_photos.glob("*/*.jpg"))):
        with pytest.raises(FieldmarkError, match="is no run, bundle or exported model"):
            Classifier(path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(FieldmarkError, match="--resume"):
        Classifier(tmp_path)
