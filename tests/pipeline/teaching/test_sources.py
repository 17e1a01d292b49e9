"""What is given is read as it lies: labels where folders give them, everything else without."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from taught import collect, write, zipped

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.splits import read_split_file
from fieldmark.pipeline.teaching.images import TeachingImages, from_folder, merge
from fieldmark.pipeline.teaching.sources import SessionSettings, open_session_images

CLASSES = ("cat/1.png", "cat/2.png", "dog/1.png", "狗/a,b.png")
LABELS = {name: name.partition("/")[0] for name in CLASSES}


def check(images: TeachingImages, folder: Path, names: set[str], labels: dict[str, str]) -> None:
    """These images with these labels and no others, whose bytes are those of the files below `folder`."""
    assert set(images.sources) == names and images.labels == labels
    for name in images.sources:
        content = (folder / name).read_bytes()
        assert images.read_bytes(name) == content and images.signature(name)[0] > 0
        file = images.file_of(name)
        assert file is None or (file.is_absolute() and file.read_bytes() == content)


def test_class_folders(tmp_path: Path):
    images = collect(write(tmp_path / "p", *CLASSES))
    check(images, tmp_path / "p", set(CLASSES), LABELS)
    assert list(images.sources) == sorted(CLASSES) and not images.tests


def test_a_folder_without_classes(tmp_path: Path):
    names = ("1.png", "2.png", "deep/er/3.png")
    check(collect(write(tmp_path / "p", *names)), tmp_path / "p", set(names), {})


def test_images_beside_class_folders_have_no_label(tmp_path: Path):
    names = (*CLASSES, "loose.png", "another.png")
    images = collect(write(tmp_path / "p", *names))
    check(images, tmp_path / "p", set(names), LABELS)
    assert list(images.sources) == sorted(names)


def test_names_of_folders_are_ignored_if_one_wants(tmp_path: Path):
    check(collect(write(tmp_path / "p", *CLASSES), ignore_labels=True), tmp_path / "p", set(CLASSES), {})


def test_the_test_split_and_images_without_a_label(tmp_path: Path):
    names = [f"{split}/{label}/{k}.png" for split in ("train", "test") for label in ("cat", "dog") for k in range(2)]
    names += ["unlabelled/1.png", "unlabelled/2.png"]
    images = collect(write(tmp_path / "p", *names))
    check(images, tmp_path / "p", set(names), {name: name.split("/")[1] for name in names[:8]})
    assert images.tests == {name for name in names if name.startswith("test/")}


@pytest.mark.parametrize("ignore_labels", [True, False])
def test_an_archive(tmp_path: Path, ignore_labels: bool):
    folder = write(tmp_path / "p", *CLASSES)
    images = collect(zipped(folder), ignore_labels=ignore_labels)
    check(images, folder, set(CLASSES), {} if ignore_labels else LABELS)
    assert all(images.file_of(name) is None for name in images.sources)


def test_an_archive_without_classes(tmp_path: Path):
    folder = write(tmp_path / "p", "1.png", "2.png")
    check(collect(zipped(folder)), folder, {"1.png", "2.png"}, {})


@pytest.mark.parametrize("ignore_labels", [True, False])
@pytest.mark.parametrize("is_archive", [True, False])
def test_another_content_has_another_signature(tmp_path: Path, is_archive: bool, ignore_labels: bool):
    folder = write(tmp_path / "p", *CLASSES)
    data = zipped(folder) if is_archive else folder
    before = collect(data, ignore_labels=ignore_labels).signature("cat/1.png")
    assert collect(data, ignore_labels=ignore_labels).signature("cat/1.png") == before
    Image.new("RGB", (30, 30)).save(folder / "cat/1.png")
    data = zipped(folder) if is_archive else folder
    os.utime(data if is_archive else folder / "cat/1.png", (1, 1))
    assert collect(data, ignore_labels=ignore_labels).signature("cat/1.png") not in (before, (0, 0))


def test_a_manifest_names_the_images_and_no_others(tmp_path: Path):
    folder = write(tmp_path / "p", *CLASSES, "loose.png")
    file = folder / "list.csv"
    rows = [{"path": name, "label": label, "split": "train"} for name, label in LABELS.items()]
    rows[0]["split"] = "test"
    io.write_csv(file, rows, ["path", "label", "split"])
    images = collect(file)
    check(images, folder, set(CLASSES), LABELS)
    assert images.tests == {CLASSES[0]}


def test_a_run_brings_its_dataset_and_its_test_images(small_run: Path, small_photos: Path):
    images = collect(small_run)
    photos = {str(path.relative_to(small_photos)) for path in small_photos.glob("*/*.jpg")}
    check(images, small_photos, photos, {name: name.partition("/")[0] for name in photos})
    tests = {row.path for row in read_split_file(small_run / "split.csv") if row.split == "test"}
    assert tests and images.tests == tests
    settings = SessionSettings(str(small_run))
    assert settings.model == small_run / "bundle" and SessionSettings(str(small_photos)).model is None


def test_more_images_have_no_labels_and_names_of_their_own(tmp_path: Path):
    data = write(tmp_path / "p", *CLASSES, "more/1.png", "more-2/1.png")
    more = write(tmp_path / "more", "cat/1.png", "1.png")
    images = collect(data, more)
    assert set(images.sources) - set(collect(data).sources) == {"more-3/cat/1.png", "more-3/1.png"}
    assert images.labels == collect(data).labels and images.read_bytes("more-3/1.png") == (more / "1.png").read_bytes()
    archive = collect(data, zipped(more))
    assert archive.read_bytes("more.zip/cat/1.png") == (more / "cat/1.png").read_bytes()
    assert collect(data, more).signature("more-3/1.png") == from_folder(more).signature("1.png")


def test_merging_loses_nothing():
    one = TeachingImages({"a/1": "x", "b": "y"}, {"a/1": "cat"}, frozenset({"b"}))
    both = merge(one, TeachingImages({"1": "z"}, {"1": "dog"}, frozenset({"1"})), "a")
    assert both.sources == {**one.sources, "a-2/1": "z"}
    assert both.labels == {"a/1": "cat", "a-2/1": "dog"} and both.tests == {"b", "a-2/1"}


def test_names_with_undecodable_bytes(tmp_path: Path):
    folder = write(tmp_path / "p", *CLASSES)
    name = os.fsdecode(b"cat/\xff.png")
    shutil.copy(folder / "cat/1.png", folder / name)
    check(collect(folder), folder, {*CLASSES, name}, LABELS | {name: "cat"})
    check(collect(folder, ignore_labels=True), folder, {*CLASSES, name}, {})


@pytest.mark.parametrize("ignore_labels", [True, False])
def test_what_is_missing_damaged_or_empty_is_refused(tmp_path: Path, ignore_labels: bool):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 no more")
    (tmp_path / "list.csv").write_text("path,label\n")
    for name in ("missing", "missing.zip", "empty", "damaged.zip"):
        with pytest.raises(FieldmarkError) as refused:
            collect(tmp_path / name, ignore_labels=ignore_labels)
        assert name in str(refused.value) and "\n" not in str(refused.value)
    good = write(tmp_path / "p", *CLASSES)
    for name in ("missing", "empty"):
        with pytest.raises(FieldmarkError, match=name):
            collect(good, tmp_path / name, ignore_labels)
    if not ignore_labels:
        with pytest.raises(FieldmarkError):
            collect(tmp_path / "list.csv")


# ---- settings


def test_settings_come_back(tmp_path: Path):
    settings = SessionSettings(os.fsdecode(b"/data/\xff"), "/more", True, 3)
    settings.save(tmp_path)
    assert SessionSettings.load(tmp_path) == settings


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"data": "a", "format": 2}', '{"data": "a", "new": 1}', "{"])
def test_settings_of_other_versions_are_refused(tmp_path: Path, content: str):
    (tmp_path / "session.json").write_text(content)
    with pytest.raises(FieldmarkError, match=r"no session of this version|damaged"):
        SessionSettings.load(tmp_path)
    with pytest.raises(FieldmarkError, match="no session"):
        SessionSettings.load(tmp_path / "none")


def test_a_session_has_two_images_or_more(tmp_path: Path):
    SessionSettings(str(write(tmp_path / "p", "1.png"))).save(tmp_path)
    with pytest.raises(FieldmarkError, match="fewer than two"):
        open_session_images(tmp_path)
    write(tmp_path / "p", "1.png", "2.png")
    opened = open_session_images(tmp_path)
    assert len(opened.store) == 2 and sorted(opened.order) == [0, 1] and opened.model is None


def test_the_order_of_reading_is_the_same_again(tmp_path: Path):
    SessionSettings(str(write(tmp_path / "p", *CLASSES, *(f"{k}.png" for k in range(9))))).save(tmp_path)
    np.testing.assert_array_equal(open_session_images(tmp_path).order, open_session_images(tmp_path).order)
