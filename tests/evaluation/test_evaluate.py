"""A run is judged on its own test photos or on another folder, whose classes are aligned by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.evaluation import evaluate


def test_the_test_photos_give_the_figures_of_the_training(small_run: Path):
    written = json.loads((small_run / "metrics.json").read_text())
    found = evaluate.evaluate(small_run, None, Reporter())
    assert found.pop("warnings") == []
    assert found.pop("learning_curve") == written["learning_curve"]
    assert found == written["test"]


def test_another_folder_is_aligned_by_name(small_run: Path, small_photos: Path, tmp_path: Path):
    shutil.copytree(small_photos / "disc", tmp_path / "disc")
    shutil.copytree(small_photos / "square", tmp_path / "a new one")
    shutil.copytree(small_photos / "square", tmp_path / "square")
    (tmp_path / "square" / "00.jpg").write_bytes(b"not a photo")
    found = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert found["n"] == 31
    assert {name: row["n"] for name, row in found["per_class"].items()} == {"cross, blue": 0, "disc": 16, "square": 15}
    assert found["accuracy"] > 0.8
    unknown, gone, unreadable = found["warnings"]
    assert "a new one" in unknown
    assert "cross, blue" in gone
    assert "1 photo " in unreadable and "square/00.jpg" in unreadable


def test_what_cannot_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    for name in ("a", "b"):
        shutil.copytree(small_photos / "disc", tmp_path / "other" / name)
        (tmp_path / "bad" / ("disc", "square")[name == "b"]).mkdir(parents=True)
        (tmp_path / "bad" / ("disc", "square")[name == "b"] / "1.jpg").write_bytes(b"")
    for photos, says in (("other", "is of a class that"), ("bad", "can be read"), ("none", "no such folder")):
        with pytest.raises(FieldmarkError, match=says):
            evaluate.evaluate(small_run, tmp_path / photos, Reporter())
    with pytest.raises(FieldmarkError, match="name the photos as well"):
        evaluate.evaluate(small_run / "bundle", None, Reporter())


def test_photos_it_was_trained_with_are_pointed_out(small_run: Path, small_photos: Path, tmp_path: Path):
    (warning,) = evaluate.evaluate(small_run, small_photos, Reporter())["warnings"]
    assert warning.endswith("it was trained with: the figures flatter it")
    shutil.copytree(small_photos, tmp_path / "elsewhere" / "test")
    (tmp_path / "elsewhere" / "train" / "disc").mkdir(parents=True)
    shutil.copy(small_photos / "disc" / "00.jpg", tmp_path / "elsewhere" / "train" / "disc")
    shutil.copytree(small_photos / "square", tmp_path / "elsewhere" / "train" / "square")
    shutil.copytree(small_photos / "cross, blue", tmp_path / "elsewhere" / "train" / "cross, blue")
    assert evaluate.evaluate(small_run, tmp_path / "elsewhere", Reporter())["n"] == 48  # its test/ alone


def test_a_folder_of_one_class_can_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    shutil.copytree(small_photos / "disc", tmp_path / "disc")
    found = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert found["n"] == 16 and found["warnings"] == ["no photos of cross, blue, square"]


def test_four_views_of_a_photo():
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain, mirrored, closer, closer_mirrored = evaluate.tta_views(photo)
    np.testing.assert_array_equal(plain, photo)
    np.testing.assert_array_equal(mirrored[:, ::-1], photo)
    np.testing.assert_array_equal(closer[:, ::-1], closer_mirrored)
    assert closer.shape == photo.shape and not np.array_equal(closer, photo)
    flat = np.full((64, 64, 3), 7, np.uint8)
    assert all((view == 7).all() for view in evaluate.tta_views(flat))


def test_four_views_are_judged_together(small_run: Path):
    one = evaluate.evaluate(small_run, None, Reporter())
    four = evaluate.evaluate(small_run, None, Reporter(), tta=True)
    assert four["n"] == one["n"] and four["loss"] != one["loss"]


def test_a_positive_class_that_cannot_be(small_run: Path):
    with pytest.raises(FieldmarkError, match="name one of two classes"):
        evaluate.evaluate(small_run, None, Reporter(), positive="disc")
