"""Trainer between the phases -> its recipe with what was left open: epochs for a budget, rates, the size of a batch.

A plan is made once, from measurements, and is written into recipe.yaml: with it, a resumed run does the same. Where
several processes train, all of them rehearse together; what the first one finds holds.
"""

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fieldmark.exporters.onnx import judging_time
from fieldmark.models import Network
from fieldmark.recipes.recipe import Recipe, seconds
from fieldmark.training import checkpoint
from fieldmark.training.phases import Phase, growing_size, learning_mode, training_size
from fieldmark.training.trainer import Trainer

Watch = Callable[[float, float], bool | None]
"""Takes the seconds and the loss of a step; True ends the rehearsal."""
MOST_EPOCHS, FROM_SCRATCH = 30, 100
"""More epochs than this a budget does not buy: the write-ups' routines stop there too."""
LEAST_PASSES, LEAST_STEPS = 3, 200
"""With fewer of both phase 2 ends below where phase 1 stood (docs/performance.md)."""
SLACK = 1.1
"""How much longer an epoch takes than its steps and its look, measured just before: checkpoints, a machine that warms
up (docs/performance.md)."""
CLOSING = 10.0
"""Seconds that a budget keeps for export and report, beside the photos judged last (docs/performance.md)."""
MOST_PHOTOS = 256
"""A batch that is found automatically is not larger: with more, fewer steps learn less in the same time."""


def epochs_for(trainer: Trainer, recipe: Recipe, elapsed: float, judged_last: int) -> tuple[Recipe, str]:
    """What is left of the budget, as epochs and steps of phase 2. -> the recipe with them, and a line that says so."""
    begun = recipe.weights != "none" and recipe.frozen_epochs > 0  # phase 1 has left something to fall back on
    spent = elapsed + CLOSING >= seconds(recipe.budget or "")
    if begun and trainer.fabric.broadcast(spent):  # or some processes would rehearse without the others
        return _without_phase_2(recipe, 0.0)
    step, look = costs(trainer, dataclasses.replace(recipe, start_size=None))
    judging = judging_time(trainer.network, trainer.routine.size) if trainer.fabric.is_global_zero else 0.0
    closing = CLOSING + judged_last * judging + look
    left = (seconds(recipe.budget or "") - elapsed - closing) / SLACK
    full = max(1, len(trainer.data.train) // recipe.batch)
    size = training_size(recipe, trainer.routine.size)
    grown = [(growing_size(recipe.start_size, size, k, 3) / size) ** 2 for k in range(3)]
    step *= sum(grown) / 3
    passes = left / (full * step + look)
    if begun and passes * full < min(LEAST_PASSES * full, LEAST_STEPS):
        return _without_phase_2(recipe, left)
    most = FROM_SCRATCH if recipe.weights == "none" else MOST_EPOCHS
    epochs = min(most, max(1, round(passes)))
    if left / epochs - look < step:  # of few photos, less than a step would fit into each
        epochs = max(1, int(passes))
    steps = min(int((left / epochs - look) / step), full if epochs == most else 2 * full)
    if steps <= 0:
        return _without_phase_2(recipe, left)
    planned = dataclasses.replace(recipe, epochs=epochs, steps_per_epoch=steps)
    return planned, f"plan: {left:.0f} s are left for phase 2: {epochs} epochs of {steps} steps at {step:.2f} s"


def _without_phase_2(recipe: Recipe, left: float) -> tuple[Recipe, str]:
    planned = dataclasses.replace(recipe, epochs=0, steps_per_epoch=1)
    return planned, f"plan: {max(0, left):.0f} s are left, too few for phase 2"


def affords(trainer: Trainer, pass_seconds: float, judged_last: int) -> bool:
    """Whether the budget has time for another pass of the frozen network over the training photos.

    What is judged after it, in 32 bits, is taken to be twice as slow.
    """
    recipe, data = trainer.recipe, trainer.data
    judged = 2 * pass_seconds / max(1, len(data.train)) * (len(data.val) + judged_last)
    closing = pass_seconds + judged + CLOSING
    return recipe.budget is None or trainer.reporter.elapsed() + closing <= seconds(recipe.budget)


def costs(trainer: Trainer, recipe: Recipe) -> tuple[float, float]:
    """Seconds of a training step and of a look at the validation photos behind phase 1, measured and undone.

    The mean of all phases that there are: their epochs are about as many.
    """
    measured = []
    for number in range(2, 2 + len(trainer.routine.cuts)):
        trainer.routine.enter(number)
        times: list[float] = []
        phase = _rehearse(trainer, number, recipe, 8, lambda seconds, _, times=times: times.append(seconds))
        few = list(islice(phase.maps(), 6))
        trainer.logits(phase.module, few[:1])
        began = time.monotonic()
        trainer.logits(phase.module, few)
        photos, mine = sum(map(len, few)), len(trainer.routine.val_labels[trainer.routine.mine])
        measured.append((np.median(times[2:]), (time.monotonic() - began) * mine / photos if photos else 0.0))
    trainer.routine.enter(2)
    step, look = np.mean(measured, 0).tolist()
    return step, look


def rates_for(trainer: Trainer, recipe: Recipe, steps: int = 80) -> tuple[Recipe, str]:
    """The learning-rate range test: the rate of the head rises from step to step, the backbone's in proportion.

    Smith 2017, "Cyclical Learning Rates for Training Neural Networks"; chosen is a tenth of the rate at which the
    smoothed loss is lowest, as fastai's `lr_find` suggests for its minimum.
    """
    head, backbone = recipe.rates
    low, high = head / 300, head * 100
    rises = np.geomspace(low, high, steps)
    losses: list[float] = []

    def watch(_: float, loss: float) -> bool:
        if math.isfinite(loss):
            losses.append(0.9 * losses[-1] + 0.1 * loss if losses else loss)
        return not math.isfinite(loss) or losses[-1] > 3 * min(losses)

    _rehearse(trainer, 2, recipe, steps, watch, [rate / head for rate in rises])
    settled = losses[steps // 10 :] or losses
    found = float(rises[losses.index(min(settled))] / 10)
    found = float(f"{found:.1e}")
    planned = dataclasses.replace(recipe, find_lr=False, lr=found, backbone_lr=float(f"{found * backbone / head:.1e}"))
    return planned, f"plan: learning rates {planned.lr:g} for the head, {planned.backbone_lr:g} for the backbone"


def batch_for(network: Network, size: int, photos: int, parts: int = 1, free: float | None = None) -> int:
    """The most photos, up to 256 and up to all there are, whose training takes half of the free memory.

    It is a power of two in each of the `parts` of a step. Measured is what two photos leave for the backward pass of
    the whole network, 32 bits a number.
    """
    device = next(network.parameters()).device
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    network = copy.deepcopy(network).train()  # where norms may learn from what is no photo
    mean = network.preprocessing.mean
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, len(mean), size, size, device=device).contiguous(memory_format=torch.channels_last))
    own = {p.data_ptr() for p in network.parameters()}
    each = sum(n for at, n in kept.items() if at not in own) / 2
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    most = min(MOST_PHOTOS, max(2, photos), max(2.0, free / 2 / each))
    return parts * 2 ** int(math.log2(max(1.0, most / parts)))


def _free_memory() -> float:
    """Bytes that this machine can give without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _rehearse(
    trainer: Trainer, number: int, recipe: Recipe, steps: int, watch: Watch, factors: Sequence[float] = ()
) -> Phase:
    """Some steps of a phase whose traces are wiped out; `factors` of the rates, without them nothing moves."""
    kept = checkpoint.snapshot(trainer.trained)
    phase = trainer.routine.later(number, recipe)
    module, optimizer = trainer.fabric.setup(phase.module, phase.optimizer)
    learning_mode(phase.module, keep_norms=recipe.weights != "none")
    rates = [group["lr"] for group in phase.optimizer.param_groups]
    began = time.monotonic()
    for step, (inputs, targets) in enumerate(phase.batches(0, steps)):
        for group, rate in zip(phase.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factors[step] if factors else 0.0
        optimizer.zero_grad()
        sums = trainer.gradients(module, inputs, targets, phase.number, step)
        optimizer.step()
        trainer.fabric.all_reduce(sums, reduce_op="sum")
        if watch(time.monotonic() - began, (sums[0] / sums[2]).item()):
            break
        began = time.monotonic()
    trainer.trained.load_state_dict(kept)
    trainer.trained.zero_grad()
    return phase
