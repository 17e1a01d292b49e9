"""Cross-validation pools the folds' predictions, keeps the best fold's classifier, and continues after a kill."""

import json
import shutil
from pathlib import Path

import pytest

import fieldmark
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.evaluation.evaluate import evaluate
from fieldmark.inference.classifier import Classifier
from fieldmark.pipeline.cross_validate import cross_validate
from fieldmark.pipeline.run import Run
from fieldmark.recipes.recipe import Recipe


@pytest.fixture
def folds(small_run: Path, tmp_path: Path):
    """Writes a fold: a copy of a finished run with that validation accuracy, under the name of its bundle."""

    def write(folder: Path, accuracy: float) -> Run:
        shutil.copytree(small_run, folder, ignore=shutil.ignore_patterns("resume", "tensorboard"))
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["validation"]["accuracy"], metrics["bundle"] = accuracy, str(folder / "bundle")
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return Run.load(folder)

    return write


def test_the_classifier_is_that_of_the_best_fold(folds, tmp_path: Path, small_photos: Path):
    accuracy = {1: 0.6, 2: 0.9, 3: 0.7}
    run = cross_validate(lambda recipe, out: folds(out, accuracy[recipe.fold]), Recipe(folds=3), tmp_path / "run")
    assert run.metrics["bundle"] == str(tmp_path / "run" / "fold-2" / "bundle")
    classifier = run.classifier()
    assert classifier.file == tmp_path / "run" / "fold-2" / "bundle" / "model.onnx"
    assert classifier.predict(next(small_photos.glob("*/*.jpg"))).label in classifier.classes
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert Run.load(moved).classifier().file.parent == moved / "fold-2" / "bundle"
    assert Classifier(moved).file == moved / "fold-2" / "bundle" / "model.onnx"
    assert evaluate(moved, small_photos, Reporter()).n == 6  # those that it was not trained on
    with pytest.raises(FieldmarkError, match="is a cross-validation, whose metrics are in its report"):
        evaluate(moved, None, Reporter())


def test_metrics_are_of_all_folds_together(folds, tmp_path: Path):
    run = cross_validate(lambda recipe, out: folds(out, 0.5), Recipe(folds=2), tmp_path / "run")
    fold, pooled = run.metrics["folds"][0]["test"], run.metrics["test"]
    assert (pooled["n"], pooled["accuracy"], pooled["sd"]) == (2 * fold["n"], fold["accuracy"], 0.0)
    assert pooled["threshold"] == 0.0 and pooled["coverage"] == fold["coverage"]  # scores relative to each threshold
    assert run.metrics == json.loads((tmp_path / "run" / "metrics.json").read_text()) == run.results.to_dict()
    assert (tmp_path / "run" / "report.html").exists()


def test_nothing_stays_if_the_first_fold_fails(tmp_path: Path):
    def fail(recipe: Recipe, out: Path) -> Run:
        out.mkdir()
        raise FieldmarkError("no images")

    with pytest.raises(FieldmarkError, match="no images"):
        cross_validate(fail, Recipe(folds=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- a given option that differs from the recipe of the run


@pytest.mark.parametrize(("settings", "says"), [({"batch": 32}, "batch=8, not 32"), ({"seed": 1}, "seed=0, not 1")])
def test_resume_refuses_another_value_the_default_too(
    settings, says, small_run: Path, small_photos: Path, tmp_path: Path
):
    assert Recipe().batch == 32
    with pytest.raises(FieldmarkError, match=f"was started with {says}: resume without that option"):
        fieldmark.train(small_photos, Recipe(**settings), out=small_run, resume=True)


def test_resume_without_options_takes_those_of_the_run(small_run: Path, small_photos: Path):
    run = fieldmark.train(small_photos, out=small_run, resume=True)
    again = fieldmark.train(small_photos, Recipe(batch=8, seed=0, image_size=None), out=small_run, resume=True)
    assert run.metrics == again.metrics == json.loads((small_run / "metrics.json").read_text())
    assert run.results.to_dict() == run.metrics
