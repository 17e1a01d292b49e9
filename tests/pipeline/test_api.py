"""The functions of `import fieldmark`: the same results as the command line, with errors in Python's words."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image, ImageOps

import fieldmark as fm
from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline.api import _in_python_words
from fieldmark.training.history import EpochRecord

SETTINGS: dict[str, Any] = {"image_size": 64, "train_size": 64, "batch": 8}


@pytest.fixture(scope="module")
def run(small_run: Path) -> fm.Run:
    return fm.Run.load(small_run)


def test_importing_it_imports_nothing_heavy():
    code = (
        "import fieldmark, sys; print([m for m in ('torch', 'numpy', 'PIL', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", fm.__all__)
def test_every_name_is_there(name: str):
    assert getattr(fm, name).__doc__ and name in dir(fm)


# ---- check


def test_check_lists_issues(small_photos: Path, tmp_path: Path, here):
    report = fm.check(small_photos, quick=True, progress=False)
    assert report.classes == {"cross, blue": 16, "disc": 16, "square": 16}
    said = here("check", small_photos, "--quick", "--json").json
    assert report.audit.to_dict() == said and report.has_issues == bool(said["duplicates"] or said["conflicts"])
    frame = report.to_frame()
    assert len(frame) == len(report.issues) and list(frame.columns) == ["kind", "path", "label", "detail", "suggested"]
    files = report.save(tmp_path / "out")
    assert [file.name for file in files] == ["check.html", "decisions.csv"] and all(file.exists() for file in files)
    with pytest.raises(FieldmarkError, match=r"exists.*out="):
        report.save(tmp_path / "out")
    html = report._repr_html_()
    assert "48 images" in html and "http" not in html and "48 images of 3 classes" in repr(report)


def test_check_takes_a_table_and_a_dataset(small_photos: Path):
    paths = sorted(small_photos.glob("*/*.jpg"))
    table = pandas.DataFrame(
        {"path": [*paths, paths[0].with_name("none.jpg")], "label": [p.parent.name for p in paths] + ["disc"]}
    )
    report = fm.check(table, quick=True, progress=False)
    assert [issue.path for issue in report.issues if issue.kind == "unreadable"] == [
        str(paths[0].with_name("none.jpg"))
    ]
    pairs = [(Image.open(path).convert("RGB"), path.parent.name) for path in paths[::4]]
    report = fm.check(pairs, quick=True, progress=False)
    assert sum(report.classes.values()) == 12
    assert report.result.catalog.root.exists()  # as long as the report
    assert report.result.catalog.read_bytes(report.result.catalog.photos[0])


# ---- train


class Recorder:
    def __init__(self, stops_after: int | None = None) -> None:
        self.calls: list[str] = []
        self.records: list[EpochRecord] = []
        self.stops_after = stops_after

    def on_train_begin(self, history: Sequence[EpochRecord]) -> None:
        self.calls.append(f"begin {len(history)}")

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.calls.append("epoch")
        self.records.append(record)
        if record.epoch == self.stops_after:
            raise fm.StopTraining

    def on_train_end(self, history: Sequence[EpochRecord]) -> None:
        self.calls.append(f"end {len(history)}")


def test_train_takes_a_table_and_follows_with_callbacks(small_photos: Path, tmp_path: Path, capfd):
    paths = sorted(small_photos.glob("*/*.jpg"))
    table = pandas.DataFrame({"path": paths, "label": [path.parent.name for path in paths]})
    recorder = Recorder(stops_after=2)
    run = fm.train(table, out=tmp_path / "run", callbacks=[recorder, object()], progress=False, epochs=9, **SETTINGS)
    assert capfd.readouterr() == ("", "")
    assert [record.phase for record in recorder.records] == [1, 2, 4]  # the refit follows what was stopped
    assert recorder.calls == ["begin 0", "epoch", "epoch", "epoch", "end 3"]
    assert list(run.history["epoch"]) == [1, 2, 3] and list(run.history["phase"]) == [1, 2, 4]
    assert run.test and run.test.accuracy == run.metrics["test"]["accuracy"] and run.report.exists()
    assert run.classifier().predict(paths[0]).label in run.metrics["classes"]
    again = fm.train(table, out=tmp_path / "run", resume=True, progress=False)
    assert again.metrics == run.metrics and list(again.history["phase"]) == [1, 2, 4]
    assert fm.evaluate(run, progress=False).accuracy == run.test.accuracy  # the images are found again
    html = run._repr_html_()
    assert "<svg" in html and "accuracy" in html and "http://www.w3.org" in html and "https:" not in html
    assert f"{run.test.accuracy:.1%}" in repr(run)


def test_a_linear_probe_can_be_the_end(small_photos: Path, tmp_path: Path):
    recorder = Recorder(stops_after=1)
    run = fm.train(small_photos, out=tmp_path / "run", callbacks=[recorder], progress=False, budget="1h", **SETTINGS)
    assert [record.phase for record in recorder.records] == [1] and run.metrics["best_epoch"] == 1


def test_errors_speak_python(small_photos: Path, tmp_path: Path):
    with pytest.raises(FieldmarkError, match=r"^image_size= is 'x', but must be"):
        fm.train(small_photos, out=tmp_path / "run", image_size="x")
    with pytest.raises(FieldmarkError, match=r"exists: give another out=, or resume=True to continue it"):
        fm.train(small_photos, out=tmp_path, progress=False)
    with pytest.raises(FieldmarkError, match="'imagesize' is no setting of a recipe; image_size"):
        fm.train(small_photos, imagesize=3)
    assert _in_python_words("--batch is 3 (--no-exact takes steps), a--b, 3--4") == (
        "batch= is 3 (exact=False takes steps), a--b, 3--4"
    )
    assert _in_python_words("started with --batch 8, not 32") == "started with batch=8, not 32"
    assert _in_python_words("--find-lr sets them, or --whole") == "find_lr=True sets them, or full_training=True"
    assert _in_python_words("repeat --vary, or more --seeds") == "repeat space=, or more seeds="


def test_progress_is_shown_on_request(small_photos: Path, capfd):
    fm.check(small_photos, quick=True, progress=False)
    assert capfd.readouterr() == ("", "")


# ---- evaluate, explain, export, compare


def test_evaluate_takes_runs_classifiers_and_paths(run: fm.Run, small_photos: Path):
    assert run.test
    for model in (run, run.classifier(), run.folder, str(run.folder)):
        assert fm.evaluate(model, progress=False).accuracy == run.test.accuracy
    files = sorted(small_photos.glob("*/*.jpg"))[::5]
    pairs = [(ImageOps.mirror(Image.open(path).convert("RGB")), path.parent.name) for path in files]
    evaluation = fm.evaluate(run, pairs, progress=False)
    assert evaluation.n == 10 and 0 <= evaluation.accuracy <= 1
    with pytest.raises(TypeError, match="int is not taken: give a Run"):
        fm.evaluate(3)  # type: ignore[arg-type]


def test_explain_draws_over_the_image(run: fm.Run, small_photos: Path):
    photo = small_photos / "disc" / "00.jpg"
    explained = fm.explain(run, photo, methods=["evidence", "grad_cam"], progress=False)
    assert explained.label == run.classifier().predict(photo).label and 0 < explained.confidence <= 1
    for method in (None, "grad_cam"):
        assert isinstance(explained.overlay(method), Image.Image)
    assert np.array_equal(np.asarray(explained.overlay()), np.asarray(explained.overlay("evidence")))
    with pytest.raises(ValueError, match="method='x', but can be evidence or grad_cam"):
        explained.overlay("x")
    assert "data:image/jpeg" in explained._repr_html_()
    several = fm.explain(run.classifier(), [photo, np.asarray(Image.open(photo).convert("RGB"))], progress=False)
    assert [each.label for each in several] == [explained.label] * 2
    with pytest.raises(ValueError, match=r"none.jpg cannot be read: no such file"):
        fm.explain(run, "none.jpg", progress=False)


def test_export_and_load_module(run: fm.Run, tmp_path: Path):
    exported = fm.export(run, tmp_path / "out", progress=False)
    assert exported.is_equivalent and [Path(file).name for file in exported.files] == ["model.onnx"]
    module = fm.load_module(run)
    assert not module.training and sum(p.numel() for p in module.parameters()) == run.metrics["parameters"]


def test_networks_are_compared_on_a_table(small_photos: Path, tmp_path: Path):
    paths = sorted(small_photos.glob("*/*.jpg"))
    table = pandas.DataFrame({"path": paths, "label": [path.parent.name for path in paths]})
    networks = ["efficientnet_lite0", "efficientnet_lite0+head=linear"]
    comparison = fm.compare(table, networks, seeds=1, out=tmp_path / "out", progress=False, epochs=0, **SETTINGS)
    assert len(comparison.rows) == 2 and comparison.rows[1].difference is not None
    runs = [run for row in comparison.rows for run in row.runs]
    again = fm.compare([fm.Run.load(Path(runs[0])), runs[1]], out=tmp_path / "again", progress=False)
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in comparison.rows]
    assert (tmp_path / "again").is_dir() and json.dumps(again.to_dict())
    with pytest.raises(FieldmarkError, match="two networks or two finished runs"):
        fm.compare(runs[:1], progress=False)


@pytest.mark.slow
def test_hyperparameters_are_searched(small_photos: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    result = fm.search(
        small_photos,
        trials=2,
        space=["label_smoothing=0,0.2"],
        out=tmp_path / "out",
        progress=False,
        epochs=0,
        **SETTINGS,
    )
    assert len(result.trials) == 2 and result.best in result.trials and result.test is not None
    with pytest.raises(FieldmarkError, match=r"exists: give another out=, or resume=True"):
        fm.search(small_photos, out=tmp_path / "out", progress=False)
    with pytest.raises(FieldmarkError, match=r"leave folds=, devices=, nodes=, budget= out"):
        fm.search(small_photos, out=tmp_path / "other", progress=False, folds=3)


# ---- build


def test_build_takes_the_words_of_timm():
    network = fm.build("resnet18", num_classes=7, in_chans=1)
    assert network.spec.classes == 7 and network.spec.channels == 1
    assert fm.build("resnet18", classes=7, num_classes=7).spec.classes == 7
    with pytest.raises(FieldmarkError, match="num_classes= and classes= are two words"):
        fm.build("resnet18", classes=6, num_classes=7)
    pretrained = fm.build("efficientnet_lite0", pretrained=True).state_dict()
    ours = fm.build("efficientnet_lite0", weights="imagenet").state_dict()
    assert all(bool((pretrained[name] == ours[name]).all()) for name in ours)
    assert fm.build("resnet18", pretrained=False).spec.classes == 1000
