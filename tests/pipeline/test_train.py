"""A training from Python: what it leaves, that it repeats itself to the bit, and the small folders it has to bear."""

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

import fieldmark
import fieldmark.inference.bundle
import fieldmark.training.trainer
from fieldmark.core import progress
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.evaluation.evaluate import evaluate
from fieldmark.pipeline import train as run_module
from fieldmark.pipeline.run import Run

FILES = {
    "bundle/model.safetensors", "bundle/model.onnx", "bundle/bundle.json", "recipe.yaml", "split.csv",
    "quarantine.csv", "history.csv", "log.txt", "metrics.json", "curves.svg", "report.html", "card.md",
    "resume/checkpoint.safetensors", "audit.json", "predictions.csv",
}  # fmt: skip
TINY = fieldmark.Recipe(backbone="resnet18", weights="none", image_size=32, train_size=32, epochs=2, batch=8)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return list(csv.DictReader(opened))


# ---- what a run leaves


def test_a_run_holds_what_is_promised(small_run):
    held = {file.relative_to(small_run).as_posix() for file in small_run.rglob("*") if file.is_file()}
    assert held >= FILES
    assert not any(name.endswith((".half", ".npy", ".u8")) for name in held)  # what served the training alone is gone
    info = json.loads((small_run / "bundle" / "bundle.json").read_text())
    expected = {"classes", "preprocessing", "temperature", "threshold", "network", "fingerprint", "versions"}
    assert info.keys() >= expected and info["versions"].keys() >= {"pillow", "torch", "fieldmark"}


def test_recipe_is_on_record(small_run):
    recipe = yaml.safe_load((small_run / "recipe.yaml").read_text())
    assert recipe["image_size"] == 64 and recipe["frozen_epochs"] == 30 and recipe["seed"] == 0
    assert (small_run / "recipe.yaml").read_text().count("# ") >= len(recipe)  # each under its help


def test_split_names_every_photo_once(small_run, small_photos):
    split = rows(small_run / "split.csv")
    assert sorted(row["path"] for row in split) == sorted(
        photo.relative_to(small_photos).as_posix() for photo in small_photos.glob("*/*.jpg")
    )
    assert all(row["path"].rpartition("/")[0] == row["label"] for row in split)
    counts = {side: sum(row["split"] == side for row in split) for side in ("train", "val", "test")}
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert (metrics["validation"]["n"], metrics["test"]["n"]) == (counts["val"], counts["test"])
    assert sum(counts.values()) == 48
    tested = {row["path"]: row["label"] for row in rows(small_run / "predictions.csv")}
    assert tested == {row["path"]: row["label"] for row in split if row["split"] == "test"}


def test_history_is_of_all_phases(small_run):
    history = rows(small_run / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert [row["phase"] for row in history] == ["1", "2", "4"]  # the first and the last are solved exactly
    figures = [{name: float(value) for name, value in row.items()} for row in history]
    assert all(0 <= row["val_accuracy"] <= 1 and row["train_loss"] > 0 and row["seconds"] > 0 for row in figures)
    best = json.loads((small_run / "metrics.json").read_text())["best_epoch"]
    assert figures[best - 1]["val_accuracy"] == max(row["val_accuracy"] for row in figures)


def test_figures_are_of_the_predictions_and_come_again(small_run):
    metrics = json.loads((small_run / "metrics.json").read_text())
    predictions = rows(small_run / "predictions.csv")
    right = [row["label"] == row["predicted"] for row in predictions]
    assert metrics["test"]["accuracy"] == pytest.approx(np.mean(right))
    again = evaluate(small_run, None, Reporter()).to_dict()
    assert {name: again[name] for name in metrics["test"]} == metrics["test"]
    assert metrics["export"]["label_agreement"] == 1 and metrics["export"]["max_difference"] < 1e-5


def test_python_and_command_line_make_the_same_run(small_run, trained):
    """Twice the same seed and plan, in two processes: the same bits."""
    run, _ = trained
    for name in ("bundle/model.safetensors", "split.csv", "predictions.csv", "quarantine.csv", "recipe.yaml"):
        assert (run / name).read_bytes() == (small_run / name).read_bytes(), name
    histories = [[{**row, "seconds": ""} for row in rows(folder / "history.csv")] for folder in (run, small_run)]
    assert histories[0] == histories[1]
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (run, small_run)]
    for name in ("test", "validation", "temperature", "fingerprint", "best_epoch", "classes"):
        assert figures[0][name] == figures[1][name], name


# ---- other trainings


@pytest.fixture(scope="module")
def copies_run(small_photos, tmp_path_factory) -> Run:
    """From scratch, two classes, every third photo of one twice more: smaller, and mirrored."""
    folder = tmp_path_factory.mktemp("copies")
    for label in ("disc", "square"):
        (folder / "photos" / label).mkdir(parents=True)
        for photo in sorted((small_photos / label).iterdir())[: 16 if label == "disc" else 8]:
            with Image.open(photo) as image:
                image.save(folder / "photos" / label / photo.name, quality=90)
                if label == "disc" and int(photo.stem) % 3 == 0:
                    small = image.resize((image.width * 3 // 4, image.height * 3 // 4))
                    small.save(folder / "photos" / label / f"{photo.stem} small.png")
                    ImageOps.mirror(image).save(folder / "photos" / label / f"{photo.stem} turned.jpg", quality=85)
    return fieldmark.train(folder / "photos", TINY, out=folder / "deep" / "er" / "run")


def test_photos_of_one_thing_are_on_one_side(copies_run):
    sides = {row["path"]: row["split"] for row in rows(copies_run.folder / "split.csv")}
    groups = json.loads((copies_run.folder / "audit.json").read_text())["near_duplicates"]
    assert sorted(map(len, groups)) == [3] * 6
    assert all(len({sides[path] for path in group}) == 1 for group in groups)
    assert set(sides.values()) == {"train", "val", "test"}


def test_from_scratch_everything_trains(copies_run):
    history = rows(copies_run.folder / "history.csv")
    assert [row["phase"] for row in history] == ["2", "2"]
    assert copies_run.metrics["network"]["backbone"] == "resnet18"
    assert copies_run.metrics == json.loads((copies_run.folder / "metrics.json").read_text())
    assert copies_run.classifier().classes == ["disc", "square"]


def test_two_classes_have_figures_of_their_own(copies_run):
    metrics = evaluate(copies_run.folder, copies_run.folder.parents[2] / "photos", Reporter())
    matrix, binary = np.array(metrics.confusion), metrics.binary
    assert binary and binary.positive == "square"  # the rarer one
    assert binary.sensitivity == pytest.approx(matrix[1, 1] / matrix[1].sum())
    assert binary.specificity == pytest.approx(matrix[0, 0] / matrix[0].sum())
    assert 0 <= binary.roc_auc <= 1 and metrics.n + metrics.n_trained == 16 + 12 + 8
    other = evaluate(copies_run.folder, copies_run.folder.parents[2] / "photos", Reporter(), positive="disc").binary
    assert other and (other.positive, other.specificity) == ("disc", binary.sensitivity)
    assert other.at_threshold.threshold == pytest.approx(1 - binary.at_threshold.threshold)


def test_look_alikes_are_one_witness(copies_run):
    """The figures of the test count the sets of look-alikes, here and when the run is evaluated again."""
    told = copies_run.metrics["test"]
    group = {row["path"]: row["group"] for row in rows(copies_run.folder / "predictions.csv")}
    assert told["groups"] == len(set(group.values()))
    for alike in json.loads((copies_run.folder / "audit.json").read_text())["near_duplicates"]:
        assert len({group[path] for path in alike if path in group}) <= 1
    again = evaluate(copies_run.folder, None, Reporter()).to_dict()
    assert {name: again[name] for name in told} == told


def test_seconds_add_up(small_photos, tmp_path, monkeypatch):
    """With attention after the last stage and a bilinear head, through both phases; a look at the clock takes 1 s."""
    clock = itertools.count(100.0)  # a program counts from its own start, not from here
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    recipe = fieldmark.Recipe(
        image_size=64, train_size=64, frozen_epochs=2, epochs=1, batch=8,
        after="-1:mask(norm=True)", head="bilinear(reduced=8)",
    )  # fmt: skip
    run = run_module.train(str(small_photos), recipe, out=str(tmp_path / "run"), started=0.0)
    seconds = run.metrics["seconds"]
    assert sum(seconds.values()) > 100 and next(clock) - sum(seconds.values()) <= 3 and seconds["other"] > 100
    assert all(seconds[part] > 0 for part in ("decode", "features", "phase1", "phase2", "evaluate"))
    assert [row["phase"] for row in rows(run.folder / "history.csv")] == ["1", "1", "2"]
    assert run.metrics["export"]["label_agreement"] == 1 and run.metrics["export"]["max_difference"] < 1e-5
    assert {"after": "-1:mask(norm=True)", "head": "bilinear(reduced=8)"}.items() <= run.metrics["network"].items()


@pytest.mark.parametrize("epochs", [0, 1])
def test_without_validation_photos(drawing, tmp_path, epochs):
    """Two photos a class: one trains, one tests, and nothing can be chosen or calibrated."""
    for kind, label in enumerate("ab"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in (200, 201):
            drawing(kind, number).save(tmp_path / "photos" / label / f"{number}.png")
    recipe = fieldmark.Recipe(image_size=64, train_size=64, frozen_epochs=1, epochs=epochs, batch=8)
    run = fieldmark.train(tmp_path / "photos", recipe, out=tmp_path / "run")
    assert run.metrics["validation"] is None and run.metrics["test"]["n"] == 2
    assert (run.metrics["temperature"], run.metrics["test"]["threshold"]) == (1, 0)
    history = rows(run.folder / "history.csv")
    assert [row["phase"] for row in history] == ["1", "2", "4"][: 1 + 2 * epochs]
    assert all(row["val_loss"] in ("nan", "") for row in history) and run.metrics["best_epoch"] == 1 + 2 * epochs
    assert {"report.html", "card.md", "curves.svg"} <= {file.name for file in run.folder.iterdir()}


def test_without_test_photos_and_without_training(drawing, tmp_path):
    """One photo a class, no epoch: hardly of use, but the record is whole and says so."""
    for kind, label in enumerate("ab"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        drawing(kind, 300).save(tmp_path / "photos" / label / "1.png")
    recipe = fieldmark.Recipe(backbone="resnet18", weights="none", image_size=32, epochs=0)
    run = fieldmark.train(tmp_path / "photos", recipe, out=tmp_path / "run")
    assert run.metrics["test"] is run.metrics["validation"] is None and run.metrics["best_epoch"] == 0
    assert "not tested: a, b" in run.metrics["warnings"][0]
    assert "its accuracy is unknown" in (run.folder / "report.html").read_text()
    with pytest.raises(FieldmarkError, match="has no test split"):
        evaluate(run.folder, None, Reporter())


def test_nothing_is_written_into_a_folder_that_is_no_run(small_photos, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(FieldmarkError, match="other things than a run"):
        fieldmark.train(small_photos, out=tmp_path, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "mine"


def test_a_run_without_a_name_gets_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_module.default_run_dir(Path("some/photos")) == Path("runs/photos")
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    assert run_module.default_run_dir(Path("some/photos")) == Path("runs/photos-2")


# ---- networks that are small, grey, or have more than one head


def test_a_grey_network_of_28_pixels(small_photos, tmp_path):
    recipe = fieldmark.Recipe(
        backbone="vgg11_mnist",
        head="classic(hidden=(16,))",
        weights="none",
        image_size=28,
        channels=1,
        epochs=1,
        batch=8,
    )
    run = fieldmark.train(small_photos, recipe, out=tmp_path / "run")
    network = fieldmark.inference.bundle.load_network(run.folder / "bundle")
    assert network.spec.channels == 1 and len(network.preprocessing.mean) == 1
    photo = next(small_photos.glob("*/*.jpg"))
    with Image.open(photo) as opened:
        ImageOps.grayscale(opened).save(tmp_path / "grey.png")
    colour, grey = (run.classifier().predict(str(file)) for file in (photo, tmp_path / "grey.png"))
    assert grey.label == colour.label and grey.confidence == pytest.approx(colour.confidence, abs=0.02)
    assert run.metrics["export"]["label_agreement"] == 1


@pytest.mark.slow
def test_auxiliary_heads_train_and_resume(small_photos, tmp_path, monkeypatch):
    recipe = fieldmark.Recipe(
        backbone="googlenet", aux=True, weights="none", image_size=32, train_size=32, epochs=2, batch=12
    )
    whole = fieldmark.train(small_photos, recipe, out=tmp_path / "whole")
    aux = [
        name
        for name in fieldmark.inference.bundle.load_network(whole.folder / "bundle").state_dict()
        if ".aux1." in name
    ]
    assert aux
    close = fieldmark.training.trainer.Trainer._finish_epoch

    def killed(self, phase, epoch, began):
        close(self, phase, epoch, began)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(fieldmark.training.trainer.Trainer, "_finish_epoch", killed)
        fieldmark.train(small_photos, recipe, out=tmp_path / "halves")
    fieldmark.train(small_photos, recipe, out=tmp_path / "halves", resume=True)
    one, two = ((tmp_path / name / "bundle" / "model.safetensors").read_bytes() for name in ("whole", "halves"))
    assert one == two


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backbone": "vgg16", "image_size": 28}, "32 is the smallest size that works"),
        ({"backbone": "vgg16", "image_size": 64, "train_size": 28}, "32 is the smallest size that works"),
        ({"backbone": "inception_v3", "image_size": 64}, "75 is the smallest size that works"),
        ({"backbone": "resnet18", "aux": True}, "no auxiliary heads"),
    ],
)
def test_what_a_network_cannot_take_is_refused_before_anything_is_written(small_photos, tmp_path, settings, says):
    with pytest.raises(FieldmarkError, match=says):
        fieldmark.train(small_photos, fieldmark.Recipe(weights="none", **settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
