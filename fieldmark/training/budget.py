"""Trainer between the phases -> its recipe with what was left open: epochs for a budget, rates, the size of a batch.

A plan is made once, from measurements, and is written into recipe.yaml: with it, a resumed run does the same. Where
several processes train, all of them rehearse together; what the first one finds holds.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fieldmark.exporters.onnx import measure_inference_seconds
from fieldmark.models import Network
from fieldmark.recipes.recipe import Recipe, parse_duration
from fieldmark.training import checkpoint
from fieldmark.training.phases import Phase, progressive_crop_size, set_train_mode, train_crop_size
from fieldmark.training.trainer import Trainer

StepCallback = Callable[[float, float], bool | None]
"""Takes the seconds and the loss of a step; True ends the rehearsal."""
MAX_EPOCHS, MAX_EPOCHS_FROM_SCRATCH = 30, 100
"""More epochs than this a budget does not buy: the write-ups' routines stop there too."""
MIN_EPOCHS, MIN_STEPS = 3, 200
"""With fewer of both phase 2 ends below where phase 1 stood (docs/performance.md)."""
TIME_SAFETY_FACTOR = 1.1
"""How much longer an epoch takes than its steps and its look, measured just before: checkpoints, a machine that warms
up (docs/performance.md)."""
EXPORT_RESERVE_S = 10.0
"""Seconds that a budget keeps for export and report, beside the photos judged last (docs/performance.md)."""
MAX_BATCH_SIZE = 256
"""A batch that is found automatically is not larger: with more, fewer steps learn less in the same time."""


def plan_epochs(trainer: Trainer, recipe: Recipe, elapsed: float, n_final_images: int) -> tuple[Recipe, str]:
    """What is left of the budget, as epochs and steps of phase 2. -> the recipe with them, and a line that says so."""
    has_probe = recipe.weights != "none" and recipe.frozen_epochs > 0  # phase 1 has left something to fall back on
    is_budget_spent = elapsed + EXPORT_RESERVE_S >= parse_duration(recipe.budget or "")
    if has_probe and trainer.fabric.broadcast(is_budget_spent):  # or some processes would rehearse without the others
        return _skip_finetuning(recipe, 0.0)
    step_seconds, val_seconds = measure_costs(trainer, recipe.replace(start_size=None))
    seconds_per_image = (
        measure_inference_seconds(trainer.network, trainer.phase_builder.image_size)
        if trainer.fabric.is_global_zero
        else 0.0
    )
    reserve = EXPORT_RESERVE_S + n_final_images * seconds_per_image + val_seconds
    seconds_left = (parse_duration(recipe.budget or "") - elapsed - reserve) / TIME_SAFETY_FACTOR
    steps_per_pass = max(1, len(trainer.data.train) // recipe.batch)
    size = train_crop_size(recipe, trainer.phase_builder.image_size)
    grown = [(progressive_crop_size(recipe.start_size, size, k, 3) / size) ** 2 for k in range(3)]
    step_seconds *= sum(grown) / 3
    passes = seconds_left / (steps_per_pass * step_seconds + val_seconds)
    if has_probe and passes * steps_per_pass < min(MIN_EPOCHS * steps_per_pass, MIN_STEPS):
        return _skip_finetuning(recipe, seconds_left)
    max_epochs = MAX_EPOCHS_FROM_SCRATCH if recipe.weights == "none" else MAX_EPOCHS
    epochs = min(max_epochs, max(1, round(passes)))
    if seconds_left / epochs - val_seconds < step_seconds:  # of few photos, less than a step would fit into each
        epochs = max(1, int(passes))
    steps = min(
        int((seconds_left / epochs - val_seconds) / step_seconds),
        steps_per_pass if epochs == max_epochs else 2 * steps_per_pass,
    )
    if steps <= 0:
        return _skip_finetuning(recipe, seconds_left)
    planned = recipe.replace(epochs=epochs, steps_per_epoch=steps)
    return (
        planned,
        f"plan: {seconds_left:.0f} s are left for phase 2: {epochs} epochs of {steps} steps at {step_seconds:.2f} s",
    )


def _skip_finetuning(recipe: Recipe, left: float) -> tuple[Recipe, str]:
    planned = recipe.replace(epochs=0, steps_per_epoch=1)
    return planned, f"plan: {max(0, left):.0f} s are left, too few for phase 2"


def has_time_for_pass(trainer: Trainer, pass_seconds: float, n_final_images: int) -> bool:
    """Whether the budget has time for another pass of the frozen network over the training photos.

    What is judged after it, in 32 bits, is taken to be twice as slow.
    """
    recipe, data = trainer.recipe, trainer.data
    evaluation_seconds = 2 * pass_seconds / max(1, len(data.train)) * (len(data.val) + n_final_images)
    seconds_needed = pass_seconds + evaluation_seconds + EXPORT_RESERVE_S
    return recipe.budget is None or trainer.reporter.elapsed() + seconds_needed <= parse_duration(recipe.budget)


def measure_costs(trainer: Trainer, recipe: Recipe) -> tuple[float, float]:
    """Seconds of a training step and of a look at the validation photos behind phase 1, measured and undone.

    The mean of all phases that there are: their epochs are about as many.
    """
    measured = []
    for number in range(2, 2 + len(trainer.phase_builder.last_frozen_layers)):
        trainer.phase_builder.enter_phase(number)
        times: list[float] = []
        phase = _dry_run(trainer, number, recipe, 8, lambda seconds, _, times=times: times.append(seconds))
        few = list(islice(phase.val_batches(), 6))
        trainer.compute_logits(phase.module, few[:1])
        began = time.monotonic()
        trainer.compute_logits(phase.module, few)
        photos, n_local = sum(map(len, few)), len(trainer.phase_builder.val_labels[trainer.phase_builder.val_shard])
        measured.append((np.median(times[2:]), (time.monotonic() - began) * n_local / photos if photos else 0.0))
    trainer.phase_builder.enter_phase(2)
    step_seconds, val_seconds = np.mean(measured, 0).tolist()
    return step_seconds, val_seconds


def find_learning_rates(trainer: Trainer, recipe: Recipe, steps: int = 80) -> tuple[Recipe, str]:
    """The learning-rate range test: the rate of the head rises from step to step, the backbone's in proportion.

    Smith 2017, "Cyclical Learning Rates for Training Neural Networks"; chosen is a tenth of the rate at which the
    smoothed loss is lowest, as fastai's `lr_find` suggests for its minimum.
    """
    head, backbone = recipe.learning_rates
    low, high = head / 300, head * 100
    learning_rates = np.geomspace(low, high, steps)
    losses: list[float] = []

    def record_loss(_: float, loss: float) -> bool:
        if math.isfinite(loss):
            losses.append(0.9 * losses[-1] + 0.1 * loss if losses else loss)
        return not math.isfinite(loss) or losses[-1] > 3 * min(losses)

    _dry_run(trainer, 2, recipe, steps, record_loss, [rate / head for rate in learning_rates])
    considered = losses[steps // 10 :] or losses
    learning_rate = float(learning_rates[losses.index(min(considered))] / 10)
    learning_rate = float(f"{learning_rate:.1e}")
    planned = recipe.replace(
        find_lr=False, lr=learning_rate, backbone_lr=float(f"{learning_rate * backbone / head:.1e}")
    )
    return planned, f"plan: learning rates {planned.lr:g} for the head, {planned.backbone_lr:g} for the backbone"


def find_batch_size(
    network: Network, size: int, n_images: int, chunks_per_step: int = 1, free: float | None = None
) -> int:
    """The most photos, up to 256 and up to all there are, whose training takes half of the free memory.

    It is a power of two in each of the `parts` of a step. Measured is what two photos leave for the backward pass of
    the whole network, 32 bits a number.
    """
    device = next(network.parameters()).device
    saved_bytes: dict[int, int] = {}

    def record_saved(tensor: Tensor) -> Tensor:
        saved_bytes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    network = copy.deepcopy(network).train()  # where norms may learn from what is no photo
    mean = network.preprocessing.mean
    with torch.autograd.graph.saved_tensors_hooks(record_saved, lambda tensor: tensor):
        network(torch.zeros(2, len(mean), size, size, device=device).contiguous(memory_format=torch.channels_last))
    own = {p.data_ptr() for p in network.parameters()}
    bytes_per_image = sum(n for at, n in saved_bytes.items() if at not in own) / 2
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory_bytes()
    max_batch = min(MAX_BATCH_SIZE, max(2, n_images), max(2.0, free / 2 / bytes_per_image))
    return chunks_per_step * 2 ** int(math.log2(max(1.0, max_batch / chunks_per_step)))


def _free_memory_bytes() -> float:
    """Bytes that this machine can give without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _dry_run(
    trainer: Trainer,
    number: int,
    recipe: Recipe,
    steps: int,
    on_step: StepCallback,
    learning_rate_factors: Sequence[float] = (),
) -> Phase:
    """Some steps of a phase whose traces are wiped out; `factors` of the rates, without them nothing moves."""
    saved_weights = checkpoint.snapshot(trainer.trainable)
    phase = trainer.phase_builder.build_finetune_phase(number, recipe)
    module, optimizer = trainer.fabric.setup(phase.module, phase.optimizer)
    set_train_mode(phase.module, keep_norms=recipe.weights != "none")
    base_learning_rates = [group["lr"] for group in phase.optimizer.param_groups]
    began = time.monotonic()
    for step, (inputs, targets) in enumerate(phase.batches(0, steps)):
        for group, base_learning_rate in zip(phase.optimizer.param_groups, base_learning_rates, strict=True):
            group["lr"] = base_learning_rate * learning_rate_factors[step] if learning_rate_factors else 0.0
        optimizer.zero_grad()
        sums = trainer.accumulate_gradients(module, inputs, targets, phase.number, step)
        optimizer.step()
        trainer.fabric.all_reduce(sums, reduce_op="sum")
        if on_step(time.monotonic() - began, (sums[0] / sums[2]).item()):
            break
        began = time.monotonic()
    trainer.trainable.load_state_dict(saved_weights)
    trainer.trainable.zero_grad()
    return phase
