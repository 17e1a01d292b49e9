"""Network + recipe -> what stays frozen, what trains and how fast; all of it pure functions."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.network import Auxiliary, Network, is_added
from fieldmark.recipe import Recipe

Row = dict[str, Any]
"""An epoch in the history."""
Batches = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Phase:
    """What one phase trains, on which batches, and how fast."""

    number: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches  # (first step, last step) -> (input of the module, labels)
    maps: Callable[[], Iterator[Tensor]]  # the validation photos as inputs of the module
    epochs: int
    steps: int  # in an epoch
    schedule: str


def frozen_until(network: Network, recipe: Recipe) -> str | None:
    """The last layer that stays frozen in phase 2, or None when everything trains."""
    return None if recipe.weights == "none" or recipe.unfreeze == "all" else network.cut


def parameter_groups(network: Network, rest: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """SGD's groups: backbone and new parts, each with and without decay (biases and norms have none)."""
    fresh = {id(p) for m in rest.modules() if is_added(m) or isinstance(m, Auxiliary) for p in m.parameters()}
    old = [p for p in rest.parameters() if id(p) not in fresh]
    new = [p for p in rest.parameters() if id(p) in fresh] + list(network.head.parameters())
    backbone_lr = recipe.lr if recipe.weights == "none" else recipe.backbone_lr
    groups = []
    for parameters, lr in ((old, backbone_lr), (new, recipe.lr)):
        for decayed in (False, True):
            some = [p for p in parameters if (p.ndim > 1) == decayed]
            if some:
                groups.append({"params": some, "lr": lr, "weight_decay": recipe.weight_decay if decayed else 0.0})
    return groups


def learning_mode(module: nn.Module, keep_norms: bool) -> None:
    """Train mode for what trains; what is frozen stays in eval, batch norms with their running statistics included.

    With `keep_norms` the published batch norms keep their statistics too, although their scale and shift train: those
    of a few crops are worse (docs/performance.md). Norms in added attention and auxiliary heads always learn theirs.
    """
    module.train()
    fresh = [part for part in module.modules() if is_added(part) or isinstance(part, Auxiliary)]
    added = {id(norm) for part in fresh for norm in part.modules()}
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        frozen = parameters and not any(p.requires_grad for p in parameters)
        if frozen or (keep_norms and isinstance(part, nn.modules.batchnorm._BatchNorm) and id(part) not in added):
            part.eval()


def training_loss(module: nn.Module, inputs: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """A batch through a module in training mode -> its loss, auxiliary heads by their weight included, and logits."""
    logits = module(inputs)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    for auxiliary in module.modules():
        if isinstance(auxiliary, Auxiliary) and auxiliary.training:
            loss = loss + auxiliary.weight * F.cross_entropy(auxiliary.logits, labels, label_smoothing=smoothing)
            del auxiliary.logits  # with its graph: nothing may copy the module while it is there
    return loss, logits


def training_size(recipe: Recipe, size: int) -> int:
    """Pixels of a training crop for photos that are judged at `size`: 6/7 of it in steps of 32, unless it is small."""
    return recipe.train_size or (size if size < 96 else round(size * 6 / 7 / 32) * 32)


def measure_slots(network: Network, photos: Tensor) -> None:
    """Norms in added attention start from the statistics of what they will see: of these photos, normalised."""

    def measure(slot: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert is_added(slot)
        slot.measure(inputs[0])

    with_norm = [slot for slot in network.slots.values() if isinstance(getattr(slot, "norm", None), nn.BatchNorm2d)]
    hooks = [slot.register_forward_pre_hook(measure) for slot in with_norm]
    if hooks:
        network.eval()
        with torch.no_grad():
            network(photos)
    for hook in hooks:
        hook.remove()


def rate_factor(phase: Phase, step: int, history: list[Row]) -> float:
    """What the learning rate is multiplied with: a pure function of the step and, for `plateau`, of the history."""
    if phase.schedule == "plateau":
        drops = wait = 0
        best = -math.inf
        for row in history:
            if math.isnan(row["val_accuracy"]):
                continue
            if row["val_accuracy"] > best:
                best, wait = row["val_accuracy"], 0
            else:
                wait += 1
            if wait == 4:
                drops, wait = drops + 1, 0
        return 0.2**drops
    total = phase.epochs * phase.steps
    warm = max(1, total // 10)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, total - warm))))


def best_epoch(history: list[Row], monitor: str) -> int:
    """Number of the best epoch: by accuracy (ties: lower loss), or by loss; the last where nothing was validated.

    Phase 1 stands with its last epoch: it settles smoothly, so that the best of its many is only the luckiest.
    """

    def score(row: Row) -> tuple[float, ...]:
        if math.isnan(row["val_loss"]):
            return (row["epoch"],)
        return (row["val_accuracy"], -row["val_loss"]) if monitor == "accuracy" else (-row["val_loss"],)

    frozen = [row for row in history if row["phase"] == 1]
    return max([*frozen[-1:], *history[len(frozen) :]], key=score)["epoch"]


def line(row: Row, epochs: int) -> str:
    """An epoch as a line of the text log."""
    return (
        f"epoch: {row['epoch']}/{epochs}, train_loss: {row['train_loss']:.4f}, train_acc: {row['train_accuracy']:.4f}, "
        f"val_loss: {row['val_loss']:.4f}, val_acc: {row['val_accuracy']:.4f} ({row['seconds']:.1f} s)"
    )
