"""A run is evaluated on its own test split, or on another data set whose classes are aligned by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.evaluation import evaluate
from fieldmark.evaluation.results import LearningCurve, Metrics


def test_the_test_split_gives_the_metrics_of_the_training(small_run: Path):
    written = json.loads((small_run / "metrics.json").read_text())
    evaluation = evaluate.evaluate(small_run, None, Reporter())
    assert evaluation.warnings == () and evaluation.is_own_test_split
    assert evaluation.learning_curve == (
        written["learning_curve"] and LearningCurve.from_dict(written["learning_curve"])
    )
    entry = evaluation.to_dict()
    assert list(entry)[-2:] == ["learning_curve", "warnings"]
    assert (entry.pop("warnings"), entry.pop("learning_curve")) == ([], written["learning_curve"])
    assert entry == written["test"] and list(entry) == list(written["test"])
    assert Metrics.from_dict(written["test"]).to_dict() == written["test"]


def test_another_data_set_is_aligned_by_name(small_run: Path, small_photos: Path, tmp_path: Path):
    shutil.copytree(small_photos / "disc", tmp_path / "disc")
    shutil.copytree(small_photos / "square", tmp_path / "a new one")
    shutil.copytree(small_photos / "square", tmp_path / "square")
    (tmp_path / "square" / "00.jpg").write_bytes(b"not a photo")
    evaluation = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert evaluation.n == 31 and "learning_curve" not in evaluation.to_dict()
    assert {name: row.n for name, row in evaluation.per_class.items()} == {"cross, blue": 0, "disc": 16, "square": 15}
    assert evaluation.accuracy > 0.8
    unknown, absent, unreadable = evaluation.warnings
    assert "a new one" in unknown
    assert "cross, blue" in absent
    assert "1 image " in unreadable and "square/00.jpg" in unreadable


def test_what_cannot_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    for name in ("a", "b"):
        shutil.copytree(small_photos / "disc", tmp_path / "other" / name)
        (tmp_path / "bad" / ("disc", "square")[name == "b"]).mkdir(parents=True)
        (tmp_path / "bad" / ("disc", "square")[name == "b"] / "1.jpg").write_bytes(b"")
    for photos, says in (("other", "is of a class of"), ("bad", "can be read"), ("none", "no such folder")):
        with pytest.raises(FieldmarkError, match=says):
            evaluate.evaluate(small_run, tmp_path / photos, Reporter())
    with pytest.raises(FieldmarkError, match="pass the images as PHOTOS"):
        evaluate.evaluate(small_run / "bundle", None, Reporter())


def test_training_images_are_warned_of(small_run: Path, small_photos: Path, tmp_path: Path):
    (warning,) = evaluate.evaluate(small_run, small_photos, Reporter()).warnings
    assert warning.endswith("were used in training: the metrics are optimistic")
    shutil.copytree(small_photos, tmp_path / "elsewhere" / "test")
    (tmp_path / "elsewhere" / "train" / "disc").mkdir(parents=True)
    shutil.copy(small_photos / "disc" / "00.jpg", tmp_path / "elsewhere" / "train" / "disc")
    shutil.copytree(small_photos / "square", tmp_path / "elsewhere" / "train" / "square")
    shutil.copytree(small_photos / "cross, blue", tmp_path / "elsewhere" / "train" / "cross, blue")
    assert evaluate.evaluate(small_run, tmp_path / "elsewhere", Reporter()).n == 48  # its test/ alone


def test_a_data_set_of_one_class_can_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    shutil.copytree(small_photos / "disc", tmp_path / "disc")
    evaluation = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert evaluation.n == 16 and evaluation.warnings == ("no images of cross, blue, square",)


def test_views_of_test_time_augmentation():
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain, mirrored, closer, closer_mirrored = evaluate.tta_views(photo)
    np.testing.assert_array_equal(plain, photo)
    np.testing.assert_array_equal(mirrored[:, ::-1], photo)
    np.testing.assert_array_equal(closer[:, ::-1], closer_mirrored)
    assert closer.shape == photo.shape and not np.array_equal(closer, photo)
    flat = np.full((64, 64, 3), 7, np.uint8)
    assert all((view == 7).all() for view in evaluate.tta_views(flat))


def test_test_time_augmentation_changes_the_predictions(small_run: Path):
    plain = evaluate.evaluate(small_run, None, Reporter())
    augmented = evaluate.evaluate(small_run, None, Reporter(), tta=True)
    assert augmented.n == plain.n and augmented.loss != plain.loss


def test_an_unknown_positive_class_is_refused(small_run: Path):
    with pytest.raises(FieldmarkError, match="name one of two classes"):
        evaluate.evaluate(small_run, None, Reporter(), positive="disc")
