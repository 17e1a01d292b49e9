"""Network + photos -> trained network: phase 1 trains the head on features computed once, phase 2 the later stages too.

The way of a batch in phase 2: uint8 photos -> normalise -> frozen prefix (no gradients) -> trained part -> loss.
A checkpoint is weights, optimiser, step and history; everything else is a function of them, the recipe and the seed,
so a resumed run repeats the uninterrupted one to the bit (same machine, same number of threads).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark import checkpoint
from fieldmark.dataset import Data, Varied, draw, judged, varied
from fieldmark.errors import FieldmarkError
from fieldmark.features import Frozen
from fieldmark.network import Network, is_added
from fieldmark.phases import (
    Phase,
    Row,
    best_epoch,
    frozen_until,
    learning_mode,
    line,
    measure_slots,
    parameter_groups,
    rate_factor,
    training_loss,
    training_size,
)
from fieldmark.progress import Reporter
from fieldmark.recipe import Recipe

SAVE_EVERY = 20.0
"""Seconds between checkpoints inside an epoch."""
MOST_EPOCHS = 30
"""More epochs than this a budget does not buy: the write-ups' routine stops there too."""


@dataclass
class State:
    """Where a training stands; all of it is in the checkpoint."""

    phase: int = 1
    step: int = 0  # steps done in this phase
    loss: float = 0.0  # sums over the running epoch
    right: int = 0
    seen: int = 0
    history: list[Row] = field(default_factory=list)


class Trainer:
    """Fine-tunes `network` on `data`; `folder` keeps the checkpoint and the cached features.

    `plan(epoch_seconds)` is asked once between the phases when the recipe has a budget.
    """

    def __init__(self, network: Network, data: Data, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        self.network, self.data, self.recipe, self.folder, self.reporter = network, data, recipe, folder, reporter
        self.fabric = Fabric(accelerator="auto", devices=1)
        self.size = recipe.image_size or network.preprocessing.size
        network.to(self.fabric.device).to(memory_format=torch.channels_last)
        self.frozen = Frozen(network, frozen_until(network, recipe), data, self.size, folder, self.fabric)
        self.trained = nn.Sequential(self.frozen.rest, network.head)
        self.labels = torch.from_numpy(data.labels)
        self.best: dict[str, Tensor] = {}
        self.state = State()
        self.saved = time.monotonic()

    # ---- the way through the phases

    def train(self, plan: Callable[["Trainer"], Recipe] | None = None) -> list[Row]:
        """Both phases; leaves the best epoch's weights in the network. -> history, a row an epoch."""
        loaded = self._resume()
        if not loaded and self.network.fresh:
            self._measure_slots()
        with self.reporter.part("features"):
            first = self.state.phase == 1 and self.recipe.weights != "none"
            features = self.frozen.features(self.reporter) if first else None
        if self.state.phase == 1:
            with self.reporter.part("phase1"):
                if features is not None and self.recipe.frozen_epochs:
                    self._run(self._phase1(features), loaded)
                self._next_phase()
                loaded = {}
        with self.reporter.part("phase2"):
            if plan is not None:
                self.recipe = plan(self)
            if self.recipe.epochs:
                self._run(self._phase2(), loaded)
        if self.best:
            self.trained.load_state_dict(self.best)
        self.network.eval()
        return self.state.history

    def _measure_slots(self) -> None:
        many = max(8, min(64, 64 * 224**2 // self.size**2))  # all at once, so fewer large ones
        few = self.data.train[:: max(1, len(self.data.train) // many)][:many]  # they lie class by class
        (photos,) = judged(self.data.pack, few, self.size, batch=many)
        measure_slots(self.network, self.frozen.normalise(self.fabric.to_device(photos)))

    def _next_phase(self) -> None:
        if self.best:
            self.trained.load_state_dict(self.best)
        self.state = State(phase=2, history=self.state.history)
        self._save()

    # ---- what each phase is

    def _phase1(self, features: np.ndarray) -> Phase:
        """The head, and attention behind the last stage, on cached features of the training photos."""
        _, tail = self.frozen.end()
        module = nn.Sequential(tail, self.network.head)
        self.trained.requires_grad_(False)
        fresh = [*filter(is_added, tail.modules()), self.network.head]
        for part in fresh:
            part.requires_grad_(True)
        train = len(self.data.train)
        labels = self.labels[torch.from_numpy(self.data.train)]

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            for step in range(first, last):
                turn, place = divmod(step, steps)
                order = np.random.default_rng((self.recipe.seed, 4, turn)).permutation(train)
                which = np.sort(order[place * self.recipe.batch : (place + 1) * self.recipe.batch])
                yield torch.from_numpy(features[which]), labels[torch.from_numpy(which)]

        def maps() -> Iterator[Tensor]:
            for first in range(train, len(features), 256):
                yield torch.from_numpy(features[first : first + 256].copy())

        steps = max(1, train // self.recipe.batch)
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.recipe.frozen_lr, weight_decay=1e-2)
        return Phase(1, module, optimizer, batches, maps, self.recipe.frozen_epochs, steps, "cosine")

    def _phase2(self) -> Phase:
        """Everything behind the frozen prefix, on fresh crops of the training photos."""
        recipe, data = self.recipe, self.data
        self.trained.requires_grad_(True)
        size, labels = training_size(recipe, self.size), data.labels[data.train]
        photos = Varied(data.pack, data.train, labels, size, recipe.augment, recipe.seed)

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            for some, labels in varied(photos, recipe.batch, first, last):
                yield self.frozen.maps(some), labels

        steps = recipe.steps_per_epoch or max(1, len(data.train) // recipe.batch)
        groups = parameter_groups(self.network, self.frozen.rest, recipe)
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
        return Phase(2, self.trained, optimizer, batches, self.frozen.validation, recipe.epochs, steps, recipe.schedule)

    # ---- the loop

    def _run(self, phase: Phase, loaded: dict[str, Tensor]) -> None:
        """The epochs of a phase, from where its state stands."""
        checkpoint.restore_optimizer(phase.optimizer, checkpoint.part(loaded, "optimizer"))
        module, optimizer = self.fabric.setup(phase.module, phase.optimizer)
        before = sum(row["phase"] < phase.number for row in self.state.history)
        with self.reporter.bar(f"phase {phase.number}", "steps") as advance:
            for epoch in range(self.state.step // phase.steps, phase.epochs):
                if self._stops(phase):
                    break
                began, last = time.monotonic(), (epoch + 1) * phase.steps
                learning_mode(phase.module, keep_norms=self.recipe.weights != "none")
                for inputs, labels in phase.batches(self.state.step, last):
                    self._step(phase, module, optimizer, inputs, labels)
                    advance(self.state.step, phase.epochs * phase.steps)
                    if self.state.step < last and time.monotonic() - self.saved > SAVE_EVERY:
                        self._save(phase.optimizer)
                self._close_epoch(phase, before + epoch + 1, began)
                self.reporter.say(line(self.state.history[-1], before + phase.epochs))

    def _step(self, phase: Phase, module: nn.Module, optimizer: Any, inputs: Tensor, labels: Tensor) -> None:
        """One batch: rate, forward, backward, update; the state counts it."""
        state = self.state
        inputs, labels = self.fabric.to_device(inputs), self.fabric.to_device(labels)
        factor = rate_factor(phase, state.step, [row for row in state.history if row["phase"] == phase.number])
        for group in phase.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        draw(self.recipe.seed, 3, phase.number, state.step)  # dropout and its like
        loss, logits = training_loss(module, inputs, labels, self.recipe.label_smoothing)
        if not math.isfinite(value := loss.item()):
            raise FieldmarkError(
                f"the loss is not a number any more (phase {phase.number}, step {state.step}): "
                "train into another --out with a lower --lr and --backbone-lr"
            )
        optimizer.zero_grad()
        self.fabric.backward(loss)
        optimizer.step()
        state.step += 1
        state.loss += value * len(labels)
        state.right += int((logits.argmax(1) == labels).sum())
        state.seen += len(labels)

    def _close_epoch(self, phase: Phase, epoch: int, began: float) -> None:
        """Judge the validation photos, write the row, keep the weights if they are the best, save."""
        state = self.state
        val_loss, val_accuracy = self._validate(phase)
        row = {
            "epoch": epoch, "phase": phase.number, "lr": phase.optimizer.param_groups[-1]["lr"],
            "train_loss": state.loss / state.seen, "train_accuracy": state.right / state.seen,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.monotonic() - began,
        }  # fmt: skip
        state.history.append(row)
        state.loss, state.right, state.seen = 0.0, 0, 0
        if self.best_epoch() == epoch:
            self.best = checkpoint.snapshot(self.trained)
        if phase.number == 2 or time.monotonic() - self.saved > SAVE_EVERY:
            self._save(phase.optimizer)

    def _stops(self, phase: Phase) -> bool:
        """Early stopping, in phase 2 only: phase 1 costs next to nothing."""
        mine = [row for row in self.state.history if row["phase"] == 2]
        if phase.number == 1 or not mine:
            return False
        return mine[-1]["epoch"] - best_epoch(mine, self.recipe.monitor) >= self.recipe.patience

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """Mean loss and accuracy on the validation photos; not a number where there are none."""
        if not len(self.data.val):
            return math.nan, math.nan
        logits = self.logits(phase.module, phase.maps())
        labels = self.labels[torch.from_numpy(self.data.val)]
        return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()

    def logits(self, module: nn.Module, maps: Iterable[Tensor]) -> Tensor:
        """(n, classes) on the CPU, of a module in eval mode."""
        module.eval()
        with torch.inference_mode():
            return torch.cat([module(self.fabric.to_device(x)).float().cpu() for x in maps])

    def validation_logits(self) -> np.ndarray:
        """(validation photos, classes), by the weights as they are now."""
        return self.logits(self.trained, self.frozen.validation()).numpy()

    # ---- survival

    def _save(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        tensors = {f"now.{name}": value for name, value in self.trained.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if optimizer is not None:
            tensors |= {f"optimizer.{name}": value for name, value in checkpoint.optimizer_tensors(optimizer).items()}
        checkpoint.save(self.folder / "checkpoint.safetensors", tensors, dataclasses.asdict(self.state))
        self.saved = time.monotonic()

    def _resume(self) -> dict[str, Tensor]:
        """Takes up a checkpoint where there is one. -> its tensors."""
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return {}
        tensors, counters = checkpoint.load(file)
        try:
            self.state, self.best = State(**counters), checkpoint.part(tensors, "best")
            self.trained.load_state_dict(checkpoint.part(tensors, "now"))
        except (TypeError, RuntimeError):
            raise FieldmarkError(
                f"{file} does not fit the recipe beside it, or a later version wrote it: train into another --out"
            ) from None
        self.reporter.say(f"resumed in phase {self.state.phase} at step {self.state.step}")
        return tensors

    def best_epoch(self) -> int:
        """Number of the epoch whose weights the network holds; 0 where none was trained."""
        return best_epoch(self.state.history, self.recipe.monitor) if self.state.history else 0

    # ---- speed

    def epoch_costs(self) -> tuple[float, float]:
        """Seconds of a training step and of a look at the validation photos in phase 2, measured on a copy."""
        kept = checkpoint.snapshot(self.trained)
        phase = self._phase2()
        learning_mode(phase.module, keep_norms=self.recipe.weights != "none")
        times = []
        began = time.monotonic()
        for inputs, labels in phase.batches(0, 8):
            loss, _ = training_loss(phase.module, inputs, self.fabric.to_device(labels), 0.0)
            phase.optimizer.zero_grad()
            loss.backward()
            phase.optimizer.step()
            times.append(time.monotonic() - began)
            began = time.monotonic()
        self.trained.load_state_dict(kept)
        self.trained.zero_grad()
        few = [maps for maps, _ in zip(phase.maps(), range(6), strict=False)]
        self.logits(phase.module, few[:1])
        began = time.monotonic()
        self.logits(phase.module, few)
        photos = sum(map(len, few))
        look = (time.monotonic() - began) * len(self.data.val) / photos if photos else 0.0
        return float(np.median(times[2:])), look
