"""Recipe + this machine -> the Fabric that carries the training: devices, nodes and precision.

Lightning Fabric is the engine: a process per device, started by it (`--devices`) or by torchrun, gradients averaged by
DDP. What a process does alone and what all do together is told by `fabric.is_global_zero`.
"""

import os
from typing import Any

import torch
from lightning_fabric import Fabric

from fieldmark import machine
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Recipe


def launch(recipe: Recipe) -> Fabric:
    """The Fabric of this process; with several devices it starts the other processes, which run the same command."""
    devices, nodes = recipe.devices, recipe.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has decided
        devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", 1))
    elif nodes > 1:
        raise FieldmarkError(
            f"--nodes {nodes}: start it on each machine by torchrun --nnodes {nodes} --nproc-per-node DEVICES"
            " -m fieldmark.cli train ..."
        )
    gpus = torch.cuda.device_count()
    devices = devices or max(1, gpus)
    if gpus and devices > gpus:
        raise FieldmarkError(f"--devices is {devices}, but this machine has {gpus} GPUs")
    if not gpus and devices > machine.cores():
        raise FieldmarkError(f"--devices is {devices}, but this machine has {machine.cores()} processors and no GPU")
    together = devices * nodes > 1
    if together and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, machine.cores() // devices))
    fabric = Fabric(
        accelerator="cuda" if gpus else "auto" if not together else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if together else "auto",
        precision=precision(recipe),
    )
    if together:
        fabric.launch()
    return fabric


def precision(recipe: Recipe) -> Any:
    """Fabric's name for what training computes in: bf16 mixed with 32 bits where the processor multiplies it itself."""
    if recipe.precision == "32" or (recipe.precision == "auto" and not has_bf16()):
        return "32-true"
    return "bf16-mixed"


def has_bf16() -> bool:
    """Whether bfloat16 is faster here than 32 bits: on GPUs since Ampere, on CPUs with AVX-512 BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
