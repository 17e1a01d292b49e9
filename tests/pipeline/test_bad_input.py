"""Everything odd that people's folders hold, at once and end to end: listed, warned of, or refused in one line."""

import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from containers import bomb, mirrored
from PIL import Image

from fieldmark.data.splits import read_split_file
from fieldmark.inference.bundle import read_trained_on
from fieldmark.pipeline.run import exclusive_run

NAMES = ("健康 玉米叶.jpg", "two  spaces.jpg", "'single' \"double\".jpg", "line\nbreak.jpg", "return\r.jpg", "-rf.jpg")
NO_TEXT = b"caf\xe9.jpg"
NO_TEXT_CLASS = os.fsdecode(b"caf\xe9")
UNREADABLE = {
    "disc/truncated.jpg": "truncated",
    "disc/empty.jpg": "empty file",
    "square/text.jpg": "not a photo (text?)",
    "broken/a.jpg": "not a photo (text?)",
    "square/bomb.png": "30000 x 30000 pixels, more than the limit of 89,478,485 (FIELDMARK_MAX_PIXELS sets it)",
}

COUNTS = {"alone": 1, "broken": 1, NO_TEXT_CLASS: 4, "cross, blue": 24, "disc": 22, "square": 21, "健康": 4}


def jpeg(image: Image.Image, **options) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=90, **options)
    return packed.getvalue()


def state(folder: Path) -> dict[bytes, tuple]:
    """Every name below a folder, as bytes, with its contents and times."""
    found = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(parent, name)
            told = os.stat(path)
            content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest() if name in files else b""
            found[path] = (told.st_mtime_ns, told.st_ctime_ns, told.st_mode, content)
    return found


@pytest.fixture(scope="module")
def odd(small_photos, drawing, tmp_path_factory) -> Path:
    """Good photos of three classes, and among them all that the issue names."""
    root = tmp_path_factory.mktemp("odd") / "photos"
    shutil.copytree(small_photos, root)
    images = iter(drawing(k % 3, 100 + k) for k in range(100))
    disc, square, cross = (root / name for name in ("disc", "square", "cross, blue"))
    (disc / "truncated.jpg").write_bytes(jpeg(next(images))[:-900])
    (disc / "empty.jpg").touch()
    (square / "text.jpg").write_text("no photo")
    (square / "bomb.png").write_bytes(bomb())
    next(images).save(disc / "webp.jpeg", "WEBP")
    next(images).convert("CMYK").save(disc / "cmyk.jpg")
    grey = np.asarray(next(images).convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(disc / "deep.png")
    next(images).quantize(64).save(square / "palette.png", transparency=0)
    next(images).convert("RGBA").save(square / "rgba.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    (square / "turned.jpg").write_bytes(jpeg(next(images), exif=turned))
    next(images).save(cross / "moving.gif", save_all=True, append_images=[next(images), next(images)])
    for name in NAMES:
        (cross / name).write_bytes(jpeg(next(images)))
    with open(os.path.join(os.fsencode(cross), NO_TEXT), "wb") as file:
        file.write(jpeg(next(images)))
    (disc / "deep" / "er").mkdir(parents=True)
    (disc / "deep" / "er" / "nested.JPG").write_bytes(jpeg(next(images)))
    for name, content in {".hidden.jpg": b"x", "Thumbs.db": b"x", ".DS_Store": b"x", "notes.txt": b"x"}.items():
        (disc / name).write_bytes(content)
    (root / ".cache").mkdir()
    (root / ".cache" / "x.jpg").write_bytes(b"x")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "empty").mkdir()
    (root / "alone").mkdir()
    (root / "alone" / "only.jpg").write_bytes(jpeg(next(images)))
    (root / "broken").mkdir()
    (root / "broken" / "a.jpg").write_text("no photo")
    for name in ("健康", NO_TEXT_CLASS):
        (root / name).mkdir()
        for k in range(4):
            (root / name / f"{k}.jpg").write_bytes(jpeg(next(images)))
    return root


@pytest.fixture(scope="module")
def odd_run(odd, tiny_options, tmp_path_factory, command):
    """The folder before, the run, and how it ended."""
    before, out = state(odd), tmp_path_factory.mktemp("odd run") / "run 1"
    done = command("train", odd, "--out", out, "--json", *tiny_options)
    assert done.code == 0, done.err
    return before, out, done


def test_check_lists_what_cannot_be_read(here, odd):
    before = state(odd)
    done = here("check", odd, "--json")
    assert done.code == 1 and done.err == ""
    reasons = {found["path"]: found["reason"] for found in done.json["unreadable"]}
    assert reasons == UNREADABLE
    assert done.json["classes"] == COUNTS
    assert state(odd) == before


def test_training_keeps_what_it_cannot_read_out_and_says_so(odd_run):
    _, run, done = odd_run
    with (run / "quarantine.csv").open(newline="") as file:
        assert {row["path"]: row["reason"] for row in csv.DictReader(file)} == UNREADABLE
    warnings = done.json["warnings"]
    for said in (
        "5 unreadable photos",
        "without photos left out: empty",
        "without readable photos to train on left out: broken",
        "not tested: alone",
        "notes.txt",
    ):
        assert sum(said in warning for warning in warnings) == 1, warnings
        assert said in done.err and said in (run / "log.txt").read_text(encoding="utf-8")
    assert not any("Thumbs" in warning or "hidden" in warning or ".DS" in warning for warning in warnings)


def test_training_uses_everything_else(odd, odd_run):
    _, run, done = odd_run
    with (run / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    sides = {os.fsencode(row["path"]): row["split"] for row in rows}
    expected = {f"cross, blue/{name}".encode() for name in NAMES} | {b"cross, blue/" + NO_TEXT}
    expected |= {b"disc/webp.jpeg", b"disc/cmyk.jpg", b"disc/deep.png", b"square/palette.png", b"square/rgba.png"}
    expected |= {b"square/turned.jpg", b"cross, blue/moving.gif", b"disc/deep/er/nested.JPG", b"alone/only.jpg"}
    assert expected <= sides.keys() and len(rows) == sum(COUNTS.values()) - len(UNREADABLE)
    assert all((odd / os.fsdecode(path)).is_file() for path in sides)
    assert sides[b"alone/only.jpg"] == "train"
    assert done.json["classes"] == sorted(COUNTS.keys() - {"broken"})
    assert done.json["test"]["n"] == list(sides.values()).count("test") > 0
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8")) == done.json
    packed = json.loads((run / "resume" / "packed.json").read_text(encoding="utf-8"))
    assert {os.fsencode(path) for path in packed} == sides.keys()


def test_the_report_is_there_and_the_folder_as_it_was(odd, odd_run):
    before, run, _ = odd_run
    assert "健康" in (run / "report.html").read_text(encoding="utf-8")
    assert "健康" in (run / "metrics.json").read_text(encoding="utf-8")
    assert state(odd) == before


def test_predict_and_evaluate_take_the_same_photos(here, odd, odd_run):
    _, run, trained = odd_run
    done = here("predict", run, odd, "--json")
    wrong = {os.path.relpath(answer["path"], odd) for answer in done.json if "error" in answer}
    assert done.code == 1 and wrong == UNREADABLE.keys() and len(done.json) == sum(COUNTS.values())
    assert {row["label"] for row in done.json[0]["top"]} <= COUNTS.keys() - {"broken"}
    again = here("evaluate", run, "--json")
    assert again.json["confusion"] == trained.json["test"]["confusion"]


# ---- folders that are none


def test_folders_that_cannot_be_trained_on(here, small_photos, tiny_options, tmp_path):
    flat, one, broken, deep = (tmp_path / name for name in ("flat", "one", "broken", "deep"))
    shutil.copytree(small_photos / "disc", flat)
    shutil.copytree(small_photos / "disc", one / "disc")
    (one / "square").mkdir()
    shutil.copytree(one, broken, dirs_exist_ok=True)
    (broken / "square" / "a.jpg").write_text("no photo")
    shutil.copytree(small_photos, deep / "all")
    shutil.copy(small_photos / "disc" / "00.jpg", deep / "all")  # so that it is no folder around class folders
    said = {
        flat: "into a folder named after it",
        tmp_path / "none": "no such folder; give",
        small_photos / "disc" / "00.jpg": "give the folder of photos",
        one: "a classifier needs two",
        deep: f"give {deep / 'all'}",
    }
    for folder, words in said.items():
        for verb in (["check"], ["train", "--out", tmp_path / "run"]):
            assert words in here(verb[0], folder, *verb[1:], "--json").refusal
    refused = here("train", broken, "--out", tmp_path / "run", *tiny_options)
    assert refused.code == 2 and "fewer than two classes are left; see `fieldmark check`" in refused.err
    assert not (tmp_path / "run").exists()


def test_given_splits_that_leak_and_have_no_test(here, small_photos, tiny_options, tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    for label in ("disc", "square"):
        shutil.copytree(small_photos / label, photos / "train" / label)
        (photos / "val" / label).mkdir(parents=True)
        for name in ("00.jpg", "01.jpg"):
            (photos / "train" / label / name).rename(photos / "val" / label / name)
    shutil.copy(photos / "train" / "disc" / "05.jpg", photos / "val" / "disc" / "again.jpg")
    line = here("train", photos, "--out", run, *tiny_options).refusal
    assert "train/disc/05.jpg = val/disc/again.jpg" in line and "--allow-leaks" in line
    done = here(
        "train", photos, "--out", run, "--allow-leaks", "--json", *tiny_options
    )  # the same --out: nothing stands there
    assert done.code == 0, done.err
    leaks, testless = ([w for w in done.json["warnings"] if said in w] for said in ("several splits", "no test/"))
    assert "train/disc/05.jpg" in leaks[0] and "15 % of the images in train/ become the test set" in testless[0]
    with (run / "split.csv").open(newline="") as file:
        sides = [(row["path"].split("/")[0], row["split"]) for row in csv.DictReader(file)]
    assert set(sides) == {("train", "train"), ("train", "test"), ("val", "val")}
    assert sides.count(("train", "test")) == done.json["test"]["n"] == 4


# ---- runs of a later version


def test_a_bundle_of_a_later_version(here, small_run, small_photos, tmp_path):
    import onnx

    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("resume"))
    info = json.loads((run / "bundle" / "bundle.json").read_text()) | {"format": 99}
    (run / "bundle" / "bundle.json").write_text(json.dumps(info))
    model = onnx.load(str(run / "bundle" / "model.onnx"))
    next(p for p in model.metadata_props if p.key == "fieldmark").value = json.dumps(info)
    onnx.save(model, str(run / "bundle" / "model.onnx"))
    for verb in (["predict", run, small_photos / "disc" / "00.jpg"], ["evaluate", run]):
        line = here(*verb, "--json").refusal
        assert "a later Fieldmark (format 99" in line and "install that one" in line


def test_going_on_with_a_run_of_a_later_version(here, small_photos, tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 3\ndepth_of_thought: 7\n")
    line = here("train", small_photos, "--out", tmp_path, "--resume").refusal
    assert "'depth_of_thought'" in line and "install that one" in line
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_weights_that_know_the_test_images(here, small_photos, small_run, tmp_path):
    """Another split over weights of the same images: those that the weights know stay in training."""
    weights, words = small_run / "bundle" / "model.safetensors", ("--epochs", 0, "--image-size", 64, "--batch", 8)
    known = {p.path for p in read_split_file(small_run / "split.csv") if p.split != "test"}
    done = here("train", small_photos, "--out", tmp_path / "run", "--seed", 1, "--weights", weights, *words)
    assert done.code == 0, done.err
    assert "the initial weights were trained on 42 images of these" in done.err
    splits = {p.path: p.split for p in read_split_file(tmp_path / "run" / "split.csv")}
    assert {splits[path] for path in known} == {"train"}
    assert set(splits.values()) == {"train", "val", "test"}
    before, after = read_trained_on(small_run), read_trained_on(tmp_path / "run")
    assert before and after and after.contains(before).all()


def test_a_finished_run_is_not_the_answer_for_other_images(here, small_photos, tmp_path, tiny_options):
    photos = shutil.copytree(small_photos, tmp_path / "photos")
    words = ("train", photos, "--out", tmp_path / "run", *tiny_options)
    assert here(*words).code == 0
    assert here(*words, "--resume").code == 0
    mirrored(small_photos / "disc", photos / "a new class")
    assert "16 new, 0 missing" in here(*words, "--resume").refusal
    shutil.rmtree(photos)
    assert here(*words, "--resume").code == 0  # it is finished, and needs them no more


def test_two_trainings_into_one_folder(here, small_photos, tmp_path, tiny_options):
    with exclusive_run(tmp_path / "run"):
        refusal = here("train", small_photos, "--out", tmp_path / "run", *tiny_options).refusal
    assert "another process is training into" in refusal
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_set(here, small_photos, tmp_path, tiny_options):
    done = here("train", small_photos, "--out", tmp_path / "run", *tiny_options, "--batch", 5000, "--epochs", 1)
    assert done.code == 0, done.err
    assert "training images" in done.err and "the batch is 36" in done.err
