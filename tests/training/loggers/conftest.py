"""A training that repeats itself, and services that keep what they are told when it is killed."""

import math
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fieldmark.recipes.recipe import Recipe
from fieldmark.training.history import EpochRecord
from fieldmark.training.loggers import LoggerGroup, services


@pytest.fixture(scope="session")
def row() -> Callable[[int], EpochRecord]:
    """Number of an epoch -> how it ends; the later ones without figures on validation photos."""

    def made(epoch: int) -> EpochRecord:
        val = math.nan if epoch > 7 else 1.1 / epoch
        phase = 1 + (epoch > 2)
        return EpochRecord(epoch, phase, 0.1 / epoch, 1 / epoch, 1 - 1 / epoch, val, val / 2, seconds=1.5)

    return made


@pytest.fixture(scope="session")
def begin(row) -> Callable[..., tuple[LoggerGroup, list[str]]]:
    """(folder, epochs in the checkpoint, recipe) -> trackers that have begun, and the list of their warnings."""

    def made(out: Path, epochs: int, recipe: Recipe) -> tuple[LoggerGroup, list[str]]:
        (out / "resume").mkdir(parents=True, exist_ok=True)
        warnings: list[str] = []
        tracking = LoggerGroup(out, recipe, warnings.append)
        tracking.start([row(epoch) for epoch in range(1, epochs + 1)])
        return tracking, warnings

    return made


@pytest.fixture(scope="session")
def shown() -> Callable[[Path], EventAccumulator]:
    """Folder of a run -> what TensorBoard shows of it."""
    return lambda out: EventAccumulator(str(out / "tensorboard")).Reload()


class Services:
    """`wandb` and `mlflow` as modules; `down` holds those that do not answer.

    Each keeps id -> run: its name, its project, `rows` [(step, values)], and what it is told at the end.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.down: set[str] = set()
        self.wandb: dict[str, dict[str, Any]] = {}
        self.mlflow: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}

    def reach(self, name: str) -> None:
        print(f"{name} chatters")
        if name in self.down:
            raise ConnectionError(f"{name} is\ngone")

    def init(self, *, id: str, name: str, project: str, config: dict[str, Any], **told: Any) -> Any:
        os.write(1, b"the process of wandb chatters")
        self.reach("wandb")
        assert (told["resume"], told["reinit"]) == ("allow", "create_new") and Path(told["dir"]).is_dir()
        run = self.wandb.setdefault(id, {"name": name, "project": project, "begun": config, "rows": [], "summary": {}})

        def log(values: dict[str, float], step: int, commit: bool) -> None:
            self.reach("wandb")
            assert commit, "a run that is killed now lacks this step"
            assert all(step > before for before, _ in run["rows"]), "it drops such a step"
            run["rows"].append((step, values))

        def update(settings: dict[str, Any], allow_val_change: bool) -> None:
            self.reach("wandb")
            run["settings"] = settings

        return SimpleNamespace(
            starting_step=run["rows"][-1][0] + 1 if run["rows"] else 0,
            log=log,
            summary=run["summary"],
            config=SimpleNamespace(update=update),
            finish=lambda: run.update(finished=True),
        )

    def client(self) -> Any:
        runs = self.mlflow

        def create_run(project: str, run_name: str) -> Any:
            self.reach("mlflow")
            runs[name := f"run-{len(runs)}"] = {"name": run_name, "project": project, "rows": [], "params": {}}
            return SimpleNamespace(info=SimpleNamespace(run_id=name))

        def get_run(name: str) -> Any:
            self.reach("mlflow")
            latest = {key: value for _, values in runs[name]["rows"] for key, value in values.items()}
            return SimpleNamespace(data=SimpleNamespace(metrics=latest))

        def log_batch(name: str, metrics: list[Any], params: list[Any]) -> None:
            self.reach("mlflow")
            (step,) = {step for _, _, _, step in metrics}
            runs[name]["rows"].append((step, {key: value for key, value, _, _ in metrics}))
            assert not dict(params).keys() & runs[name]["params"].keys(), "it lets nobody change a parameter"
            runs[name]["params"] |= dict(params)

        def find(name: str) -> Any:
            return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

        def found(name: str) -> str:
            assert name not in self.experiments, "it has one of that name"
            return self.experiments.setdefault(name, name)

        return SimpleNamespace(
            create_run=create_run,
            get_run=get_run,
            log_batch=log_batch,
            get_experiment_by_name=find,
            create_experiment=found,
            set_terminated=lambda name: runs[name].update(finished=True),
        )

    def modules(self) -> dict[str, ModuleType]:
        made = {name: ModuleType(name) for name in ("wandb", "mlflow", "mlflow.entities")}
        for name, module in made.items():
            module.__spec__ = ModuleSpec(name, None, origin="a test")
        vars(made["wandb"]).update(init=self.init, Settings=lambda **_: None)
        vars(made["mlflow"]).update(MlflowClient=self.client)
        vars(made["mlflow.entities"]).update(Metric=lambda *told: told, Param=lambda *told: told)
        return made


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Services:
    for name in services.CLIENT_TIMEOUTS:  # so that what the trackers set is taken back
        monkeypatch.setenv(name, "1")
    made = Services()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return made
