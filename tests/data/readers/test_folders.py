"""Folders as people have them -> a table, a warning, or one clear line."""

import os

import pytest
from containers import touch as make

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.catalog import Photo
from fieldmark.data.readers import read_catalog


def test_class_folders(tmp_path):
    catalog = read_catalog(make(tmp_path, "dog/b.JPG", "dog/a.jpg", "cat/deep/er/c.webp", "cat/d.tiff"))
    assert catalog.classes == ("cat", "dog")
    assert [photo.path for photo in catalog.photos] == ["cat/d.tiff", "cat/deep/er/c.webp", "dog/a.jpg", "dog/b.JPG"]
    assert {photo.split for photo in catalog.photos} == {None}
    assert catalog.warnings == ()
    assert read_catalog(str(tmp_path)) == catalog


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "VALID", "Testing"), ("train", "validation", "test")]
)
def test_given_splits(tmp_path, names):
    train, val, test = names
    catalog = read_catalog(make(tmp_path, *(f"{split}/{label}/1.jpg" for split in names for label in "ab")))
    assert {photo.path.split("/")[0]: photo.split for photo in catalog.photos} == {
        train: "train",
        val: "val",
        test: "test",
    }
    assert catalog.classes == ("a", "b")


def test_a_class_may_be_called_train(tmp_path):
    catalog = read_catalog(make(tmp_path, "train/steam/1.jpg", "bus/1.jpg"))
    assert catalog.classes == ("bus", "train")
    assert catalog.photos[1] == Photo("train/steam/1.jpg", "train", None)


def test_a_test_folder_without_classes_gives_no_photos(tmp_path):
    catalog = read_catalog(make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "models/c/1.jpg"))
    assert [photo.split for photo in catalog.photos] == ["train", "train"]
    assert catalog.warnings == (
        "1 photo in test left out: they have no label",
        "folders beside those of the splits left out: models",
    )


def test_names_in_any_script_survive(tmp_path):
    label, name = "鳥 🐦 'x\"", "名 前, 'a\" b.jpg"
    odd = os.fsdecode(b"\xff\xfe caf\xe9.jpg")
    catalog = read_catalog(make(tmp_path, f"{label}/{name}", f"{label}/{odd}", "b/1.jpg"))
    assert label in catalog.classes
    for photo in catalog.photos:
        assert (catalog.root / photo.path).read_bytes() == b"photo"
    assert {f"{label}/{name}", f"{label}/{odd}"} < {photo.path for photo in catalog.photos}
    assert printable(odd).encode()


def test_litter_is_passed_over_in_silence(tmp_path):
    litter = (
        "a/.hidden.jpg",
        "a/Thumbs.db",
        "a/desktop.ini",
        ".git/x.jpg",
        "__MACOSX/a/._1.jpg",
        ".DS_Store",
        "a/.x/1.jpg",
    )
    catalog = read_catalog(make(tmp_path, "a/1.jpg", "b/1.jpg", *litter))
    assert [photo.path for photo in catalog.photos] == ["a/1.jpg", "b/1.jpg"]
    assert catalog.warnings == ()


def test_what_is_left_out_is_said(tmp_path):
    catalog = read_catalog(
        make(tmp_path, "a/1.jpg", "b/1.jpg", "b/notes.txt", "README", "loose.png", "empty/", "void/x.csv")
    )
    assert catalog.classes == ("a", "b")
    assert catalog.warnings == (
        "1 photo outside the class folders left out",
        "3 files without a photo's extension left out: README, notes.txt, x.csv",
        "class folders without photos left out: empty, void",
    )


def test_classes_that_cannot_be_trained_are_left_out(tmp_path):
    catalog = read_catalog(
        make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/new/1.jpg", "train/none/")
    )
    assert catalog.classes == ("a", "b")
    assert {photo.label for photo in catalog.photos} == {"a", "b"}
    assert catalog.warnings == (
        "class folders without photos left out: none",
        "classes without photos to train on left out: new",
    )


def test_names_that_a_person_takes_for_one(tmp_path):
    (warning,) = read_catalog(make(tmp_path, "Great Tit/1.jpg", "great  tit/1.jpg", "b/1.jpg")).warnings
    assert '"Great Tit" and "great  tit" differ only in case or white space' in warning


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), "holds no photos: put the photos of each class into a folder"),
        (("1.jpg", "2.jpg"), "holds photos but no class folders: put"),
        (("a/1.jpg",), "photos of one class only \\(a\\)"),
        (("a/1.jpg", "b/"), "photos of one class only \\(a\\)"),
        (("a/", "b/"), "holds folders without photos"),
        (("zip/train/a/1.jpg", "zip/test/a/1.jpg"), "photos of one class only \\(a\\)"),
        (("zip/1.jpg", "zip/a/1.jpg", "zip/b/1.jpg"), "one folder only: give .*zip if the folders in it"),
    ],
)
def test_one_clear_line(tmp_path, names, text):
    with pytest.raises(FieldmarkError, match=text) as caught:
        read_catalog(make(tmp_path, *names))
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_folder(tmp_path):
    make(tmp_path, "photos.zip")
    with pytest.raises(FieldmarkError, match="no such folder"):
        read_catalog(tmp_path / "nowhere")
    with pytest.raises(FieldmarkError, match="is a file"):
        read_catalog(tmp_path / "photos.zip")
    with pytest.raises(FieldmarkError, match="cannot be read"):
        read_catalog("a\0b")


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "store/1.jpg", "photos/b/1.jpg")
    (tmp_path / "photos/a").symlink_to(tmp_path / "store")
    (tmp_path / "store/back").symlink_to(tmp_path / "photos")
    assert {"a/1.jpg", "b/1.jpg"} <= {photo.path for photo in read_catalog(tmp_path / "photos").photos}


def test_a_link_that_leads_nowhere_is_a_photo_that_the_audit_will_name(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a/2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "a/2.jpg" in {photo.path for photo in read_catalog(tmp_path).photos}
