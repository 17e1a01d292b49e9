"""Epochs -> a run at Weights & Biases or MLflow, through their own clients; RUN/resume/loggers.json keeps its id."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fieldmark.core import io

PATIENCE = {
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Seconds and tries before a service counts as gone: left alone, the clients wait for minutes, and a budget with them.
What the user has set wins."""


class WeightsAndBiases:
    """A run of the project `fieldmark`, unless WANDB_PROJECT names another."""

    def __init__(self, out: Path, settings: dict[str, Any], curves: dict[int, dict[str, float]]) -> None:
        wandb = _client("wandb")
        with _stdout_is_stderr():
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "fieldmark",
                name=out.resolve().name,
                dir=str(out),
                id=_kept(out, "wandb", lambda: secrets.token_hex(8)),
                resume="allow",
                reinit="create_new",  # whatever run of its own the program around us has open
                config=settings,
                settings=wandb.Settings(console="off"),
            )
        for number, values in curves.items():
            self.epoch(number, values)

    def epoch(self, number: int, values: dict[str, float]) -> None:
        if number >= self.run.starting_step:  # earlier ones it has, from before the run was killed
            self.run.log(values, step=number, commit=True)

    def close(self, epochs: int, figures: dict[str, float], settings: dict[str, Any]) -> None:
        self.run.summary.update(figures)
        self.run.config.update(settings, allow_val_change=True)
        self.run.finish()


class Mlflow:
    """A run of the experiment `fieldmark`, unless MLFLOW_EXPERIMENT_NAME names another."""

    def __init__(self, out: Path, settings: dict[str, Any], curves: dict[int, dict[str, float]]) -> None:
        # Not the module's own functions, which hold one active run for the whole program.
        self.client = client = _client("mlflow").MlflowClient()
        self.entities: Any = import_module("mlflow.entities")

        def create() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fieldmark"
            there = client.get_experiment_by_name(name)
            number = there.experiment_id if there else client.create_experiment(name)
            return client.create_run(number, run_name=out.resolve().name).info.run_id

        self.run = _kept(out, "mlflow", create)
        self.held = client.get_run(self.run).data.metrics.get("epoch", 0)
        for number, values in curves.items():
            self.epoch(number, values)

    def epoch(self, number: int, values: dict[str, float]) -> None:
        if number > self.held:  # earlier ones it has, from before the run was killed, and would take twice
            self._log(number, {**values, "epoch": number})

    def close(self, epochs: int, figures: dict[str, float], settings: dict[str, Any]) -> None:
        # The settings not before: MLflow lets nobody change them, and a plan does.
        self._log(epochs, figures, [self.entities.Param(name, str(value)) for name, value in settings.items()])
        self.client.set_terminated(self.run)

    def _log(self, step: int, values: Mapping[str, float], parameters: Sequence[Any] = ()) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics, params=parameters)


def _client(name: str) -> Any:
    for setting, value in PATIENCE.items():
        os.environ.setdefault(setting, value)
    return import_module(name)


@contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """For a process that is started inside: the one of wandb prints onto the stdout it inherits, where JSON belongs."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _kept(out: Path, logger: str, create: Callable[[], str]) -> str:
    """The id of the run with this logger: a resumed training goes on with it."""
    file = out / "resume" / "loggers.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if logger not in known:
        known[logger] = create()
        io.write(file, known)
    return known[logger]
