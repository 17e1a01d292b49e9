"""Weights & Biases and MLflow, through their own clients; RUN/resume/loggers.json keeps the id of the run there."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fieldmark.core import io

CLIENT_TIMEOUTS = {
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Seconds and tries before a service counts as unreachable: by default the clients wait for minutes, and a budget with
them. Values that the user has set win."""


class WandbLogger:
    """A run of the project `fieldmark`, unless WANDB_PROJECT names another."""

    def __init__(self, out: Path, hyperparameters: dict[str, Any], curves: dict[int, dict[str, float]]) -> None:
        wandb = _import_client("wandb")
        with _stdout_to_stderr():
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "fieldmark",
                name=out.resolve().name,
                dir=str(out),
                id=_load_or_create_run_id(out, "wandb", lambda: secrets.token_hex(8)),
                resume="allow",
                reinit="create_new",  # beside a run that the calling program may have open
                config=hyperparameters,
                settings=wandb.Settings(console="off"),
            )
        for number, values in curves.items():
            self.log_epoch(number, values)

    def log_epoch(self, number: int, values: dict[str, float]) -> None:
        if number >= self.run.starting_step:  # it has earlier ones from before a kill
            self.run.log(values, step=number, commit=True)

    def close(self, epochs: int, metrics: dict[str, float], hyperparameters: dict[str, Any]) -> None:
        self.run.summary.update(metrics)
        self.run.config.update(hyperparameters, allow_val_change=True)
        self.run.finish()


class MLFlowLogger:
    """A run of the experiment `fieldmark`, unless MLFLOW_EXPERIMENT_NAME names another."""

    def __init__(self, out: Path, hyperparameters: dict[str, Any], curves: dict[int, dict[str, float]]) -> None:
        # Not the module's functions, which keep one active run for the whole process.
        self.client = client = _import_client("mlflow").MlflowClient()
        self.entities: Any = import_module("mlflow.entities")

        def create() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fieldmark"
            experiment = client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else client.create_experiment(name)
            return client.create_run(number, run_name=out.resolve().name).info.run_id

        self.run_id = _load_or_create_run_id(out, "mlflow", create)
        self.last_epoch = client.get_run(self.run_id).data.metrics.get("epoch", 0)
        for number, values in curves.items():
            self.log_epoch(number, values)

    def log_epoch(self, number: int, values: dict[str, float]) -> None:
        if number > self.last_epoch:  # it has earlier ones from before a kill, and would take them twice
            self._log(number, {**values, "epoch": number})

    def close(self, epochs: int, metrics: dict[str, float], hyperparameters: dict[str, Any]) -> None:
        # The hyperparameters not earlier: MLflow does not let them change, and a plan changes them.
        self._log(epochs, metrics, [self.entities.Param(name, str(value)) for name, value in hyperparameters.items()])
        self.client.set_terminated(self.run_id)

    def _log(self, step: int, values: Mapping[str, float], parameters: Sequence[Any] = ()) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics, params=parameters)


def _import_client(name: str) -> Any:
    for setting, value in CLIENT_TIMEOUTS.items():
        os.environ.setdefault(setting, value)
    return import_module(name)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Give child processes stderr as stdout: wandb's prints to the stdout it inherits, where JSON belongs."""
    saved_fd = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved_fd, 1)
        os.close(saved_fd)


def _load_or_create_run_id(out: Path, logger: str, create: Callable[[], str]) -> str:
    """The id of the run with this logger; a resumed training continues it."""
    file = out / "resume" / "loggers.json"
    run_ids = io.read_json(file) if file.exists() else {}
    if logger not in run_ids:
        run_ids[logger] = create()
        io.write_json(file, run_ids)
    return run_ids[logger]
