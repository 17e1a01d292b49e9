"""Recipe + this machine -> the Fabric that carries the training, and the processes that train together.

Lightning Fabric is the engine: a process per device, started by it (`--devices`) or by torchrun, gradients averaged by
DDP. The first process prepares the photos, judges and writes; the others join it for the training alone.
"""

import ctypes
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed

import __main__
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe

PROCESS_TIMEOUT = timedelta(days=7)
"""Longest wait of one process for the others: for the first one to audit all photos, where torchrun starts them all."""
MAIN_PID_VARIABLE = "FIELDMARK_FIRST_PROCESS"
"""The environment variable that tells a process by whom, a process number, it was started to train with."""
LAUNCH_VARIABLES = (
    MAIN_PID_VARIABLE,
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "WORLD_SIZE",
)
LAUNCH_VARIABLES += ("OMP_NUM_THREADS",)  # Fabric gives each process its share of the cores
"""What the start of other processes leaves in the environment, where the next training must not find it."""


def resolve_devices(recipe: Recipe) -> Recipe:
    """The recipe with the devices and nodes that train.

    Raises:
        FieldmarkError: this machine has not as many, or whoever started the processes says otherwise.
    """
    if MAIN_PID_VARIABLE in os.environ:
        return dataclasses.replace(recipe, devices=int(os.environ["WORLD_SIZE"]), nodes=1)
    devices, nodes = recipe.devices, recipe.nodes
    if distributed.is_torchelastic_launched():
        started = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
        if devices not in (0, 1, started[0]) or nodes not in (1, started[1]):
            raise FieldmarkError(
                f"torchrun has started {started[0]} processes on each of {started[1]} machines, but --devices is"
                f" {devices} and --nodes is {nodes}: start it with --nproc-per-node {devices} --nnodes {nodes}"
            )
        # Or processes that are started again meet the addresses of dead ones: github.com/pytorch/pytorch/issues/135712
        shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
            raise FieldmarkError("for --max-restarts, start torchrun under TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
        return dataclasses.replace(recipe, devices=started[0], nodes=started[1])
    if nodes > 1:
        raise FieldmarkError(
            f"--nodes is {nodes}: on each machine, start torchrun --nnodes {nodes} --nproc-per-node DEVICES"
            " -m fieldmark.cli train ..."
        )
    gpus = torch.cuda.device_count()
    devices = devices or max(1, gpus)
    if devices > max(1, gpus or runtime.available_cpus()):
        there = f"{gpus} GPUs" if gpus else f"{runtime.available_cpus()} processors and no GPU"
        raise FieldmarkError(f"--devices is {devices}, but this machine has {there}")
    if devices > 1 and (hasattr(sys, "ps1") or not (__main__.__spec__ or Path(sys.argv[0]).is_file())):
        raise FieldmarkError(
            f"--devices is {devices}, but a notebook or python -c cannot be started {devices} times: make it a script"
        )
    return dataclasses.replace(recipe, devices=devices, nodes=nodes)


def make_fabric(recipe: Recipe) -> Fabric:
    """This process's Fabric for a settled recipe; several processes come together by `first` and `join`."""
    together, gpus = recipe.devices * recipe.nodes > 1, torch.cuda.is_available()
    external = distributed.is_torchelastic_launched()
    return Fabric(
        accelerator="cuda" if gpus else "cpu" if together else "auto",
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        strategy=DDPStrategy(timeout=PROCESS_TIMEOUT) if together else "auto",
        precision=resolve_precision(recipe),
        plugins=TorchElasticEnvironment() if external else LightningEnvironment(),
    )


@contextmanager
def main_process(fabric: Fabric) -> Iterator[None]:
    """The training, in the first process: the others live as long as it lasts, or end with it.

    Raises:
        FieldmarkError: another process is gone.
    """
    if fabric.world_size == 1:
        yield
        return
    before, threads = set(os.environ), torch.get_num_threads()
    if not distributed.is_torchelastic_launched():
        os.environ |= {MAIN_PID_VARIABLE: str(os.getpid()), "LOCAL_WORLD_SIZE": str(fabric.world_size)}
    helpers: list[Any] = getattr(fabric.strategy.launcher, "procs", [])
    try:
        _launch(fabric)
        yield
        for helper in helpers:
            helper.wait()
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise FieldmarkError(
            "another process of this training is gone (out of memory, or killed?): go on with --resume"
        ) from None
    finally:
        ours = helpers.copy()
        helpers.clear()  # or Fabric would kill this process too when it finds them dead
        for helper in ours:
            helper.kill()
            helper.wait()
        if ours and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in set(LAUNCH_VARIABLES) - before:
            os.environ.pop(name, None)
        torch.set_num_threads(threads)


def run_worker(fabric: Fabric, work: Callable[[], None]) -> NoReturn:
    """The training, in every other process, which then ends, whatever the program around it still has in mind."""
    external, failed = MAIN_PID_VARIABLE not in os.environ, True
    try:
        if not external:
            _exit_with_parent(int(os.environ[MAIN_PID_VARIABLE]))
        _launch(fabric)
        work()
        failed = False
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        if not _is_lost_peer(error):  # who is lost has said why, or cannot
            print(f"fieldmark: process {fabric.global_rank}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # The first process finds out in any case; by Fabric it would be killed for it, before it could say so.
    os._exit(2 if failed and external else 0)


def _launch(fabric: Fabric) -> None:
    """Come together; whom this starts does not hear Ctrl-C, and ends with the first process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # they inherit it
    try:
        fabric.launch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_parent(parent: int) -> None:
    """Have the kernel end this process when the one that started it ends, however that does (Linux only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


def _is_lost_peer(error: BaseException) -> bool:
    """Whether another process has gone away, in the words of gloo or as an error of NCCL and the store."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def resolve_precision(recipe: Recipe) -> Any:
    """Fabric's name for what training computes in: bf16 mixed with 32 bits where the processor multiplies it itself."""
    if recipe.precision == "32" or (recipe.precision == "auto" and not has_bf16()):
        return "32-true"
    return "bf16-mixed"


def has_bf16() -> bool:
    """Whether bfloat16 is faster here than 32 bits: on GPUs since Ampere, on CPUs with AVX-512 BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
