"""A run is evaluated on its own test split, or on another data set whose classes are aligned by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from containers import mirrored
from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.splits import read_split_file
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
    for name, other in (("disc", "disc"), ("square", "a new one"), ("square", "square")):
        mirrored(small_photos / name, tmp_path / other)
    (tmp_path / "square" / "00.jpg").write_bytes(b"not a photo")
    evaluation = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert evaluation.n == 31 and "learning_curve" not in evaluation.to_dict()
    assert {name: row.n for name, row in evaluation.per_class.items()} == {"cross, blue": 0, "disc": 16, "square": 15}
    assert evaluation.accuracy > 0.8
    unknown, absent, unreadable = evaluation.warnings
    assert "a new one" in unknown
    assert "cross, blue" in absent
    assert "1 image " in unreadable and "square/00.jpg" in unreadable


def test_classes_in_another_spelling(small_run: Path, small_photos: Path, tmp_path: Path):
    mirrored(small_photos / "disc", tmp_path / "Disc")
    mirrored(small_photos / "square", tmp_path / "square")
    evaluation = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert evaluation.n == 32 and evaluation.per_class["disc"].n == 16
    assert evaluation.warnings[0] == "classes that the classifier spells in another way: Disc"


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


def reencoded(source: Path, target: Path) -> Path:
    for file in source.rglob("*.jpg"):
        place = target / file.parent.name / f"other {file.stem}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(place)
    return target


@pytest.mark.parametrize("how", ["itself", "copied", "zipped", "encoded anew", "bundle"])
def test_training_images_are_left_out(small_run: Path, small_photos: Path, tmp_path: Path, how: str):
    """Wherever they come from: the metrics are those of the test split, which alone is new."""
    match how:
        case "copied":
            photos = shutil.copytree(small_photos, tmp_path / "copy")
        case "zipped":
            photos = Path(shutil.make_archive(str(tmp_path / "copy"), "zip", small_photos))
        case "encoded anew":
            photos = reencoded(small_photos, tmp_path / "anew")
        case _:
            photos = small_photos
    run = small_run / "bundle" if how == "bundle" else small_run
    evaluation = evaluate.evaluate(run, photos, Reporter())
    assert (evaluation.n, evaluation.n_trained) == (6, 42)
    (warning,) = evaluation.warnings
    anew = ", 42 of them encoded anew" if how == "encoded anew" else ""
    assert warning == f"42 of 48 images were used to train {run}{anew}: the metrics are those of the other 6"
    assert evaluation.to_dict()["trained_on"] == 42
    if how == "copied":
        assert evaluation.accuracy == json.loads((small_run / "metrics.json").read_text())["test"]["accuracy"]


def test_images_are_hashed_only_for_a_model_that_knows_its_own(
    small_run: Path, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise AssertionError("hashed")

    file = shutil.copy(small_run / "bundle" / "model.onnx", tmp_path)
    monkeypatch.setattr(evaluate, "content_hash", refuse)
    evaluation = evaluate.evaluate(file, small_photos, Reporter())
    assert (evaluation.n, evaluation.n_trained) == (48, 0)
    with pytest.raises(AssertionError, match="hashed"):
        evaluate.evaluate(small_run, small_photos, Reporter())


def test_nothing_is_left_of_training_images(small_run: Path, small_photos: Path, tmp_path: Path):
    trained = [photo for photo in read_split_file(small_run / "split.csv") if photo.split == "train"]
    for photo in trained:
        (tmp_path / photo.label).mkdir(exist_ok=True)
        shutil.copy(small_photos / photo.path, tmp_path / photo.label)
    with pytest.raises(FieldmarkError, match=f"all {len(trained)} images were used to train .*: give images that it"):
        evaluate.evaluate(small_run, tmp_path, Reporter())


def test_its_test_images_alone(small_run: Path, small_photos: Path, tmp_path: Path):
    for name in ("disc", "square", "cross, blue"):
        mirrored(small_photos / name, tmp_path / "test" / name)
        mirrored(small_photos / name, tmp_path / "train" / name)
    assert evaluate.evaluate(small_run, tmp_path, Reporter()).n == 48


def test_images_that_were_moved(small_run: Path, small_photos: Path, tmp_path: Path):
    """Also under other names: they are found by their content."""
    run = shutil.copytree(small_run, tmp_path / "run")
    audit = json.loads((run / "audit.json").read_text())
    (run / "audit.json").write_text(json.dumps(audit | {"folder": str(tmp_path / "gone")}))
    with pytest.raises(FieldmarkError, match=r"if the images of .* were moved, say where they are by --photos"):
        evaluate.evaluate(run, None, Reporter())
    for k, file in enumerate(sorted(small_photos.rglob("*.jpg"))):
        (tmp_path / "new" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "new" / file.parent.name / f"photo {k}.jpg")
    moved = evaluate.evaluate(run, None, Reporter(), moved_to=tmp_path / "new")
    assert moved == evaluate.evaluate(small_run, None, Reporter())
    for name in ("disc", "square"):
        mirrored(small_photos / name, tmp_path / "others" / name)
    with pytest.raises(FieldmarkError, match="has none of the 48 images"):
        evaluate.evaluate(run, None, Reporter(), moved_to=tmp_path / "others")
    with pytest.raises(FieldmarkError, match="give other images to evaluate on, or --photos"):
        evaluate.evaluate(run, small_photos, Reporter(), moved_to=tmp_path / "new")


def test_a_data_set_of_one_class_can_be_evaluated(small_run: Path, small_photos: Path, tmp_path: Path):
    mirrored(small_photos / "disc", tmp_path / "disc")
    evaluation = evaluate.evaluate(small_run, tmp_path, Reporter())
    assert evaluation.n == 16
    assert evaluation.warnings == ("no images of cross, blue, square: accuracy is that of the other classes",)
    assert evaluation.balanced_accuracy is evaluation.macro_f1 is evaluation.ece is None
    assert "balanced_accuracy  -" in "\n".join(evaluate.summary_lines(evaluation))


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
