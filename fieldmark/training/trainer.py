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

from fieldmark.core.errors import FieldmarkError, UntrainableRecipeError
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import DatasetSplits, seed_torch
from fieldmark.models import Network
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import checkpoint
from fieldmark.training.checkpoint import TrainingState
from fieldmark.training.loggers import LoggerGroup
from fieldmark.training.phase_builder import PhaseBuilder
from fieldmark.training.phases import Phase, set_train_mode, training_loss
from fieldmark.training.schedule import EpochRow, best_epoch, format_epoch, lr_factor, should_stop_early

CHECKPOINT_INTERVAL_S = 20.0
"""Seconds between checkpoints inside an epoch."""
SYNC_EVERY_STEPS = 50
"""Where several processes train, they can save inside an epoch after each so many steps, no sooner than that."""


class Trainer:
    """Fine-tunes `network` on `data`; `folder` keeps the checkpoint and the cached features.

    `trackers` hear of every epoch. Without `fabric`, it trains in this process on the CPU.
    """

    def __init__(
        self,
        network: Network,
        data: DatasetSplits,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter,
        fabric: Fabric | None = None,
        loggers: LoggerGroup | None = None,
    ) -> None:
        self.network, self.data, self.recipe, self.folder, self.reporter = network, data, recipe, folder, reporter
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.loggers = loggers
        self.phase_builder = PhaseBuilder(network, data, recipe, folder, self.fabric)
        self.best_weights: dict[str, Tensor] = {}
        self.state = TrainingState()
        self.epoch_sums = torch.zeros(3, device=self.fabric.device)  # loss, right, seen of the running epoch
        self.last_saved_at = time.monotonic()

    @property
    def trainable(self) -> nn.Module:
        """What trains after phase 1, as it is cut in the phase of now."""
        return self.phase_builder.trainable

    # ---- the way through the phases

    def train(
        self,
        plan_recipe: Callable[["Trainer"], Recipe] | None = None,
        allow_mirrored_pass: Callable[[float], bool] = lambda _: True,
    ) -> list[EpochRow]:
        """All phases; leaves the best epoch's weights in the network. -> history, a row an epoch.

        `plan(trainer)` is asked for the recipe once, before phase 2; `again(seconds)` whether there is time for another
        look at the training photos, in phase 1.
        """
        loaded = self._resume()
        self.fabric.barrier()  # the first process writes no other checkpoint before all have read this one
        if self.loggers is not None:
            self.loggers.start(self.state.history)
        if not loaded and self.network.has_untrained_slots:
            self.phase_builder.init_attention_norms()
        if self.state.phase == 1:
            if self.recipe.frozen_epochs and self.recipe.weights != "none":
                self._run_linear_probe(loaded, allow_mirrored_pass)
            if self.fabric.is_global_zero:
                self._next_phase()
            self.fabric.barrier()
            if not self.fabric.is_global_zero:
                checkpoint.wait_for_file(self.folder / checkpoint.CHECKPOINT_FILE)
                self._resume()
            loaded = {}
        with self.reporter.timer("phase2"):
            self.recipe = self.fabric.broadcast(plan_recipe(self) if plan_recipe is not None else self.recipe)
            while self.recipe.epochs:
                self._run_phase(self.phase_builder.build_finetune_phase(self.state.phase, self.recipe), loaded)
                if self.state.phase > len(self.phase_builder.last_frozen_layers):
                    break
                self._next_phase()
                loaded = {}
        if self.best_weights:
            self.trainable.load_state_dict(self.best_weights)
        self.network.eval()
        return self.state.history

    def _run_linear_probe(self, loaded: dict[str, Tensor], allow_mirrored_pass: Callable[[float], bool]) -> None:
        """Phase 1: all processes compute the features, the first one trains on them."""
        routine = self.phase_builder
        with self.reporter.timer("features"):
            flips = routine.has_exact_probe and self.recipe.augment != "none"
            features = routine.frozen_features.compute_features(
                self.reporter, lambda seconds: flips and allow_mirrored_pass(seconds)
            )
        if self.fabric.is_global_zero:
            with self.reporter.timer("phase1"):
                phase = (
                    routine.solve_linear_probe(features)
                    if routine.has_exact_probe
                    else routine.build_head_phase(features)
                )
                self._run_phase(phase, loaded)

    def _next_phase(self) -> None:
        if self.best_weights:
            self.trainable.load_state_dict(self.best_weights)
        phase = self.state.phase + 1
        self.phase_builder.enter_phase(phase)
        self.best_weights = checkpoint.snapshot(self.trainable) if self.best_weights else {}
        if phase == 2 and self.best_weights:
            self._save_best_weights()
        self.state = TrainingState(phase=phase, history=self.state.history)
        self._save_checkpoint()

    # ---- the loop

    def _run_phase(self, phase: Phase, loaded: dict[str, Tensor]) -> None:
        """The epochs of a phase, from where its state stands; phase 1 is of the first process alone."""
        checkpoint.restore_optimizer(phase.optimizer, checkpoint.select_prefix(loaded, "optimizer"))
        if phase.ema_model is not None and (average := checkpoint.select_prefix(loaded, "average")):
            phase.ema_model.load_state_dict(average)
        plain: Any = torch.compile(phase.module) if self.recipe.compile and phase.number > 1 else phase.module
        module, optimizer = plain, phase.optimizer
        is_single_process = phase.number == 1 or self.fabric.world_size == 1
        before = sum(row["phase"] < phase.number for row in self.state.history)
        with self.reporter.progress_bar(f"phase {phase.number}", "steps") as advance:
            for epoch in range(self.state.step // phase.steps_per_epoch, phase.epochs):
                if should_stop_early(self.state.history, phase.number, self.recipe, len(self.data.val)):
                    break
                began, first, last = (
                    time.monotonic(),
                    epoch * phase.steps_per_epoch,
                    (epoch + 1) * phase.steps_per_epoch,
                )
                if phase.number > 1:  # anew: DDP adds in another order from its second step on, as if resumed here
                    module, optimizer = self.fabric.setup(plain, phase.optimizer)
                set_train_mode(phase.module, keep_norms=self.recipe.weights != "none")
                for inputs, targets in phase.batches(self.state.step, last):
                    self._train_step(phase, module, optimizer, inputs, targets)
                    advance(self.state.step, phase.epochs * phase.steps_per_epoch)
                    if self.state.step < last and (
                        is_single_process or (self.state.step - first) % SYNC_EVERY_STEPS == 0
                    ):
                        if not is_single_process:  # the first process takes over what all have counted
                            self.fabric.all_reduce(self.epoch_sums, reduce_op="sum")
                            if not self.fabric.is_global_zero:
                                self.epoch_sums.zero_()
                            module, optimizer = self.fabric.setup(plain, phase.optimizer)
                        if time.monotonic() - self.last_saved_at > CHECKPOINT_INTERVAL_S:
                            self._save_checkpoint(phase)
                self._finish_epoch(phase, before + epoch + 1, began)
                self.reporter.info(format_epoch(self.state.history[-1], before + phase.epochs))

    def _train_step(self, phase: Phase, module: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor) -> None:
        """One batch: rate, forward, backward, update; the sums count it."""
        state, recipe = self.state, self.recipe
        phase_history = [row for row in state.history if row["phase"] == phase.number]
        factor = lr_factor(
            phase.schedule, state.step, phase.epochs * phase.steps_per_epoch, phase_history, recipe.monitor
        )
        for group in phase.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        optimizer.zero_grad()
        self.epoch_sums += self.accumulate_gradients(module, inputs, targets, phase.number, state.step)
        if self.fabric.device.type == "cpu":  # elsewhere asking each time would make the device wait
            self._update_state()
        optimizer.step()
        if phase.ema_model is not None:
            phase.ema_model.update_parameters(phase.module)
        state.step += 1

    def accumulate_gradients(self, module: nn.Module, inputs: Tensor, targets: Tensor, *step: int) -> Tensor:
        """Add those of a batch, a part after the other. -> sum of the losses, right answers, photos (3,)."""
        recipe, sums = self.recipe, torch.zeros_like(self.epoch_sums)
        inputs, targets = self.fabric.to_device(inputs), self.fabric.to_device(targets)
        others = [self.fabric.global_rank] if self.fabric.global_rank else []
        seed_torch(recipe.seed, 3, *step, *others)  # dropout and its like: others drop other things
        parts = list(zip(inputs.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True))
        for k, (chunk, chunk_targets) in enumerate(parts):
            early = k < len(parts) - 1
            with self.fabric.no_backward_sync(module) if early and isinstance(module, _FabricModule) else nullcontext():
                loss, logits = training_loss(
                    module, chunk, chunk_targets, recipe.label_smoothing, self.phase_builder.class_weights
                )
                self.fabric.backward(loss * (len(chunk) / len(inputs)))
            right = (logits.argmax(1) == (chunk_targets if chunk_targets.ndim == 1 else chunk_targets.argmax(1))).sum()
            sums += torch.stack([loss.detach() * len(chunk), right, torch.tensor(len(chunk)).to(right)])
        return sums

    def _update_state(self) -> None:
        """The sums, into the state."""
        self.state.loss, right, seen = self.epoch_sums.tolist()
        self.state.right, self.state.seen = int(right), int(seen)
        if not math.isfinite(self.state.loss) and self.fabric.is_global_zero:  # a step later it sees what others see
            raise UntrainableRecipeError(
                f"the loss is not a number any more (phase {self.state.phase}, step {self.state.step}): "
                "train into another --out with a lower --lr and --backbone-lr"
            )

    def _finish_epoch(self, phase: Phase, epoch: int, began: float) -> None:
        """Judge the validation photos, write the row, keep the weights if they are the best, save."""
        state = self.state
        if phase.number > 1:
            self.fabric.all_reduce(self.epoch_sums, reduce_op="sum")  # in place
        self._update_state()
        loss, right, seen = self.epoch_sums.tolist()
        val_loss, val_accuracy = self._validate(phase)
        row = {
            "epoch": epoch, "phase": phase.number, "lr": phase.optimizer.param_groups[-1]["lr"],
            "train_loss": loss / seen, "train_accuracy": right / seen,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": time.monotonic() - began,
        }  # fmt: skip
        state.history.append(row if phase.number == 1 else self.fabric.broadcast(row))
        self.epoch_sums.zero_()
        self._update_state()
        if self.best_epoch() == epoch:
            self.best_weights = checkpoint.snapshot(self.trainable if phase.ema_model is None else phase.eval_module)
            if phase.number > 1:
                self._save_best_weights()
        if phase.number > 1 or time.monotonic() - self.last_saved_at > CHECKPOINT_INTERVAL_S:
            self._save_checkpoint(phase)
        if self.loggers is not None:
            self.loggers.log_epoch(row)

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """Mean loss and accuracy on the validation photos, each counted once; not a number where there are none."""
        if not len(self.data.val):
            return math.nan, math.nan
        labels = (
            self.phase_builder.val_labels
            if phase.number == 1
            else self.phase_builder.val_labels[self.phase_builder.val_shard]
        )
        if phase.number > 1 and self.fabric.world_size > 1:  # norms that train have seen other photos in each process
            for statistic in phase.eval_module.buffers():
                torch.distributed.broadcast(statistic, 0)
        logits = self.compute_logits(phase.eval_module, phase.val_batches())
        loss, right = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        sums = self.fabric.to_device(torch.stack([loss, right]))
        if phase.number > 1:
            self.fabric.all_reduce(sums, reduce_op="sum")
        loss, right = (sums / len(self.data.val)).tolist()
        return loss, right

    def compute_logits(self, module: nn.Module, maps: Iterable[Tensor]) -> Tensor:
        """(n, classes) on the CPU, of a module in eval mode and in 32 bits."""
        module.eval()
        with torch.inference_mode():
            parts = [module(self.fabric.to_device(x)).float().cpu() for x in maps]
        return torch.cat([torch.empty(0, self.phase_builder.num_classes), *parts])

    # ---- survival

    def _save_checkpoint(self, phase: Phase | None = None) -> None:
        """The first process writes all that it takes to go on."""
        if not self.fabric.is_global_zero:
            return
        self._update_state()
        tensors = {f"now.{name}": value for name, value in self.trainable.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        if phase is not None:
            optimizer = checkpoint.optimizer_tensors(phase.optimizer)
            tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
            if phase.ema_model is not None:
                tensors |= {f"average.{name}": value for name, value in phase.ema_model.state_dict().items()}
        checkpoint.save(self.folder / checkpoint.CHECKPOINT_FILE, tensors, dataclasses.asdict(self.state))
        self.last_saved_at = time.monotonic()

    def _save_best_weights(self) -> None:
        """The best network so far as a file that `--weights` of another run takes, whatever becomes of this one."""
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / "best.safetensors", self.phase_builder.full_state_dict(self.best_weights), {})

    def _resume(self) -> dict[str, Tensor]:
        """Takes up a checkpoint where there is one. -> its tensors."""
        file = self.folder / checkpoint.CHECKPOINT_FILE
        if not file.exists():
            return {}
        tensors, counters = checkpoint.load(file)
        try:
            self.state, self.best_weights = TrainingState(**counters), checkpoint.select_prefix(tensors, "best")
            self.phase_builder.enter_phase(self.state.phase)
            self.trainable.load_state_dict(checkpoint.select_prefix(tensors, "now"))
        except (TypeError, RuntimeError, IndexError):
            raise FieldmarkError(
                f"{file} does not fit the recipe beside it, or a later version wrote it: train into another --out"
            ) from None
        if self.fabric.is_global_zero:
            self.epoch_sums += torch.tensor(
                [self.state.loss, self.state.right, self.state.seen], device=self.epoch_sums.device
            )
        self.reporter.info(f"resumed in phase {self.state.phase} at step {self.state.step}")
        return tensors

    def best_epoch(self) -> int:
        """Number of the epoch whose weights the network holds; 0 where none was trained."""
        return best_epoch(self.state.history, self.recipe, len(self.data.val)) if self.state.history else 0
