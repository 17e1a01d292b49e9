"""Devices, precision and processes of a training: the Fabric for a recipe on this machine.

Lightning Fabric is the engine: one process for each device, gradients averaged by DDP. torchrun starts the processes;
for `--devices` on one machine `run_workers` calls it. The main process (rank 0) prepares the data, evaluates and
writes; the others join it for the training alone.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe

PROCESS_TIMEOUT = timedelta(days=7)
"""Longest wait of one process for the others: the main process audits all images before it joins them."""
AGENT_GRACE_S = 5.0
"""Seconds within which torchrun ends the processes that have lost one; it looks every 0.1 s by default."""


def resolve_devices(recipe: Recipe) -> Recipe:
    """The recipe with the numbers of devices and nodes that train.

    Raises:
        FieldmarkError: this machine has fewer devices, or torchrun started a different number of processes.
    """
    if distributed.is_torchelastic_launched():
        return _devices_of_torchrun(recipe)
    if recipe.nodes > 1:
        raise FieldmarkError(
            f"--nodes is {recipe.nodes}: on each machine, start torchrun --nnodes {recipe.nodes} --nproc-per-node"
            " DEVICES -m fieldmark.cli train ..."
        )
    gpus, cpus = torch.cuda.device_count(), runtime.available_cpus()
    devices = recipe.devices or max(1, gpus)
    if devices > max(1, gpus or cpus):
        available = f"{gpus} GPUs" if gpus else f"{cpus} processors and no GPU"
        raise FieldmarkError(f"--devices is {devices}, but this machine has {available}")
    return recipe.replace(devices=devices)


def _devices_of_torchrun(recipe: Recipe) -> Recipe:
    """The recipe with the numbers that torchrun was started with."""
    devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    if recipe.devices not in (0, 1, devices) or recipe.nodes not in (1, nodes):
        raise FieldmarkError(
            f"torchrun has started {devices} processes on each of {nodes} machines, but --devices is {recipe.devices}"
            f" and --nodes is {recipe.nodes}: start it with --nproc-per-node {recipe.devices} --nnodes {recipe.nodes}"
        )
    # Or restarted processes meet the addresses of dead ones: github.com/pytorch/pytorch/issues/135712
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if is_shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise FieldmarkError("for --max-restarts, start torchrun under TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    return recipe.replace(devices=devices, nodes=nodes)


def needs_workers(recipe: Recipe) -> bool:
    """Whether this process is to start the processes that train (`run_workers`), since torchrun has not yet."""
    return recipe.devices > 1 and not distributed.is_torchelastic_launched()


def make_fabric(recipe: Recipe) -> Fabric:
    """This process's Fabric for a recipe whose devices are resolved; `process_group` connects several processes."""
    has_peers, has_cuda = recipe.devices * recipe.nodes > 1, torch.cuda.is_available()
    is_external = distributed.is_torchelastic_launched()
    return Fabric(
        accelerator="cuda" if has_cuda else "cpu" if has_peers else "auto",
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        strategy=DDPStrategy(timeout=PROCESS_TIMEOUT) if has_peers else "auto",
        precision=resolve_precision(recipe),
        plugins=TorchElasticEnvironment() if is_external else LightningEnvironment(),
    )


@contextmanager
def process_group(fabric: Fabric) -> Iterator[None]:
    """Connect this process with the others that train; a single process stays alone.

    Raises:
        FieldmarkError: another process is lost.
    """
    if fabric.world_size == 1:
        yield
        return
    try:
        fabric.launch()
        yield
    except RuntimeError as error:
        # A lost process is an error of the next exchange with it. torchrun sees the loss too, and ends this process
        # meanwhile; only a process of another machine goes on.
        time.sleep(AGENT_GRACE_S)
        raise FieldmarkError(
            f"process {fabric.global_rank} of the training: {error}; continue with --resume"
        ) from error
    distributed.destroy_process_group()


def run_workers(module: str, folder: Path, devices: int) -> bool:
    """Run `python -m module folder` in `devices` processes under torchrun. Returns whether all of them succeeded.

    The processes end with this one, however it ends: their stdin is a pipe that closes then (`exit_with_launcher`).
    Their stdout is this process's stderr. torchrun's own stderr, which describes a failure in dozens of lines, goes to
    `folder`/torchrun.log.
    """
    threads = max(1, runtime.available_cpus() // devices)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    with (folder / "torchrun.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, *torchrun, "-m", module, str(folder)],
            stdin=subprocess.PIPE,
            stdout=2,
            stderr=log,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            start_new_session=True,  # Ctrl-C is for this process, which then ends them
        )
        assert agent.stdin is not None
        try:
            return agent.wait() == 0
        finally:
            agent.stdin.close()
            agent.terminate()
            agent.wait()


def exit_with_launcher() -> None:
    """End this worker, and the processes it has started, when the process that called `run_workers` ends."""

    def wait() -> None:
        os.read(0, 1)  # nothing is ever sent: it returns when the pipe closes
        os.killpg(0, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def resolve_precision(recipe: Recipe) -> Any:
    """Fabric's name of the training precision: bfloat16 mixed with float32 where the hardware multiplies bfloat16."""
    if recipe.precision == "32" or (recipe.precision == "auto" and not runtime.has_bf16()):
        return "32-true"
    return "bf16-mixed"
