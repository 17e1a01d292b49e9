"""`fieldmark export`: files that agree with the network, verified on images that are not in the test split."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.image import preprocess
from fieldmark.data.splits import read_split_file
from fieldmark.exporters import export_run
from fieldmark.exporters.onnx import ExportCheck
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import RunSplits, sample_evenly

SIDES = ("train", "val", "test")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small_run: Path) -> None:
    """In place of the seconds that torch's exporter takes, the file that the training exported."""
    own = small_run / "bundle" / "model.onnx"
    monkeypatch.setattr(export_run, "export_onnx", lambda network, known, info, file: shutil.copy(own, file))


def test_a_run_becomes_one_file(small_run: Path, small_photos: Path, tmp_path: Path):
    out = tmp_path / "deep" / "out"
    report = export_run.export_run(small_run, out, Reporter(quiet=True))
    assert report.files == (str(out / "model.onnx"),) == tuple(str(file) for file in out.iterdir())
    assert report.onnx.max_difference <= 1e-5 and report.onnx.label_agreement == 1.0 and report.is_equivalent
    assert list(report.to_dict()) == ["files", "max_difference", "label_agreement", "photos", "onnx"]
    ours, theirs = Classifier(out), Classifier(small_run)
    assert ours.info == replace(theirs.info, verified=report.onnx.to_dict())
    for one, other in zip(ours.predict(small_photos), theirs.predict(small_photos), strict=True):
        assert (one.label, one.known, one.model) == (other.label, other.known, theirs.info.model)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_it_is_held_against_validation_photos(small_run: Path, small_photos: Path):
    sides = {
        side: {row.path for row in read_split_file(small_run / "split.csv") if row.split == side} for side in SIDES
    }
    info = bundle.read_info(small_run)
    for photos in (None, small_photos):
        found = RunSplits.from_run(small_run, photos, info)
        assert {photo.path for photo in found.train} == sides["train"]
        assert {photo.path for photo in found.val} == sides["val"]
        pixels = dict(found.map_images(found.val, np.asarray))
        for photo in found.val:
            np.testing.assert_array_equal(pixels[photo], preprocess(small_photos / photo.path, info.preprocessing))


@pytest.mark.parametrize("most", [1, 2, 7, 9, 10, 30])
def test_photos_are_spread_over_all(most: int):
    numbers: Any = list(range(9))
    taken: Any = sample_evenly(numbers, most)
    assert taken[0] == 0 and len(taken) == min(most, 9) and list(taken) == sorted(set(taken))
    assert max(np.diff([*taken, 9])) - min(np.diff([*taken, 9])) <= 1


def test_what_is_there_stays(quick: None, small_run: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FieldmarkError, match="exists: give another --out"):
        export_run.export_run(small_run, tmp_path, Reporter(quiet=True))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_photos_that_were_moved(quick: None, small_run: Path, small_photos: Path, tmp_path: Path):
    """Without its photos nothing can be held against anything: then they are named; so may a bundle's be."""
    run, audit = tmp_path / "run", json.loads((small_run / "audit.json").read_text())
    shutil.copytree(small_run / "bundle", run / "bundle")
    with pytest.raises(FieldmarkError, match="pass the images as PHOTOS"):
        export_run.export_run(run, tmp_path / "out", Reporter(quiet=True))
    (run / "audit.json").write_text(json.dumps(audit | {"folder": str(tmp_path / "gone")}))
    with pytest.raises(FieldmarkError, match="were moved, say where they are by --photos"):
        export_run.export_run(run, tmp_path / "out", Reporter(quiet=True))
    for k, named in enumerate((run, run / "bundle", run / "bundle" / "model.onnx")):
        found = export_run.export_run(named, tmp_path / f"out{k}", Reporter(quiet=True), photos=small_photos)
        assert found.is_equivalent and found.onnx.images == export_run.NUM_VERIFICATION_IMAGES
    (tmp_path / "other" / "fish").mkdir(parents=True)
    shutil.copy(next(small_photos.glob("disc/*")), tmp_path / "other" / "fish")
    with pytest.raises(FieldmarkError, match="has no images of the training or validation split"):
        export_run.export_run(run, tmp_path / "out", Reporter(quiet=True), photos=tmp_path / "other")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"max_difference": 2e-5}, {"label_agreement": 0.97}])
def test_a_difference_is_told(
    wrong: dict[str, float], quick: None, small_run: Path, tmp_path: Path, here: Callable, monkeypatch
):
    check = replace(ExportCheck(max_difference=1e-7, label_agreement=1.0, images=32), **wrong)
    monkeypatch.setattr(export_run, "verify", lambda *_: check)
    done = here("export", small_run, "--out", tmp_path / "out", "--json")
    assert done.code == 1
    assert done.json["max_difference"] == check.max_difference
    assert Classifier(tmp_path / "out").info.verified == check.to_dict(), "the file itself must say so"


def test_of_what_fails_nothing_stays(quick: None, small_run: Path, tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_run, "set_metadata", full)
    with pytest.raises(OSError, match="No space"):
        export_run.export_run(small_run, tmp_path / "out", Reporter(quiet=True))
    assert not (tmp_path / "out").exists()


def test_openvino_says_the_same(quick: None, small_run: Path, small_photos: Path, tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    found = export_run.export_run(small_run, tmp_path / "out", Reporter(quiet=True), openvino=True)
    assert {Path(file).name for file in found.files} == {"model.onnx", "model.xml", "model.bin"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.onnx", "model.xml", "model.bin"}
    assert found.is_equivalent and found.openvino is not None
    assert found.to_dict()["max_difference"] == max(found.onnx.max_difference, found.openvino.max_difference)
    model = openvino.Core().read_model(tmp_path / "out" / "model.xml")
    info = json.loads(model.get_rt_info(["framework", "fieldmark"]).value)
    assert info == replace(bundle.read_info(small_run), verified=found.openvino.to_dict()).to_dict()
    photo = preprocess(next(small_photos.glob("disc/*")), info["preprocessing"])
    judged = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"photos": photo[None]})
    for name, value in Classifier(small_run).infer(photo).items():
        np.testing.assert_allclose(judged[name][0], value, rtol=0, atol=1e-4)


def test_without_openvino_one_line_says_what_to_install(small_run: Path, tmp_path: Path, here: Callable, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "fieldmark.exporters.openvino", raising=False)
    monkeypatch.delattr(fieldmark.exporters, "openvino", raising=False)
    done = here("export", small_run, "--out", tmp_path / "out", "--openvino", "--json")
    assert done.refusal == "this needs openvino: pip install 'fieldmark[openvino]'"
    assert not (tmp_path / "out").exists()
