"""What a recipe leaves open until the speed is measured: epochs for a time budget, learning rates, batch size.

A plan is made once and written into recipe.yaml; a resumed run reads it there. Where several processes train, all of
them run the trial steps; the main process's result is used.
"""

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fieldmark.core.errors import UntrainableRecipeError
from fieldmark.exporters.onnx import measure_inference_seconds
from fieldmark.models import Network
from fieldmark.models.state import snapshot
from fieldmark.recipes.recipe import Recipe, parse_duration
from fieldmark.training.phases import Phase, progressive_crop_size, set_learning_rates, set_train_mode, train_crop_size
from fieldmark.training.trainer import Trainer

StepCallback = Callable[[float, float], bool | None]
"""Takes the seconds and the loss of a trial step; True ends the trial."""
MAX_EPOCHS, MAX_EPOCHS_FROM_SCRATCH = 30, 100
"""Most epochs that a budget is spent on: as in the tutorials that the recipes reproduce."""
MIN_EPOCHS, MIN_STEPS = 1, 100
"""With fewer of both, fine-tuning is not worth its time (docs/lab/features-and-fine-tuning.md)."""
TIME_SAFETY_FACTOR = 1.05
"""How much longer an epoch takes than its steps and its validation pass, measured just before: checkpoints. If it takes
longer still, the trainer leaves the last epochs out (docs/lab/fine-tuning.md)."""
TRIAL_STEPS = 6
"""Steps that are measured and undone; the first two warm up."""
EXPORT_RESERVE_S = 14.0
"""Seconds that a budget keeps for export and report, besides the final evaluation (docs/lab/fine-tuning.md)."""
EXPORTED_SECONDS_RATIO = 0.6
"""What the exported model takes for an image, relative to PyTorch: 0.5 to 0.55 on two processors
(docs/lab/features-and-fine-tuning.md)."""
MAX_BATCH_SIZE = 256
"""Largest batch that is found automatically: with more, fewer steps learn less in the same time."""


@dataclass(frozen=True)
class Plan:
    """A recipe with what was left open, and a line about it for the log."""

    recipe: Recipe
    message: str
    finetuning_seconds: float | None = None
    """What a budget leaves for the epochs of fine-tuning, without a margin."""


@dataclass(frozen=True)
class TrainingCosts:
    """Measured durations in seconds."""

    step_s: float
    """Of a training step."""
    validation_s: float
    """Of a pass over this process's share of the validation set while fine-tuning."""
    refit_s: float = 0.0
    """Of the refit of the head after fine-tuning."""


def plan_epochs(trainer: Trainer, recipe: Recipe, n_final_images: int) -> Plan:
    """Epochs and steps of fine-tuning for the rest of the budget; `n_final_images` are evaluated after it.

    Raises:
        UntrainableRecipeError: no step fits, and there is no linear probe to keep.
    """
    has_probe = recipe.weights != "none" and recipe.frozen_epochs > 0  # the linear probe is something to fall back on
    budget = parse_duration(recipe.budget or "")
    is_spent = trainer.reporter.elapsed() + EXPORT_RESERVE_S >= budget
    if has_probe and trainer.fabric.broadcast(is_spent):  # or some processes would run trial steps without the others
        return _skip_finetuning(recipe, 0.0, None)
    costs = measure_costs(trainer, recipe.replace(start_size=None))
    image_size, n_train = trainer.phase_builder.image_size, len(trainer.data.train)
    seconds_per_image = _inference_seconds(trainer) if trainer.fabric.is_global_zero else 0.0
    reserve = EXPORT_RESERVE_S + n_final_images * seconds_per_image + costs.validation_s + costs.refit_s
    seconds_left = (budget - trainer.reporter.elapsed() - reserve) / TIME_SAFETY_FACTOR
    costs = dataclasses.replace(costs, step_s=costs.step_s * _relative_crop_cost(recipe, image_size))
    max_epochs = MAX_EPOCHS_FROM_SCRATCH if recipe.weights == "none" else MAX_EPOCHS
    steps_per_pass = max(1, n_train // recipe.batch)
    fitted = fit_epochs(seconds_left, costs, steps_per_pass, max_epochs, needs_gain=has_probe)
    # The main process decides: the others measure other times, and one that raised an error would end them all.
    fitted, seconds_left = trainer.fabric.broadcast((fitted, seconds_left))
    if fitted is None and not has_probe:
        least = costs.step_s + costs.validation_s - seconds_left
        raise UntrainableRecipeError(
            f"{recipe.budget} is too short for a single training step: take a --budget of"
            f" {math.ceil((budget + least * TIME_SAFETY_FACTOR) / 10) * 10}s or more"
        )
    if fitted is None:
        return _skip_finetuning(recipe, seconds_left, MIN_EPOCHS * (steps_per_pass * costs.step_s + costs.validation_s))
    epochs, steps = fitted
    message = f"{seconds_left:.0f} s left for fine-tuning: {epochs} epochs of {steps} steps"
    message += f", {costs.step_s:.2f} s a step"
    unused = seconds_left - epochs * (steps * costs.step_s + costs.validation_s)
    if unused > costs.step_s * steps_per_pass + costs.validation_s:
        message += f"; {unused:.0f} s of the budget are not needed"
    planned = recipe.replace(epochs=epochs, steps_per_epoch=steps)
    return Plan(planned, message, finetuning_seconds=seconds_left * TIME_SAFETY_FACTOR)


def fit_epochs(
    seconds_left: float, costs: TrainingCosts, steps_per_pass: int, max_epochs: int, *, needs_gain: bool
) -> tuple[int, int] | None:
    """Epochs, and steps in each, that fit into the time; None if they are none, or too few for a gain."""
    passes = seconds_left / (steps_per_pass * costs.step_s + costs.validation_s)
    if needs_gain and passes * steps_per_pass < min(MIN_EPOCHS * steps_per_pass, MIN_STEPS):
        return None
    epochs = min(max_epochs, max(1, round(passes)))
    if seconds_left / epochs - costs.validation_s < costs.step_s:  # of few images, less than a step would fit into each
        epochs = max(1, int(passes))
    steps = min(
        int((seconds_left / epochs - costs.validation_s) / costs.step_s),
        steps_per_pass if epochs == max_epochs else 2 * steps_per_pass,
    )
    return (epochs, steps) if steps > 0 else None


def _relative_crop_cost(recipe: Recipe, image_size: int) -> float:
    """Mean pixels of the growing crops of progressive resizing, relative to the last ones."""
    size = train_crop_size(recipe, image_size)
    return sum((progressive_crop_size(recipe.start_size, size, third, 3) / size) ** 2 for third in range(3)) / 3


def _skip_finetuning(recipe: Recipe, seconds_left: float, seconds_needed: float | None) -> Plan:
    planned = recipe.replace(epochs=0, steps_per_epoch=1)
    message = f"{max(0, seconds_left):.0f} s left, too little for fine-tuning; the linear probe is kept"
    if seconds_needed is not None:
        budget = parse_duration(recipe.budget or "") + (seconds_needed - seconds_left) * TIME_SAFETY_FACTOR
        message += f"; --budget {math.ceil(budget / 30) * 30}s would be enough for it"
    return Plan(planned, message)


def measure_costs(trainer: Trainer, recipe: Recipe) -> TrainingCosts:
    """Measure a training step and a validation pass of fine-tuning; the network is unchanged afterwards.

    The mean over the phases of fine-tuning, which have about as many epochs.
    """
    builder, measured = trainer.phase_builder, []
    for number in range(2, 2 + len(builder.last_frozen_layers)):
        builder.enter_phase(number)
        times: list[float] = []
        phase = _run_trial_steps(trainer, number, recipe, TRIAL_STEPS, lambda s, _, times=times: times.append(s))
        n_own = len(builder.val_labels[builder.val_shard])
        measured.append((np.median(times[2:]), n_own * _validation_seconds_per_image(trainer, phase)))
    builder.enter_phase(2)
    step, validation = np.mean(measured, 0).tolist()
    return TrainingCosts(step, validation, refit_s=_estimate_refit_seconds(trainer, validation))


def _validation_seconds_per_image(trainer: Trainer, phase: Phase) -> float:
    """The median over some batches after the first: one that waits for memory would be multiplied by all images."""
    times = []
    for batch in islice(phase.val_batches(), 5):
        start = time.monotonic()
        n_images = len(trainer.compute_logits(phase.module, [batch]))
        times.append((time.monotonic() - start) / n_images)
    return float(np.median(times[1:] or times)) if times else 0.0


def _estimate_refit_seconds(trainer: Trainer, validation_s: float) -> float:
    """How long the features of the training and the validation images and the solution will take.

    From kept maps an image takes as long as in a validation pass, and a fifth more for the moments of the stages. The
    solution is assumed to take as long as the linear probe's.
    """
    builder, data = trainer.phase_builder, trainer.data
    if not builder.refits_head:
        return 0.0
    n_own = len(builder.val_labels[builder.val_shard])
    if builder.has_train_maps and n_own:
        features = 1.2 * validation_s * (len(data.train) / trainer.fabric.world_size + n_own) / n_own
    else:
        features = trainer.feature_seconds or _measure_feature_seconds(trainer)
    return features + trainer.reporter.stage_seconds.get("phase1", 0.0)


def _measure_feature_seconds(trainer: Trainer) -> float:
    """Estimated seconds for all features, where validation images are evaluated in float32: half as fast at worst."""
    n_images = (len(trainer.data.train) + 2 * len(trainer.data.val)) / trainer.fabric.world_size
    return trainer.phase_builder.frozen_features.measure_seconds_per_image() * n_images


def _inference_seconds(trainer: Trainer) -> float:
    """Estimated seconds that the exported model takes for one image: on a CPU by what its features have taken."""
    features, data = trainer.feature_seconds, trainer.data
    if features and trainer.fabric.world_size == 1 and trainer.fabric.device.type == "cpu":
        return EXPORTED_SECONDS_RATIO * features / (len(data.train) + len(data.val))
    return measure_inference_seconds(trainer.network, trainer.phase_builder.image_size)


def find_learning_rates(trainer: Trainer, recipe: Recipe, steps: int = 80) -> Plan:
    """Learning-rate range test: the head's learning rate rises from step to step, the backbone's in proportion.

    Smith 2017, "Cyclical Learning Rates for Training Neural Networks". The result is a tenth of the learning rate with
    the lowest smoothed loss, as fastai's `lr_find` suggests for its minimum.
    """
    head, backbone = recipe.learning_rates
    factors = np.geomspace(1 / 300, 100, steps)
    losses: list[float] = []

    def record_loss(_: float, loss: float) -> bool:
        if math.isfinite(loss):
            losses.append(0.9 * losses[-1] + 0.1 * loss if losses else loss)
        return not math.isfinite(loss) or losses[-1] > 3 * min(losses)

    _run_trial_steps(trainer, 2, recipe, steps, record_loss, factors.tolist())
    considered = losses[steps // 10 :] or losses
    learning_rate = float(f"{head * factors[losses.index(min(considered))] / 10:.1e}")
    backbone_lr = float(f"{learning_rate * backbone / head:.1e}")
    return Plan(
        recipe.replace(find_lr=False, lr=learning_rate, backbone_lr=backbone_lr),
        f"learning rates {learning_rate:g} for the head, {backbone_lr:g} for the backbone",
    )


def find_batch_size(
    network: Network, size: int, n_images: int, chunks_per_step: int = 1, free: float | None = None
) -> int:
    """The largest batch, up to 256 and up to all images, whose training takes half of the free memory.

    It is a power of two in each of the `chunks_per_step`. Two images are measured: what they leave for the backward
    pass of the whole network in float32.

    Args:
        network: on any device.
        size: side of the training images, in pixels.
        n_images: training images.
        chunks_per_step: into which devices and gradient accumulation divide a batch.
        free: bytes; by default those of the device that trains (`free_memory_bytes`).
    """
    device = next(network.parameters()).device
    saved_bytes: dict[int, int] = {}

    def record_saved(tensor: Tensor) -> Tensor:
        saved_bytes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    network = copy.deepcopy(network).train()  # a copy: its norms learn from blank images here
    mean = network.preprocessing.mean
    with torch.autograd.graph.saved_tensors_hooks(record_saved, lambda tensor: tensor):
        network(torch.zeros(2, len(mean), size, size, device=device).contiguous(memory_format=torch.channels_last))
    own = {p.data_ptr() for p in network.parameters()}
    bytes_per_image = sum(n for at, n in saved_bytes.items() if at not in own) / 2
    free = free_memory_bytes() if free is None else free
    max_batch = min(MAX_BATCH_SIZE, max(2, n_images), max(2.0, free / 2 / bytes_per_image))
    return chunks_per_step * 2 ** int(math.log2(max(1.0, max_batch / chunks_per_step)))


ASSUMED_FREE_BYTES = 4 * 2**30
"""Free memory where the system does not tell it."""


def free_memory_bytes() -> float:
    """Free memory of the device that trains: of the GPU where there is one, wherever the network is at the moment."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows, macOS
        return ASSUMED_FREE_BYTES


def _run_trial_steps(
    trainer: Trainer,
    number: int,
    recipe: Recipe,
    steps: int,
    on_step: StepCallback,
    lr_factors: Sequence[float] = (),
) -> Phase:
    """Some steps of a phase, undone afterwards; without `lr_factors` the learning rate is 0."""
    saved_weights = snapshot(trainer.trainable)
    phase = trainer.phase_builder.build_finetune_phase(number, recipe)
    module, optimizer = trainer.fabric.setup(trainer.compile_module(phase), phase.optimizer)
    set_train_mode(phase.module, keep_norms=recipe.weights != "none")
    start = time.monotonic()
    for step, (inputs, targets) in enumerate(phase.batches(0, steps)):
        set_learning_rates(phase.optimizer, lr_factors[step] if lr_factors else 0.0)
        optimizer.zero_grad()
        sums = trainer.accumulate_gradients(module, inputs, targets, phase.number, step)
        optimizer.step()
        trainer.fabric.all_reduce(sums, reduce_op="sum")
        if on_step(time.monotonic() - start, (sums[0] / sums[2]).item()):
            break
        start = time.monotonic()
    trainer.trainable.load_state_dict(saved_weights)
    trainer.trainable.zero_grad()
    return phase
