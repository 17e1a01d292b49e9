"""Phases of a routine -> trained network: the loop, what it keeps on disk, and how it goes on.

A checkpoint is weights, optimiser, step and history; everything else is a function of them, the recipe and the seed,
so a resumed run repeats the uninterrupted one to the bit (same machine, same number of threads). Where several
processes train together (Fabric's DDP), each takes its share of every batch; the first one writes.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.core.errors import FieldmarkError, Untrainable
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import Data, draw
from fieldmark.models import Network
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import checkpoint
from fieldmark.training.checkpoint import State
from fieldmark.training.loggers import Trackers
from fieldmark.training.phase_builder import Routine
from fieldmark.training.phases import Phase, learning_mode, training_loss
from fieldmark.training.schedule import Row, best_epoch, line, rate_factor, stops

SAVE_EVERY = 20.0
"""Seconds between checkpoints inside an epoch."""
TOGETHER = 50
"""Where several processes train, they can save inside an epoch after each so many steps, no sooner than that."""


class Trainer:
    """Fine-tunes `network` on `data`; `folder` keeps the checkpoint and the cached features.

    `trackers` hear of every epoch. Without `fabric`, it trains in this process on the CPU.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter,
        fabric: Fabric | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.network, self.data, self.recipe, self.folder, self.reporter = network, data, recipe, folder, reporter
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.trackers = trackers
        self.routine = Routine(network, data, recipe, folder, self.fabric)
        self.best: dict[str, Tensor] = {}
        self.state = State()
        self.sums = torch.zeros(3, device=self.fabric.device)  # loss, right, seen of the running epoch
        self.saved = time.monotonic()

    @property
    def trained(self) -> nn.Module:
        """What trains after phase 1, as it is cut in the phase of now."""
        return self.routine.trained

    # ---- the way through the phases

    def train(
        self, plan: Callable[["Trainer"], Recipe] | None = None, again: Callable[[float], bool] = lambda _: True
    ) -> list[Row]:
        """All phases; leaves the best epoch's weights in the network. -> history, a row an epoch.

        `plan(trainer)` is asked for the recipe once, before phase 2; `again(seconds)` whether there is time for another
        look at the training photos, in phase 1.
        """
        loaded = self._resume()
        self.fabric.barrier()  # the first process writes no other checkpoint before all have read this one
        if self.trackers is not None:
            self.trackers.begin(self.state.history)
        if not loaded and self.network.fresh:
            self.routine.measure_slots()
        if self.state.phase == 1:
            if self.recipe.frozen_epochs and self.recipe.weights != "none":
                self._first(loaded, again)
            if self.fabric.is_global_zero:
                self._next_phase()
            self.fabric.barrier()
            if not self.fabric.is_global_zero:
                checkpoint.wait_for(self.folder / checkpoint.NAME)
                self._resume()
            loaded = {}
        with self.reporter.part("phase2"):
            self.recipe = self.fabric.broadcast(plan(self) if plan is not None else self.recipe)
            while self.recipe.epochs:
                self._run(self.routine.later(self.state.phase, self.recipe), loaded)
                if self.state.phase > len(self.routine.cuts):
                    break
                self._next_phase()
                loaded = {}
        if self.best:
            self.trained.load_state_dict(self.best)
        self.network.eval()
        return self.state.history

    def _first(self, loaded: dict[str, Tensor], again: Callable[[float], bool]) -> None:
        """Phase 1: all processes compute the features, the first one trains on them."""
        routine = self.routine
        with self.reporter.part("features"):
            flips = routine.exact and self.recipe.augment != "none"
            features = routine.frozen.features(self.reporter, lambda seconds: flips and again(seconds))
        if self.fabric.is_global_zero:
            with self.reporter.part("phase1"):
                phase = routine.solved(features) if routine.exact else routine.head_alone(features)
                self._run(phase, loaded)

    def _next_phase(self) -> None:
        if self.best:
            self.trained.load_state_dict(self.best)
        phase = self.state.phase + 1
        self.routine.enter(phase)
        self.best = checkpoint.snapshot(self.trained) if self.best else {}
        if phase == 2 and self.best:
            self._keep_best()
        self.state = State(phase=phase, history=self.state.history)
        self._save()

    # ---- the loop

    def _run(self, phase: Phase, loaded: dict[str, Tensor]) -> None:
        """The epochs of a phase, from where its state stands; phase 1 is of the first process alone."""
        checkpoint.restore_optimizer(phase.optimizer, checkpoint.part(loaded, "optimizer"))
        if phase.average is not None and (average := checkpoint.part(loaded, "average")):
            phase.average.load_state_dict(average)
        plain: Any = torch.compile(phase.module) if self.recipe.compile and phase.number > 1 else phase.module
        module, optimizer = plain, phase.optimizer
        alone = phase.number == 1 or self.fabric.world_size == 1
        before = sum(row["phase"] < phase.number for row in self.state.history)
        with self.reporter.bar(f"phase {phase.number}", "steps") as advance:
            for epoch in range(self.state.step // phase.steps, phase.epochs):
                if stops(self.state.history, phase.number, self.recipe, len(self.data.val)):
                    break
                began, first, last = time.monotonic(), epoch * phase.steps, (epoch + 1) * phase.steps
                if phase.number > 1:  # anew: DDP adds in another order from its second step on, as if resumed here
                    module, optimizer = self.fabric.setup(plain, phase.optimizer)
                learning_mode(phase.module, keep_norms=self.recipe.weights != "none")
                for inputs, targets in phase.batches(self.state.step, last):
                    self._step(phase, module, optimizer, inputs, targets)
                    advance(self.state.step, phase.epochs * phase.steps)
                    if self.state.step < last and (alone or (self.state.step - first) % TOGETHER == 0):
                        if not alone:  # the first process takes over what all have counted
                            self.fabric.all_reduce(self.sums, reduce_op="sum")
                            if not self.fabric.is_global_zero:
                                self.sums.zero_()
                            module, optimizer = self.fabric.setup(plain, phase.optimizer)
                        if time.monotonic() - self.saved > SAVE_EVERY:
                            self._save(phase)
                self._close_epoch(phase, before + epoch + 1, began)
                self.reporter.say(line(self.state.history[-1], before + phase.epochs))

    def _step(self, phase: Phase, module: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor) -> None:
        """One batch: rate, forward, backward, update; the sums count it."""
        state, recipe = self.state, self.recipe
        mine = [row for row in state.history if row["phase"] == phase.number]
        factor = rate_factor(phase.schedule, state.step, phase.epochs * phase.steps, mine, recipe.monitor)
        for group in phase.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        optimizer.zero_grad()
        self.sums += self.gradients(module, inputs, targets, phase.number, state.step)
        if self.fabric.device.type == "cpu":  # elsewhere asking each time would make the device wait
            self._settle()
        optimizer.step()
        if phase.average is not None:
            phase.average.update_parameters(phase.module)
        state.step += 1

    def gradients(self, module: nn.Module, inputs: Tensor, targets: Tensor, *step: int) -> Tensor:
        """Add those of a batch, a part after the other. -> sum of the losses, right answers, photos (3,)."""
        recipe, sums = self.recipe, torch.zeros_like(self.sums)
        inputs, targets = self.fabric.to_device(inputs), self.fabric.to_device(targets)
        others = [self.fabric.global_rank] if self.fabric.global_rank else []
        draw(recipe.seed, 3, *step, *others)  # dropout and its like: others drop other things
        parts = list(zip(inputs.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True))
        for k, (some, some_targets) in enumerate(parts):
            early = k < len(parts) - 1
            with self.fabric.no_backward_sync(module) if early and isinstance(module, _FabricModule) else nullcontext():
                loss, logits = training_loss(
                    module, some, some_targets, recipe.label_smoothing, self.routine.class_weights
                )
                self.fabric.backward(loss * (len(some) / len(inputs)))
            right = (logits.argmax(1) == (some_targets if some_targets.ndim == 1 else some_targets.argmax(1))).sum()
            sums += torch.stack([loss.detach() * len(some), right, torch.tensor(len(some)).to(right)])
        return sums

    def _settle(self) -> None:
        """The sums, into the state."""
        self.state.loss, right, seen = self.sums.tolist()
        self.state.right, self.state.seen = int(right), int(seen)
        if not math.isfinite(self.state.loss) and self.fabric.is_global_zero:  # a step later it sees what others see
            raise Untrainable(
                f"the loss is not a number any more (phase {self.state.phase}, step {self.state.step}): "
                "train into another --out with a lower --lr and --backbone-lr"
            )

    def _close_epoch(self, phase: Phase, epoch: int, began: float) -> None:
        """Judge the validation photos, write the row, keep the weights if they are the best, save."""
        state = self.state
        if phase.number > 1:
            self.fabric.all_reduce(self.sums, reduce_op="sum")  # in place
        self._settle()
        loss, right, seen = self.sums.tolist()
        val_loss, val_accuracy = self._validate(phase)
        row = {
            "epoch": epoch, "phase": phase.number, "lr": phase.optimizer.param_groups[-1]["lr"],
            "train_loss": loss / seen, "train_accuracy": right / seen,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.monotonic() - began,
        }  # fmt: skip
        state.history.append(row if phase.number == 1 else self.fabric.broadcast(row))
        self.sums.zero_()
        self._settle()
        if self.best_epoch() == epoch:
            self.best = checkpoint.snapshot(self.trained if phase.average is None else phase.judged)
            if phase.number > 1:
                self._keep_best()
        if phase.number > 1 or time.monotonic() - self.saved > SAVE_EVERY:
            self._save(phase)
        if self.trackers is not None:
            self.trackers.epoch(row)

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """Mean loss and accuracy on the validation photos, each counted once; not a number where there are none."""
        if not len(self.data.val):
            return math.nan, math.nan
        labels = self.routine.val_labels if phase.number == 1 else self.routine.val_labels[self.routine.mine]
        if phase.number > 1 and self.fabric.world_size > 1:  # norms that train have seen other photos in each process
            for statistic in phase.judged.buffers():
                torch.distributed.broadcast(statistic, 0)
        logits = self.logits(phase.judged, phase.maps())
        loss, right = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        sums = self.fabric.to_device(torch.stack([loss, right]))
        if phase.number > 1:
            self.fabric.all_reduce(sums, reduce_op="sum")
        loss, right = (sums / len(self.data.val)).tolist()
        return loss, right

    def logits(self, module: nn.Module, maps: Iterable[Tensor]) -> Tensor:
        """(n, classes) on the CPU, of a module in eval mode and in 32 bits."""
        module.eval()
        with torch.inference_mode():
            parts = [module(self.fabric.to_device(x)).float().cpu() for x in maps]
        return torch.cat([torch.empty(0, self.routine.classes), *parts])

    # ---- survival

    def _save(self, phase: Phase | None = None) -> None:
        """The first process writes all that it takes to go on."""
        if not self.fabric.is_global_zero:
            return
        self._settle()
        tensors = {f"now.{name}": value for name, value in self.trained.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if phase is not None:
            optimizer = checkpoint.optimizer_tensors(phase.optimizer)
            tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
            if phase.average is not None:
                tensors |= {f"average.{name}": value for name, value in phase.average.state_dict().items()}
        checkpoint.save(self.folder / checkpoint.NAME, tensors, dataclasses.asdict(self.state))
        self.saved = time.monotonic()

    def _keep_best(self) -> None:
        """The best network so far as a file that `--weights` of another run takes, whatever becomes of this one."""
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / "best.safetensors", self.routine.whole(self.best), {})

    def _resume(self) -> dict[str, Tensor]:
        """Takes up a checkpoint where there is one. -> its tensors."""
        file = self.folder / checkpoint.NAME
        if not file.exists():
            return {}
        tensors, counters = checkpoint.load(file)
        try:
            self.state, self.best = State(**counters), checkpoint.part(tensors, "best")
            self.routine.enter(self.state.phase)
            self.trained.load_state_dict(checkpoint.part(tensors, "now"))
        except (TypeError, RuntimeError, IndexError):
            raise FieldmarkError(
                f"{file} does not fit the recipe beside it, or a later version wrote it: train into another --out"
            ) from None
        if self.fabric.is_global_zero:
            self.sums += torch.tensor([self.state.loss, self.state.right, self.state.seen], device=self.sums.device)
        self.reporter.say(f"resumed in phase {self.state.phase} at step {self.state.step}")
        return tensors

    def best_epoch(self) -> int:
        """Number of the epoch whose weights the network holds; 0 where none was trained."""
        return best_epoch(self.state.history, self.recipe, len(self.data.val)) if self.state.history else 0
