"""A training step of Fieldmark beside bare PyTorch: the same network, photos, precision and optimiser, in turn.

    python benchmarks/overhead.py ../shared/data/trashnet

Bare is what one would write by hand: loader, frozen prefix without gradients (its norms folded, as ours), trained
part, loss, backward, SGD. Both sides run the same number of steps on the same batches, one after the other, several
rounds; the ratio is bare's time by ours, 1.0 is no overhead, with quartiles over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from fieldmark.core import runtime
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import AugmentedDataset, iter_train_batches
from fieldmark.data.readers import read_catalog
from fieldmark.models import build
from fieldmark.pipeline.prepare import prepare_data
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import distributed
from fieldmark.training.phases import set_train_mode, train_crop_size
from fieldmark.training.trainer import Trainer, TrainingState

PREPROCESSING = {"size": 256, "crop": 1.0, "interpolation": "bicubic"}


def ours(trainer: Trainer, steps: int) -> float:
    """Seconds of one epoch of phase 2, its look at the validation photos and its checkpoint left out."""
    trainer.state = TrainingState(phase=2)
    trainer.epoch_sums.zero_()
    phase = trainer.phase_builder.build_finetune_phase(2, trainer.recipe)
    module, optimizer = trainer.fabric.setup(phase.module, phase.optimizer)
    set_train_mode(phase.module, keep_norms=True)
    began = time.perf_counter()
    for inputs, targets in phase.batches(0, steps):
        trainer._train_step(phase, module, optimizer, inputs, targets)
    return time.perf_counter() - began


def bare(trainer: Trainer, steps: int) -> float:
    """The same, by hand."""
    recipe, data, routine = trainer.recipe, trainer.data, trainer.phase_builder
    model, prefix, normalise = (
        routine.trainable,
        routine.frozen_features.fused_prefix,
        routine.frozen_features.normalise,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4)
    size, labels = train_crop_size(recipe, routine.image_size), data.labels[data.train]
    photos = AugmentedDataset(data.images, data.train, labels, size, "standard", 0, crop=1.0)
    set_train_mode(model, keep_norms=True)
    half = distributed.resolve_precision(recipe) == "bf16-mixed"
    began = time.perf_counter()
    for images, labels in iter_train_batches(photos, recipe.batch, 0, steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            with torch.no_grad():
                maps = prefix(normalise(images))
            logits = model(maps)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    recipe = Recipe(backbone=asked.backbone, lr=1e-4, precision=asked.precision)
    fabric, reporter = distributed.make_fabric(distributed.resolve_devices(recipe)), Reporter(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        catalog = read_catalog(asked.photos)
        table = prepare_data(catalog, PREPROCESSING, recipe, Path(folder), reporter)
        network = build(asked.backbone, classes=len(table.classes), weights="imagenet")
        trainer = Trainer(network, table.data, recipe, Path(folder) / "resume", reporter, fabric)
        trainer.trainable.requires_grad_(True)
        for side in (ours, bare):
            side(trainer, 5)
        times: dict[str, list[float]] = {"ours": [], "bare": []}
        for k in range(asked.rounds):
            for name, side in sorted({"ours": ours, "bare": bare}.items(), reverse=bool(k % 2)):
                times[name].append(side(trainer, asked.steps) / asked.steps)
    ratios = [theirs / own for own, theirs in zip(times["ours"], times["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    step = {name: statistics.median(values) for name, values in times.items()}
    print(f"{asked.backbone}, batch {recipe.batch}, {distributed.resolve_precision(recipe)}")
    print(f"ours {step['ours']:.3f} s a step, bare {step['bare']:.3f} s: {recipe.batch / step['ours']:.0f} photos/s")
    print(f"bare by ours {middle:.3f} ({low:.3f} to {high:.3f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
