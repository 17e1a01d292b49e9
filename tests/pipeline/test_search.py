"""A search never ends below where it began, tests once, and goes on after a kill or beside another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from told import Words, english, made

from fieldmark.core.errors import FieldmarkError, UntrainableRecipeError
from fieldmark.core.i18n import get_language
from fieldmark.core.progress import Reporter
from fieldmark.evaluation.evaluate import evaluate
from fieldmark.evaluation.metrics import compute_metrics
from fieldmark.inference.classifier import Classifier
from fieldmark.pipeline import search as module
from fieldmark.pipeline.run import Run
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe
from fieldmark.report.results import SearchResult, Trial
from fieldmark.report.search_page import write_search_page
from fieldmark.training.history import EpochRecord

SETTINGS: dict[str, Any] = {"image_size": 64, "train_size": 64, "epochs": 1, "batch": 8}
WORDS = ["--image-size", "64", "--train-size", "64", "--epochs", "1", "--batch", "8"]
VARIED = ["--vary", "label_smoothing=0..0.3", "--vary", "exact=true,false", "--vary", "frozen_epochs=2..6"]


@pytest.fixture(scope="module")
def searched(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a search of four trials, and what its search.json holds."""
    out = tmp_path_factory.mktemp("search") / "out"
    result = module.search(small_photos, 4, Recipe(**SETTINGS), out, Reporter(quiet=True), VARIED[1::2])
    write_search_page(result, out, get_language("en"))
    return out, json.loads((out / "search.json").read_text(encoding="utf-8"))


def test_the_first_is_the_recipe_as_it_stands_and_the_best_no_worse(searched):
    _, found = searched
    rows, best = found["rows"], found["best"]
    assert [row["trial"] for row in rows] == [0, 1, 2, 3] and rows[0]["settings"] == {}
    assert all(set(row["settings"]) == {"label_smoothing", "exact", "frozen_epochs"} for row in rows[1:])
    assert [row["best"] for row in rows].count(True) == 1
    assert best["val_accuracy"] == max(row["val_accuracy"] for row in rows if row["val_accuracy"] is not None)
    assert best["val_accuracy"] >= rows[0]["val_accuracy"] == best["as_it_stands"]["val_accuracy"]


def test_only_the_best_is_tested_and_its_recipe_repeats_it(searched):
    out, found = searched
    best = found["best"]
    assert best["run"] == str(out / f"best-{best['trial']}") and best["test"]["n"] == 6
    assert Classifier(out).file == out / f"best-{best['trial']}" / "bundle" / "model.onnx"
    assert evaluate(out, None, Reporter()).n == 6
    asked, made = (recipes.read_recipe(folder / "recipe.yaml") for folder in (out, Path(best["run"])))
    for name, value in {**SETTINGS, **best["settings"]}.items():
        assert getattr(asked, name) == getattr(made, name) == value
    left = {entry.name for entry in out.iterdir()}
    assert left >= {"search.html", "search.json", "search.csv", "recipe.yaml", "split.csv", module.JOURNAL}
    assert not list(out.glob("trial-*")) and not (out / module.SHARED).exists()
    page = (out / "search.html").read_text(encoding="utf-8")
    assert "label_smoothing" in page and "(original recipe)" in page and page.count("<svg") == 1
    sides = [(out / "split.csv").read_text(), (Path(best["run"]) / "split.csv").read_text()]
    assert sides[0] == sides[1]


def test_more_trials_go_on_from_the_others(searched, small_photos: Path, here):
    out, found = searched
    refused = here("search", small_photos, "--trials", 6, "--out", out, *WORDS)
    assert "--resume" in refused.refusal
    other = here("search", small_photos, "--trials", 6, "--out", out, "--resume", *WORDS, "--vary", "exact=true,false")
    assert "was started with other settings or --vary" in other.refusal
    more = here("search", small_photos, "--trials", 6, "--out", out, "--resume", "--json", *WORDS, *VARIED)
    assert more.code == 0, more.err
    rows = more.json["rows"]
    assert len(rows) == 6 and [row["settings"] for row in rows[:4]] == [row["settings"] for row in found["rows"]]
    assert [row["val_loss"] for row in rows[:4]] == [row["val_loss"] for row in found["rows"]]


def test_a_trial_equals_a_run_of_its_recipe(searched, small_photos: Path, tmp_path: Path, here):
    """Phase 1 of a plain training with the settings of a trial, on its sides."""
    out, found = searched
    row = found["rows"][1]
    said = [
        f"--frozen-epochs={row['settings']['frozen_epochs']}",
        "--exact" if row["settings"]["exact"] else "--no-exact",
    ]
    said += [f"--label-smoothing={row['settings']['label_smoothing']}", "--epochs=0"]
    run = here(
        "train",
        small_photos,
        "--out",
        tmp_path / "run",
        "--split-file",
        out / "split.csv",
        "--json",
        *WORDS[:4],
        "--batch",
        8,
        *said,
    )
    if row["val_accuracy"] is not None:
        assert run.json["validation"]["accuracy"] == pytest.approx(row["val_accuracy"])


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_two_share_the_work(small_photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "fieldmark.cli",
        "search",
        str(small_photos),
        "--trials",
        "3",
        "--out",
        str(out),
        "--resume",
        "--json",
    ]
    words += [*WORDS, *VARIED]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    assert first.stderr
    for line in first.stderr:
        if line.startswith("trial 0") or time.monotonic() > until:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, other = (json.loads(out) for out, _ in said)
    assert one["best"] == other["best"] and len(one["rows"]) == len(other["rows"]) == 3
    assert sum(err.count("\ntrial ") + err.startswith("trial ") for _, err in said) == 2
    assert len(list(out.glob("best-*"))) == 1 and not list(out.glob("trial-*/resume/checkpoint*"))


def test_a_trial_that_stands_below_the_others_is_cut_short(monkeypatch: pytest.MonkeyPatch):
    study = optuna.create_study(
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(module.PRUNER_STARTUP_TRIALS, module.PRUNER_WARMUP_STEPS),
    )

    def value(trial: optuna.Trial) -> float:
        watch = module.PruningLogger(trial, Recipe(), may_end=trial.number > 0)
        for epoch in range(1, 9):
            accuracy = 0.1 if trial.number == 7 else 0.5 + trial.number / 100
            watch.log_epoch(EpochRecord(epoch, 1, 0.1, 1.0, 0.5, 1.0, accuracy, seconds=1.0))
        return 0.5

    study.optimize(value, n_trials=8)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 7 + ["PRUNED"]
    assert len(study.trials[7].intermediate_values) == module.PRUNER_WARMUP_STEPS


@pytest.mark.parametrize("settings", [{"budget": "1m"}, {"folds": 3}, {"devices": 2}])
def test_what_cannot_be_searched(settings: dict, small_photos: Path, tmp_path: Path):
    with pytest.raises(FieldmarkError, match="leave --folds"):
        module.search(small_photos, 2, Recipe(**settings), tmp_path / "out", Reporter(quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["lr=1e-3..1e-1", "epochs=1..3", "unfreeze=late,all"])
def test_what_trials_of_the_head_do_not_know_is_refused(field: str, small_photos: Path, tmp_path: Path):
    with pytest.raises(FieldmarkError, match="add --whole"):
        module.search(small_photos, 2, Recipe(), tmp_path / "out", Reporter(quiet=True), [field])


def test_both_phases_where_that_is_asked_for(small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained = list[Recipe]()
    monkeypatch.setattr(module, "train", lambda photos, recipe, out, resume: trained.append(recipe) or Run(out, {}))
    result = module.search(
        small_photos,
        2,
        Recipe(image_size=64, train_size=64, epochs=1, batch=8),
        tmp_path / "out",
        Reporter(quiet=True),
        ["lr=1e-3..1e-1"],
        full_training=True,
    )
    assert len(result.trials) == 2 and result.trials[1].settings["lr"] and trained[0].epochs == 1
    assert trained[0].split_file == str((tmp_path / "out" / "split.csv").resolve())


def test_without_optuna_one_line_says_what_to_install(small_photos, tmp_path, here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused = here("search", small_photos, "--trials", 2, "--out", tmp_path / "out").refusal
    assert refused == "this needs optuna: pip install 'fieldmark[search]'"
    assert not (tmp_path / "out").exists()


def test_a_trial_that_fails_does_not_end_the_others(small_photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "train", lambda photos, recipe, out, resume: Run(out, {}))
    judged = module.TrialRunner.run_trial

    def diverged(bench, settings, trial):
        if trial.number in (0, 2) and trial.number == failing:
            raise UntrainableRecipeError("the loss is NaN or infinite")
        return judged(bench, settings, trial)

    monkeypatch.setattr(module.TrialRunner, "run_trial", diverged)
    recipe, varied = Recipe(**SETTINGS), ["label_smoothing=0..0.3"]
    failing = 2
    result = module.search(small_photos, 4, recipe, tmp_path / "out", Reporter(quiet=True), varied)
    assert [trial.score is None for trial in result.trials] == [False, False, True, False]
    assert not list((tmp_path / "out").glob("trial-*"))
    failing = 0
    with pytest.raises(FieldmarkError, match="NaN"):
        module.search(small_photos, 4, recipe, tmp_path / "other", Reporter(quiet=True), varied)


@pytest.mark.parametrize(
    "settings, vary, says",
    [
        ({"weights": "none", "backbone": "resnet18"}, "label_smoothing=0..0.1", "published weights"),
        ({"frozen_epochs": 0}, "label_smoothing=0..0.1", "published weights"),
        ({}, "frozen_epochs=0..5", "published weights"),
        ({}, "backbone=efficientnet_lite0,typo", "typo"),
        ({}, "label_smoothing=0..2", "must be at most"),
        ({}, "imbalance=none,foo", "foo"),
    ],
)
def test_what_no_trial_could_train_is_refused_at_once(settings, vary, says, small_photos: Path, tmp_path: Path):
    with pytest.raises(FieldmarkError, match=says):
        module.search(small_photos, 4, Recipe(**settings), tmp_path / "out", Reporter(quiet=True), [vary])
    assert not (tmp_path / "out").exists()


def test_its_page_is_chinese_where_that_is_asked_for(tmp_path: Path):
    trials = [
        Trial(0, 0.8, 0.8, 0.5, 40, 2.0, {}),
        Trial(1, 0.9, 0.9, 0.5, 40, 2.0, {"exact": False}, best=True),
        Trial(2, None, None, None, None, None, {"exact": True}),
    ]
    test = compute_metrics(made(2, 20, 3), ["a", "b"], 0.5)
    result = SearchResult(trials, tmp_path / "运行", test)
    files = write_search_page(result, tmp_path, get_language("zh"))
    written = json.loads(files[1].read_text(encoding="utf-8"))
    assert written["best"]["trial"] == 1 and written["best"]["test"] == test.to_dict()
    assert [row["val_accuracy"] for row in written["rows"]] == [0.8, 0.9, None]
    page = files[0].read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page and "（原配方）" in page and "共 3 次试验，其中 1 次被剪枝" in page
    assert not english(
        "\n".join(Words(page).words), [str(tmp_path), tmp_path.name, "recipe.yaml", "exact", "True", "False"]
    )
