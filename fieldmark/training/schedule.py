"""Pure functions of the history: learning-rate factor, best epoch, early stopping, epochs in a budget, log line."""

import math
from collections.abc import Sequence

from fieldmark.recipes.recipe import Recipe
from fieldmark.training.history import HEAD_REFIT, LINEAR_PROBE, EpochRecord

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.2, 4
"""Factor and patience (epochs) of ReduceLROnPlateau in the tutorials that the recipes reproduce."""
STEP_MILESTONES = (0.3, 0.6, 0.9)
"""Shares of the epochs after which `steps` divides the learning rate by ten: 30, 60 and 90 of a hundred."""


def lr_factor(schedule: str, step: int, total: int, history: list[EpochRecord], monitor: str) -> float:
    """Factor of the learning rate at `step` of `total`: a pure function of the step and the phase's history.

    `cosine` rises over a tenth of the steps and falls along half a cosine (Loshchilov & Hutter 2017); `plateau` drops
    whenever the monitored metric has not improved for some epochs, as Keras' ReduceLROnPlateau; `steps` divides by ten
    at each milestone (He et al. 2016, section 3.4, by hand there).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "steps":
        return 0.1 ** sum(step >= round(share * total) for share in STEP_MILESTONES)
    if schedule == "plateau":
        return PLATEAU_FACTOR ** _count_plateaus(history, monitor)
    warm = max(1, total // 10)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, total - warm))))


def _count_plateaus(history: list[EpochRecord], monitor: str) -> int:
    """How often `PLATEAU_PATIENCE` epochs in a row brought no improvement."""
    count = wait = 0
    best: tuple[float, ...] | None = None
    for record in filter(lambda record: record.has_validation, history):
        score = _score(record, monitor)[:1]  # ties are no improvement
        if best is None or score > best:
            best, wait = score, 0
        else:
            wait += 1
        if wait == PLATEAU_PATIENCE:
            count, wait = count + 1, 0
    return count


def best_epoch(history: list[EpochRecord], recipe: Recipe, n_val: int, *, refits_head: bool = False) -> int:
    """Number of the best epoch on `n_val` validation images; without them the last.

    It is that of the linear probe, which counts with its last epoch as it settles smoothly, or of fine-tuning
    (`best_tuned_epoch`), whichever has the highest accuracy (ties: lower loss) or the lowest loss, as
    `recipe.monitor` says. Where fine-tuning ends with a refit of the head, it competes through that alone: the best of
    many epochs is also the luckiest. Of the probe and the refit the one with the lower loss is the best: both are
    exact solutions for the same loss, and accuracy hangs on single images. 0 where no validation loss is finite.
    """
    usable = _with_finite_loss(history, n_val)
    probe = [record for record in usable if record.phase == LINEAR_PROBE][-1:]
    refit = [record for record in usable if record.phase == HEAD_REFIT]
    tuned = [record for record in usable if record.is_finetuning]
    candidates = [*probe, *refit] if refits_head else []
    if not candidates:
        candidates = [*probe, *([_best_tuned(tuned, recipe, n_val)] if tuned else [])]
    monitor = "loss" if refits_head else recipe.monitor
    return max(candidates, key=lambda record: _score(record, monitor)).epoch if candidates else 0


def best_tuned_epoch(history: list[EpochRecord], recipe: Recipe, n_val: int) -> int:
    """Number of the best epoch of fine-tuning; 0 before the first, and where no validation loss is finite.

    Where the learning rate falls along a cosine and accuracy is monitored, it is the latest epoch within one standard
    error of the highest: among equals the one that has settled most, and not the luckiest (the one-standard-error rule
    of Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3). Otherwise it is the highest accuracy
    (ties: lower loss) or the lowest loss.
    """
    tuned = [record for record in _with_finite_loss(history, n_val) if record.is_finetuning]
    return _best_tuned(tuned, recipe, n_val).epoch if tuned else 0


def _with_finite_loss(history: list[EpochRecord], n_val: int) -> list[EpochRecord]:
    """The epochs that can be compared: without validation images all of them."""
    return [record for record in history if not n_val or math.isfinite(record.val_loss)]


def _best_tuned(records: list[EpochRecord], recipe: Recipe, n_val: int) -> EpochRecord:
    best = max(records, key=lambda record: _score(record, recipe.monitor))
    highest = best.val_accuracy
    if recipe.schedule != "cosine" or recipe.monitor != "accuracy" or not best.has_validation:
        return best
    standard_error = math.sqrt(highest * (1 - highest) / n_val)
    return [record for record in records if record.val_accuracy >= highest - standard_error][-1]


def should_stop_early(history: list[EpochRecord], phase: int, recipe: Recipe, n_val: int) -> bool:
    """Whether a phase of fine-tuning had `recipe.patience` epochs without a better one."""
    records = [record for record in history if record.phase == phase and record.is_finetuning]
    return bool(records) and records[-1].epoch - best_tuned_epoch(records, recipe, n_val) >= recipe.patience


def epochs_in_time(planned: int, seconds: Sequence[float], available: float) -> float:
    """How many epochs of a phase fit into the available seconds, where the first ones took so many.

    The next ones are expected to take as long as the last two. The number only falls from epoch to epoch, so that the
    learning rate does too. It is a pure function of the history: a resumed run comes to the same.

    Returns:
        in quarters of an epoch: at most `planned`, and no fewer than are done, of which the last may be a part.
    """
    epochs = float(planned)
    for done in range(1, len(seconds) + 1):
        last = seconds[max(0, done - 2) : done]
        left, expected = available - sum(seconds[:done]), max(sum(last) / len(last), 1e-9)
        epochs = min(epochs, done + max(0, int(4 * left / expected)) / 4)
    return epochs


def format_epoch(record: EpochRecord, epochs: int) -> str:
    """An epoch as a line of the text log."""
    return (
        f"epoch: {record.epoch}/{epochs}, train_loss: {record.train_loss:.4f}, train_acc: {record.train_accuracy:.4f}, "
        f"val_loss: {record.val_loss:.4f}, val_acc: {record.val_accuracy:.4f} "
        f"({record.seconds:.1f} s, phase {record.phase})"
    )


EPOCH_TABLE_HEADER = "epoch  train loss  accuracy  val. loss  accuracy  seconds"


def epoch_row(record: EpochRecord) -> str:
    """An epoch as a row below `EPOCH_TABLE_HEADER`."""
    return (
        f"{record.epoch:>5}{record.train_loss:>12.3f}{record.train_accuracy:>10.1%}"
        f"{record.val_loss:>11.3f}{record.val_accuracy:>10.1%}{record.seconds:>9.1f}"
    )


def describe_choice(history: list[EpochRecord], best: int, *, refits_head: bool) -> str:
    """Which weights were kept, and why, in one line; empty without epochs."""
    kept = next((record for record in history if record.epoch == best), None)
    if kept is None:
        return ""
    names = {LINEAR_PROBE: "the linear probe", HEAD_REFIT: "the fine-tuned network with its head fitted anew"}
    name = names.get(kept.phase, f"epoch {kept.epoch} of fine-tuning")
    others = [record for record in history if record.phase != kept.phase and record.has_validation]
    if not others or not kept.has_validation:
        return name
    if refits_head:
        rival = [record for record in others if record.phase in names][-1:]
        losses = "".join(f", {names[record.phase]} has {record.val_loss:.4f}" for record in rival)
        return f"{name}: validation loss {kept.val_loss:.4f}{losses}"
    return f"{name}: validation accuracy {kept.val_accuracy:.1%}, loss {kept.val_loss:.4f}"


def _score(record: EpochRecord, monitor: str) -> tuple[float, ...]:
    if not record.has_validation:
        return (record.epoch,)
    return (record.val_accuracy, -record.val_loss) if monitor == "accuracy" else (-record.val_loss,)
