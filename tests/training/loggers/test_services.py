"""What Weights & Biases and MLflow are told, by the calls of their own clients."""

import json
import math
import os
from pathlib import Path

from fieldmark.recipes.recipe import Recipe
from fieldmark.training.loggers import services

BOTH = Recipe(logger="wandb,mlflow")


def test_closing_tells_the_figures_and_the_settings_as_planned(remote, begin, tmp_path: Path):
    tracking, warnings = begin(tmp_path, 2, BOTH)
    planned = BOTH.replace(epochs=3, steps_per_epoch=5)
    tracking.close({"test": {"accuracy": 0.9, "n": 12, "ci95": [0.8, 1.0]}, "validation": {"ece": math.nan}}, planned)
    assert not warnings
    told = {name: value for name, value in planned.to_dict().items() if value is not None}
    figures = {"test/accuracy": 0.9, "test/n": 12.0}
    (wandb,), (mlflow,) = remote.wandb.values(), remote.mlflow.values()
    assert wandb["begun"]["epochs"] == BOTH.epochs and "steps_per_epoch" not in wandb["begun"]
    assert (wandb["settings"], wandb["summary"], wandb["finished"]) == (told, figures, True)
    assert (mlflow["rows"][-1], mlflow["finished"]) == ((2, figures), True)
    assert mlflow["params"] == {name: str(value) for name, value in told.items()}


def test_a_service_that_is_gone_is_soon_left_alone(remote, begin, tmp_path: Path, monkeypatch):
    for name in services.CLIENT_TIMEOUTS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "7")
    begin(tmp_path, 0, BOTH)
    assert {name: os.environ[name] for name in services.CLIENT_TIMEOUTS} == services.CLIENT_TIMEOUTS | {
        "WANDB_INIT_TIMEOUT": "7"
    }


def test_every_run_has_an_id_of_its_own_in_the_users_project(remote, begin, tmp_path: Path, monkeypatch):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    begin(folders[0], 0, BOTH)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.delenv("WANDB_PROJECT")
    for folder in folders[1:]:
        begin(folder, 0, BOTH)
    for kept in (remote.wandb, remote.mlflow):
        assert [run["project"] for run in kept.values()] == ["theirs", "fieldmark", "fieldmark"]
        assert [run["name"] for run in kept.values()] == ["one", "two", "three"]
    ids = [json.loads((folder / "resume" / "loggers.json").read_text()) for folder in folders]
    assert [(told["wandb"], told["mlflow"]) for told in ids] == list(zip(remote.wandb, remote.mlflow, strict=True))
