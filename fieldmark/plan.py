"""Trainer between the phases -> its recipe with what was left open: epochs for a budget, rates, the size of a batch.

A plan is made once, from measurements, and is written into recipe.yaml: with it, a resumed run does the same.
"""

import dataclasses
import math
import os
import time
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fieldmark import checkpoint
from fieldmark.export import judging_time
from fieldmark.finetune import Trainer
from fieldmark.network import Network
from fieldmark.phases import Phase, growing_size, learning_mode, training_loss, training_size
from fieldmark.recipe import Recipe, seconds

MOST_EPOCHS = 30
"""More epochs than this a budget does not buy: the write-ups' routine stops there too."""
CLOSING = 8.0
"""Seconds that a budget keeps for the export and the report, beside the test photos: measured, docs/performance.md."""
MOST_PHOTOS = 256
"""A batch that is found automatically is not larger: with more, fewer steps learn less in the same time."""


def epochs_for(trainer: Trainer, recipe: Recipe, elapsed: float, test_photos: int) -> tuple[Recipe, str]:
    """What is left of the budget, as epochs and steps of phase 2. -> the recipe with them, and a line that says so."""
    step, look = costs(trainer, dataclasses.replace(recipe, start_size=None))
    closing = CLOSING + test_photos * judging_time(trainer.network, trainer.routine.size) + look
    left = seconds(recipe.budget or "") - elapsed - closing
    full = max(1, len(trainer.data.train) // recipe.batch)
    size = training_size(recipe, trainer.routine.size)
    grown = [(growing_size(recipe.start_size, size, k, 3) / size) ** 2 for k in range(3)]
    step *= sum(grown) / 3
    epochs = min(MOST_EPOCHS, max(1, round(left / (full * step + look))))
    steps = min(int((left / epochs - look) / step), full if epochs == MOST_EPOCHS else 2 * full)
    if steps <= 0:
        planned = dataclasses.replace(recipe, epochs=0, steps_per_epoch=1)
        return planned, f"plan: the budget is spent; phase 2 is left out ({left:.0f} s left)"
    planned = dataclasses.replace(recipe, epochs=epochs, steps_per_epoch=steps)
    return planned, f"plan: {left:.0f} s are left for phase 2: {epochs} epochs of {steps} steps at {step:.2f} s"


def costs(trainer: Trainer, recipe: Recipe) -> tuple[float, float]:
    """Seconds of a training step and of a look at the validation photos in phase 2, measured on a copy."""
    times: list[float] = []
    phase = _rehearse(trainer, recipe, 8, lambda step, began, loss: times.append(time.monotonic() - began))
    few = list(islice(phase.maps(), 6))
    trainer.logits(phase.module, few[:1])
    began = time.monotonic()
    trainer.logits(phase.module, few)
    photos = sum(map(len, few))
    look = (time.monotonic() - began) * len(trainer.data.val) / photos if photos else 0.0
    return float(np.median(times[2:])), look


def rates_for(trainer: Trainer, recipe: Recipe, steps: int = 80) -> tuple[Recipe, str]:
    """The learning-rate range test: the rate of the head rises from step to step, the backbone's in proportion.

    Smith 2017, "Cyclical Learning Rates for Training Neural Networks"; chosen is a tenth of the rate at which the
    smoothed loss is lowest, as fastai's `lr_find` suggests for its minimum.
    """
    head, backbone = recipe.rates
    low, high = head / 300, head * 100
    rises = np.geomspace(low, high, steps)
    losses: list[float] = []

    def watch(step: int, began: float, loss: float) -> bool:
        losses.append(0.9 * losses[-1] + 0.1 * loss if losses else loss)
        return not math.isfinite(loss) or losses[-1] > 3 * min(losses)

    _rehearse(trainer, recipe, steps, watch, [rate / head for rate in rises])
    settled = losses[steps // 10 :] or losses
    found = float(rises[losses.index(min(settled))] / 10)
    found = float(f"{found:.1e}")
    planned = dataclasses.replace(recipe, find_lr=False, lr=found, backbone_lr=float(f"{found * backbone / head:.1e}"))
    return planned, f"plan: learning rates {planned.lr:g} for the head, {planned.backbone_lr:g} for the backbone"


def batch_for(network: Network, size: int, photos: int, free: float | None = None) -> int:
    """The largest power of two up to 256, and up to the number of photos, whose training takes half of the free memory.

    Measured is what two photos leave for the backward pass of the whole network, 32 bits a number.
    """
    device = next(network.parameters()).device
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    network.train()
    mean = network.preprocessing.mean
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, len(mean), size, size, device=device).contiguous(memory_format=torch.channels_last))
    own = {p.data_ptr() for p in network.parameters()}
    each = sum(n for at, n in kept.items() if at not in own) / 2
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    most = min(MOST_PHOTOS, max(2, photos), max(2.0, free / 2 / each))
    return 2 ** int(math.log2(most))


def _free_memory() -> float:
    """Bytes that this machine can give without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _rehearse(trainer: Trainer, recipe: Recipe, steps: int, watch, factors: list[float] | None = None) -> Phase:
    """Some steps of phase 2 whose traces are wiped out; `watch(step, began, loss)` may end them by True."""
    kept = checkpoint.snapshot(trainer.trained)
    phase = trainer.routine.later(trainer.state.phase, recipe)
    learning_mode(phase.module, keep_norms=recipe.weights != "none")
    rates = [group["lr"] for group in phase.optimizer.param_groups]
    began = time.monotonic()
    for step, (inputs, targets) in enumerate(phase.batches(0, steps)):
        for group, rate in zip(phase.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factors[step] if factors else 0.0
        with trainer.fabric.autocast():
            loss, _ = training_loss(phase.module, inputs, trainer.fabric.to_device(targets), recipe.label_smoothing)
        phase.optimizer.zero_grad()
        loss.backward()
        phase.optimizer.step()
        if watch(step, began, loss.item()):
            break
        began = time.monotonic()
    trainer.trained.load_state_dict(kept)
    trainer.trained.zero_grad()
    return phase
