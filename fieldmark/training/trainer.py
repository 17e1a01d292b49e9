"""The training loop: trains the phases of a recipe, evaluates each epoch, keeps the best weights, and resumes.

A checkpoint is weights, optimiser state, step and history; everything else is a function of them, the recipe and the
seed, so a resumed run repeats the uninterrupted one to the bit (same machine, same number of threads). Where several
processes train (Fabric's DDP), each takes its share of every batch; the main process writes.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.core.errors import FieldmarkError, UntrainableRecipeError
from fieldmark.core.progress import ProgressCallback, Reporter
from fieldmark.data.dataset import DatasetSplits, seed_torch
from fieldmark.models import Network
from fieldmark.models.stages import LayerInput
from fieldmark.models.state import load_state, save_state, snapshot
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import checkpoint, divergence
from fieldmark.training.checkpoint import Checkpoint, TrainingState
from fieldmark.training.frozen_features import TRAIN_FEATURES, FeaturePair
from fieldmark.training.history import HEAD_REFIT, LINEAR_PROBE, EpochListener, EpochRecord, StopTraining
from fieldmark.training.phase_builder import PhaseBuilder
from fieldmark.training.phases import (
    Phase,
    clip_gradients,
    set_learning_rates,
    set_train_mode,
    split_epochs,
    training_loss,
)
from fieldmark.training.schedule import (
    EPOCH_TABLE_HEADER,
    best_epoch,
    best_tuned_epoch,
    describe_choice,
    epoch_row,
    epochs_in_time,
    format_epoch,
    lr_factor,
    should_stop_early,
)

CHECKPOINT_INTERVAL_S = 20.0
"""Seconds between checkpoints inside an epoch."""
BEST_NETWORK_FILE = "best.safetensors"
"""The best network so far, in the folder of the checkpoint."""
SYNC_EVERY_STEPS = 50
"""Several processes can save inside an epoch only after a multiple of so many steps."""


class Trainer:
    """Trains `network` on `data`: a linear probe on cached features, then fine-tuning.

    Args:
        network: trained in place; it holds the best epoch's weights in the end.
        data: images, labels and splits.
        recipe: the settings; `train` may replace it by a planned one.
        folder: keeps the checkpoint and the cached features.
        reporter: gets a line for each epoch and the stages' durations.
        fabric: devices and precision; by default this process on the CPU.
        listener: receives every epoch; by `StopTraining` it ends fine-tuning.
    """

    def __init__(
        self,
        network: Network,
        data: DatasetSplits,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter,
        fabric: Fabric | None = None,
        listener: EpochListener | None = None,
    ) -> None:
        self.network, self.data, self.recipe, self.folder, self.reporter = network, data, recipe, folder, reporter
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.listener = listener
        self.phase_builder = PhaseBuilder(network, data, recipe, folder, self.fabric)
        self.best_weights: dict[str, Tensor] = {}
        self.state = TrainingState()
        self.epoch_sums = torch.zeros(3, device=self.fabric.device)  # loss, right, seen of the running epoch
        self.window_sums = torch.zeros(2, device=self.fabric.device)  # loss, seen since the last check for divergence
        self.last_saved_at = time.monotonic()
        self.has_table = False
        self.feature_seconds = 0.0  # of the linear probe, if they were computed now and not read from a file

    @property
    def trainable(self) -> nn.Module:
        """The trainable backbone layers and the head, as the current phase cuts them."""
        return self.phase_builder.trainable

    # ---- phases

    def train(self, plan_recipe: Callable[["Trainer"], Recipe] | None = None) -> list[EpochRecord]:
        """Train all phases and leave the best epoch's weights in the network.

        Args:
            plan_recipe: called once before fine-tuning; returns the recipe with what was left open, as the epochs.

        Returns:
            the history, a record for each epoch.
        """
        resumed = self._resume()
        self.fabric.barrier()  # the main process writes no other checkpoint before all have read this one
        if self.listener is not None:
            self.listener.start(self.state.history)
        if resumed is None and self.network.has_untrained_slots:
            self.phase_builder.init_attention_norms()
        if self.state.phase == LINEAR_PROBE:
            has_probe = self.recipe.frozen_epochs and self.recipe.weights != "none"
            self._start_finetuning(self._run_linear_probe(resumed) if has_probe else None)
            resumed = None
        with self.reporter.timer("phase2"):
            if not self.state.is_stopped:
                self.recipe = self.fabric.broadcast(plan_recipe(self) if plan_recipe is not None else self.recipe)
            has_tuned = any(record.is_finetuning for record in self.state.history)
            if self.recipe.epochs and (has_tuned or not self.state.is_stopped):
                self._finetune(resumed)
        self._load_best_network()
        self.network.eval()
        refits_head = self.phase_builder.refits_head
        if choice := describe_choice(self.state.history, self.best_epoch(), refits_head=refits_head):
            self.reporter.step("Kept", choice)
        return self.state.history

    def limit_finetuning(self, seconds: float) -> None:
        """Leave out the last epochs of fine-tuning if they would take longer than so many seconds in total.

        To be called before it starts. The time is that of the epochs, as the history has it: a resumed run goes on
        with what was left.
        """
        self.state.finetuning_seconds = seconds
        self._save_checkpoint()

    def _run_linear_probe(self, resumed: Checkpoint | None) -> FeaturePair:
        """All processes compute the features; the main process trains the head on them."""
        builder, is_kept = self.phase_builder, (self.folder / TRAIN_FEATURES).exists()
        with self.reporter.timer("features"):
            features = builder.frozen_features.compute_features(
                self.reporter, keeps_train_maps=builder.keeps_train_maps
            )
        n_images, seconds = len(self.data.train) + len(self.data.val), self.reporter.stage_seconds["features"]
        self.feature_seconds = 0.0 if is_kept else seconds
        size, name = builder.image_size, self.network.spec.backbone
        self.reporter.step("Features", f"{name} at {size} pixels, {n_images:,} images in {seconds:.0f} s")
        if self.fabric.is_global_zero:
            with self.reporter.timer("phase1"):
                solve = builder.solve_linear_probe if builder.has_exact_probe else builder.build_head_phase
                self._run_phase(solve(features), resumed)
        return features

    def _start_finetuning(self, features: FeaturePair | None) -> None:
        """Enter the first phase of fine-tuning; the other processes get the head from the main process's checkpoint.

        `features` are those of the linear probe, if there was one.
        """
        if self.fabric.is_global_zero:
            self._load_best_weights()
            if self.best_weights:
                self._save_best_weights()
            if features is not None:
                self.phase_builder.start_from_last_map(features)
            self._enter_phase(LINEAR_PROBE + 1)
        self.fabric.barrier()
        if not self.fabric.is_global_zero:
            checkpoint.wait_for_file(self.folder / checkpoint.CHECKPOINT_FILE)
            self._resume()

    def _finetune(self, resumed: Checkpoint | None) -> None:
        """The phases of fine-tuning, and the refit of the head where it can be fitted exactly."""
        builder = self.phase_builder
        while self.state.phase != HEAD_REFIT:
            self._run_phase(builder.build_finetune_phase(self.state.phase, self.recipe), resumed)
            is_last = self.state.is_stopped or self.state.phase > len(builder.last_frozen_layers)
            if is_last and not builder.refits_head:
                return
            self._load_best_weights()
            self._enter_phase(HEAD_REFIT if is_last else self.state.phase + 1)
            resumed = None
        features = builder.frozen_features.compute_tuned_features(self.reporter)
        if self.fabric.is_global_zero:
            self._run_phase(builder.solve_linear_probe(features, HEAD_REFIT), None)

    def _load_best_weights(self) -> None:
        """Take the weights of the present phase's best epoch, or where it had none, of the phase before."""
        if self.best_weights:
            self.trainable.load_state_dict(self.best_weights)

    def _load_best_network(self) -> None:
        """Take the weights of the best epoch of all."""
        file = self.folder / BEST_NETWORK_FILE
        if self.fabric.is_global_zero and self.best_weights:
            self.network.load_state_dict(load_state(file)[0])

    def _enter_phase(self, phase: int) -> None:
        self.phase_builder.enter_phase(phase)
        self.best_weights = snapshot(self.trainable) if self.best_weights else {}
        self.state = TrainingState(
            phase=phase,
            history=self.state.history,
            finetuning_seconds=self.state.finetuning_seconds,
            is_stopped=self.state.is_stopped,
        )
        self.window_sums.zero_()
        self._save_checkpoint()

    # ---- epochs and steps

    def _run_phase(self, phase: Phase, resumed: Checkpoint | None) -> None:
        """Train the epochs of a phase, from where the state stands."""
        if resumed is not None:
            checkpoint.restore_optimizer(phase.optimizer, resumed.optimizer)
            if phase.ema_model is not None and resumed.ema:
                phase.ema_model.load_state_dict(resumed.ema)
        compiled = self.compile_module(phase)
        epochs_before = sum(record.phase < phase.number for record in self.state.history)
        label = {LINEAR_PROBE: "linear probe", HEAD_REFIT: "head refit"}.get(phase.number, "fine-tuning")
        with self.reporter.progress_bar(label, "steps") as advance:
            while self.state.step < (phase := self._shorten(phase)).total_steps:
                if self.state.is_stopped and phase.number != HEAD_REFIT:
                    break
                if should_stop_early(self.state.history, phase.number, self.recipe, len(self.data.val)):
                    break
                start, epoch = time.monotonic(), self.state.step // phase.steps_per_epoch
                self._train_epoch(phase, compiled, epoch, advance)
                self._finish_epoch(phase, epochs_before + epoch + 1, start)
                self._report_epoch(phase, epochs_before + math.ceil(phase.epochs))

    def _shorten(self, phase: Phase) -> Phase:
        """The phase with as many epochs as its share of the time allows, at the pace of those that are done."""
        seconds_of_all = self.state.finetuning_seconds
        if seconds_of_all is None or not phase.is_finetuning:
            return phase
        tuned = [record for record in self.state.history if record.is_finetuning]
        n_phases, index = len(self.phase_builder.last_frozen_layers), phase.number - 2
        planned = [split_epochs(self.recipe.epochs, n_phases, k) for k in range(index + 1)]
        available = seconds_of_all * sum(planned) / self.recipe.epochs
        available -= sum(record.seconds for record in tuned if record.phase < phase.number)
        own = [record.seconds for record in tuned if record.phase == phase.number]
        epochs = epochs_in_time(planned[index], own, available)
        if epochs < phase.epochs:
            self.reporter.step("Budget", f"{epochs:g} epochs in place of {phase.epochs:g}, at {own[-1]:.1f} s an epoch")
        return dataclasses.replace(phase, epochs=epochs)

    def _report_epoch(self, phase: Phase, epochs: int) -> None:
        """A head that was fitted exactly is one step of the run; other epochs are the rows of a table."""
        record = self.state.history[-1]
        log_text = format_epoch(record, epochs)
        if self.phase_builder.has_exact_probe and not phase.is_finetuning:
            name = {LINEAR_PROBE: "Linear probe", HEAD_REFIT: "Head refit"}[phase.number]
            metrics = f"; validation accuracy {record.val_accuracy:.1%}, loss {record.val_loss:.4f}"
            self.reporter.row(f"fitted exactly{metrics if record.has_validation else ''}", log_text, name)
            return
        if not self.has_table:
            self.has_table = True
            self.reporter.row(EPOCH_TABLE_HEADER, name="Fine-tuning" if phase.is_finetuning else "Linear probe")
        self.reporter.row(epoch_row(record), log_text)

    def compile_module(self, phase: Phase) -> Any:
        """The phase's module, compiled where the recipe asks for it; a head alone is not worth compiling."""
        return torch.compile(phase.module) if self.recipe.compile and phase.is_finetuning else phase.module

    def _train_epoch(self, phase: Phase, compiled: Any, epoch: int, advance: ProgressCallback) -> None:
        """The steps of an epoch that are left, with checkpoints on the way."""
        module, optimizer = compiled, phase.optimizer
        has_peers = phase.is_finetuning and self.fabric.world_size > 1
        first = epoch * phase.steps_per_epoch
        last = min(first + phase.steps_per_epoch, phase.total_steps)
        if phase.is_finetuning:  # anew: DDP adds in another order from its second step on, as if resumed here
            module, optimizer = self.fabric.setup(compiled, phase.optimizer)
        set_train_mode(phase.module, keep_norms=self.recipe.weights != "none")
        for inputs, targets in phase.batches(self.state.step, last):
            self._train_step(phase, module, optimizer, inputs, targets)
            advance(self.state.step, phase.total_steps)
            if self.state.step == last or (has_peers and (self.state.step - first) % SYNC_EVERY_STEPS):
                continue
            if has_peers:
                self._gather_sums()
                module, optimizer = self.fabric.setup(compiled, phase.optimizer)
            if time.monotonic() - self.last_saved_at > CHECKPOINT_INTERVAL_S:
                self._save_checkpoint(phase)

    def _can_undo(self) -> bool:
        """Whether there are weights to return to, and the learning rate can still be lowered."""
        return bool(self.best_weights) and divergence.can_reduce(self.state.lr_scale)

    def _gather_sums(self) -> None:
        """Give the sums of all processes to the main process."""
        self.fabric.all_reduce(self.epoch_sums, reduce_op="sum")  # in place
        if not self.fabric.is_global_zero:
            self.epoch_sums.zero_()

    def _train_step(self, phase: Phase, module: nn.Module, optimizer: Any, inputs: LayerInput, targets: Tensor) -> None:
        """One batch: learning rate, forward, backward, update, sums."""
        state, recipe = self.state, self.recipe
        records = [record for record in state.history if record.phase == phase.number]
        factor = lr_factor(phase.schedule, state.step, phase.total_steps, records, recipe.monitor)
        check_every = divergence.steps_per_check(recipe.batch, phase.total_steps)
        is_measuring = phase.is_finetuning and bool(self.best_weights) and state.step < check_every
        set_learning_rates(phase.optimizer, 0.0 if is_measuring else factor * state.lr_scale)
        optimizer.zero_grad()
        sums = self.accumulate_gradients(module, inputs, targets, phase.number, state.step)
        self.epoch_sums += sums
        self.window_sums += sums[[0, 2]]
        if phase.is_finetuning and not recipe.is_from_scratch:
            clip_gradients(phase.optimizer)
        optimizer.step()
        if phase.ema_model is not None:
            phase.ema_model.update_parameters(phase.module)
        state.step += 1
        is_complete = state.step % check_every == 0
        is_last = state.step % phase.steps_per_epoch == 0 or state.step == phase.total_steps  # of its epoch
        if phase.is_finetuning and (is_complete or is_last):
            self._check_divergence(phase, is_complete)
        if self.fabric.device.type == "cpu":  # elsewhere asking each time would make the device wait
            self._update_state()

    def _check_divergence(self, phase: Phase, is_complete: bool) -> None:
        """Return to the best weights, and lower the learning rate, where the last steps did harm.

        At the end of an epoch, before there are enough steps, only a loss that is not finite counts.
        """
        state, sums = self.state, self.window_sums.clone()
        self.fabric.all_reduce(sums, reduce_op="sum")  # in place
        total, seen = sums.tolist()
        loss = total / seen
        if not is_complete and math.isfinite(loss):
            return
        self.window_sums.zero_()
        if not state.reference_loss and math.isfinite(loss):
            state.reference_loss = loss
        progress = state.step / phase.total_steps
        if not divergence.has_diverged(loss, state.reference_loss, seen, progress) or not self._can_undo():
            return
        self.trainable.load_state_dict(self.best_weights)
        if phase.ema_model is not None:
            phase.ema_model.module.load_state_dict(self.best_weights)
        phase.optimizer.state.clear()
        if not math.isfinite(self.epoch_sums[0].item()):
            self.epoch_sums.zero_()
        state.lr_scale *= divergence.LR_REDUCTION
        self.reporter.info(
            f"step {state.step}: the training loss rose from {state.reference_loss:.2f} to {loss:.2f}; "
            f"going on from the best weights with {state.lr_scale:.2g} x the learning rates"
        )

    def accumulate_gradients(self, module: nn.Module, inputs: LayerInput, targets: Tensor, *step: int) -> Tensor:
        """Forward and backward passes of one batch in `recipe.accumulate` chunks.

        Returns:
            (3,): sum of the losses, correctly classified images, images.
        """
        recipe, sums = self.recipe, torch.zeros_like(self.epoch_sums)
        inputs, targets = self.fabric.to_device(inputs), self.fabric.to_device(targets)
        rank = [self.fabric.global_rank] if self.fabric.global_rank else []
        seed_torch(recipe.seed, 3, *step, *rank)  # dropout and its like: each process drops something else
        chunks = list(zip(inputs.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True))
        for k, (chunk, chunk_targets) in enumerate(chunks):
            n_chunk = len(chunk_targets)
            waits = k < len(chunks) - 1 and isinstance(module, _FabricModule)
            with self.fabric.no_backward_sync(cast(_FabricModule, module)) if waits else nullcontext():
                loss, logits = training_loss(
                    module, chunk, chunk_targets, recipe.label_smoothing, self.phase_builder.class_weights
                )
                self.fabric.backward(loss * (n_chunk / len(targets)))
            right = (logits.argmax(1) == (chunk_targets if chunk_targets.ndim == 1 else chunk_targets.argmax(1))).sum()
            sums += torch.stack([loss.detach() * n_chunk, right, torch.tensor(n_chunk).to(right)])
        return sums

    def _update_state(self) -> None:
        """Copy the epoch's sums into the state.

        Raises:
            UntrainableRecipeError: the loss is not finite.
        """
        self.state.loss, right, seen = self.epoch_sums.tolist()
        self.state.right, self.state.seen = int(right), int(seen)
        self.state.window_loss, window_seen = self.window_sums.tolist()
        self.state.window_seen = int(window_seen)
        is_lost = not math.isfinite(self.state.loss) and not self._can_undo()
        if is_lost and self.fabric.is_global_zero:  # a step later it sees what others see
            raise UntrainableRecipeError(
                f"the loss is NaN or infinite (phase {self.state.phase}, step {self.state.step}): "
                "use a lower --lr and --backbone-lr with another --out"
            )

    # ---- evaluation of an epoch

    def _finish_epoch(self, phase: Phase, epoch: int, start: float) -> None:
        """Evaluate on the validation set, append the epoch to the history, keep the best weights, save."""
        if phase.is_finetuning:
            self.fabric.all_reduce(self.epoch_sums, reduce_op="sum")  # in place
        self._update_state()
        record = self._evaluate_epoch(phase, epoch, start)
        if phase.is_finetuning:
            record = self.fabric.broadcast(record)
        self.state.history.append(record)
        self.epoch_sums.zero_()
        self._update_state()
        is_best = self.best_epoch() == epoch
        is_best_tuned = epoch == best_tuned_epoch(self.state.history, self.recipe, len(self.data.val))
        if is_best or (is_best_tuned and not self._is_damaged(record)):
            self.best_weights = snapshot(self.trainable if phase.ema_model is None else phase.eval_module)
        if is_best and phase.number != LINEAR_PROBE:
            self._save_best_weights()
        if phase.is_finetuning or time.monotonic() - self.last_saved_at > CHECKPOINT_INTERVAL_S:
            self._save_checkpoint(phase)
        if self.listener is not None:
            try:
                self.listener.log_epoch(record)
            except StopTraining:
                self.state.is_stopped = True
                self._save_checkpoint(phase)

    def _is_damaged(self, record: EpochRecord) -> bool:
        """Whether the training loss of an epoch of fine-tuning is clearly above that of its first steps.

        Such weights are none to return to: the next check would find the same, and lower the rates again.
        """
        reference = self.state.reference_loss
        return divergence.has_diverged(record.train_loss, reference, len(self.data.train), 1.0) if reference else False

    def _evaluate_epoch(self, phase: Phase, epoch: int, start: float) -> EpochRecord:
        loss, right, seen = self.epoch_sums.tolist()
        before = self.state.history[-1] if self.state.history else None  # which counts if all steps were undone
        val_loss, val_accuracy = self._validate(phase)
        return EpochRecord(
            epoch=epoch,
            phase=phase.number,
            lr=phase.optimizer.param_groups[-1]["lr"],
            train_loss=loss / seen if seen or before is None else before.train_loss,
            train_accuracy=right / seen if seen or before is None else before.train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.monotonic() - start,
        )

    def _validate(self, phase: Phase) -> tuple[float, float]:
        """Mean loss and accuracy on the validation set, each image counted once; NaN if it is empty."""
        if not len(self.data.val):
            return math.nan, math.nan
        labels, is_shared = self.phase_builder.val_labels, phase.is_finetuning
        if is_shared:
            labels = labels[self.phase_builder.val_shard]
        if is_shared and self.fabric.world_size > 1:  # norms that train have seen other images in each process
            for statistic in phase.eval_module.buffers():
                torch.distributed.broadcast(statistic, 0)
        logits = self.compute_logits(phase.eval_module, phase.val_batches())
        loss, right = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        sums = self.fabric.to_device(torch.stack([loss, right]))
        if is_shared:
            self.fabric.all_reduce(sums, reduce_op="sum")
        loss, right = (sums / len(self.data.val)).tolist()
        return loss, right

    def compute_logits(self, module: nn.Module, maps: Iterable[LayerInput]) -> Tensor:
        """Logits (n, classes) on the CPU of a module in eval mode and float32."""
        module.eval()
        with torch.inference_mode():
            parts = [module(self.fabric.to_device(x)).float().cpu() for x in maps]
        return torch.cat([torch.empty(0, self.phase_builder.num_classes), *parts])

    def best_epoch(self) -> int:
        """Number of the epoch whose weights the network holds; 0 where none was trained."""
        history, n_val = self.state.history, len(self.data.val)
        return best_epoch(history, self.recipe, n_val, refits_head=self.phase_builder.refits_head) if history else 0

    # ---- checkpoints

    def _save_checkpoint(self, phase: Phase | None = None) -> None:
        """Write everything that resuming takes; `phase` is None between two phases."""
        if not self.fabric.is_global_zero:
            return
        self._update_state()
        saved = Checkpoint(self.state, self.trainable.state_dict(), self.best_weights)
        if phase is not None:
            saved.optimizer = checkpoint.optimizer_tensors(phase.optimizer)
            saved.ema = {} if phase.ema_model is None else phase.ema_model.state_dict()
        saved.save(self.folder)
        self.last_saved_at = time.monotonic()

    def _save_best_weights(self) -> None:
        """Write the best network so far as a file that `--weights` of another run takes."""
        if self.fabric.is_global_zero:
            save_state(self.folder / BEST_NETWORK_FILE, self.phase_builder.full_state_dict(self.best_weights))

    def _resume(self) -> Checkpoint | None:
        """Continue from the checkpoint, if there is one."""
        resumed = Checkpoint.load(self.folder)
        if resumed is None:
            return None
        self.state, self.best_weights = resumed.state, resumed.best_weights
        try:
            self.phase_builder.enter_phase(self.state.phase)
            self.trainable.load_state_dict(resumed.weights)
        except (RuntimeError, IndexError):
            raise FieldmarkError(
                f"{self.folder / checkpoint.CHECKPOINT_FILE} does not match recipe.yaml, or a later version wrote it:"
                " train again with another --out"
            ) from None
        if self.fabric.is_global_zero:
            sums = [self.state.loss, self.state.right, self.state.seen]
            self.epoch_sums += torch.tensor(sums, device=self.epoch_sums.device)
            window = [self.state.window_loss, self.state.window_seen]
            self.window_sums += torch.tensor(window, device=self.window_sums.device)
        self.reporter.info(f"resumed in phase {self.state.phase} at step {self.state.step}")
        return resumed
