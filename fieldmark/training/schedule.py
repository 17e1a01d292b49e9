"""History of epochs -> how fast the next one learns, which one was best, and when to stop; all pure functions."""

import math
from typing import Any

from fieldmark.recipes.recipe import Recipe

EpochRow = dict[str, Any]
"""An epoch in the history."""

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.2, 4
"""The write-ups' plateau rule: the rate times DROP after WAIT epochs without gain."""
STEP_MILESTONES = (0.3, 0.6, 0.9)
"""Shares of the epochs behind which `steps` divides the rate by ten: 30, 60 and 90 of a hundred."""


def lr_factor(schedule: str, step: int, total: int, history: list[EpochRow], monitor: str) -> float:
    """What the learning rate is multiplied with at `step` of `total`: a pure function of the step and the history.

    `cosine` rises over a tenth of the steps and falls along half a cosine (Loshchilov & Hutter 2017); `plateau` drops
    whenever the watched figure has not been better for some epochs, as Keras' ReduceLROnPlateau; `steps` divides by ten
    at each milestone (He et al. 2016, section 3.4, by hand there).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "steps":
        return 0.1 ** sum(step >= round(share * total) for share in STEP_MILESTONES)
    if schedule == "plateau":
        drops = wait = 0
        best: tuple[float, ...] | None = None
        for row in history:
            if math.isnan(row["val_loss"]):
                continue
            score = _score(row, monitor)[:1]  # ties are no gain
            if best is None or score > best:
                best, wait = score, 0
            else:
                wait += 1
            if wait == PLATEAU_PATIENCE:
                drops, wait = drops + 1, 0
        return PLATEAU_FACTOR**drops
    warm = max(1, total // 10)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, total - warm))))


def best_epoch(history: list[EpochRow], recipe: Recipe, n_val: int) -> int:
    """Number of the best epoch by the figure that is watched on so many validation photos; without them the last.

    Where the rate falls along a cosine and accuracy is watched, it is the latest epoch within one standard error of the
    highest: among equals the one that has settled most, and not the luckiest (the one-standard-error rule of Breiman et
    al. 1984, "Classification and Regression Trees", section 3.4.3). Else it is the highest (ties: lower loss) or the
    lowest loss. Phase 1 stands with its last epoch: it settles smoothly.
    """
    frozen = [row for row in history if row["phase"] == 1]
    rows = [*frozen[-1:], *history[len(frozen) :]]
    best = max(rows, key=lambda row: _score(row, recipe.monitor))
    highest = best["val_accuracy"]
    if recipe.schedule != "cosine" or recipe.monitor != "accuracy" or math.isnan(best["val_loss"]):
        return best["epoch"]
    error = math.sqrt(highest * (1 - highest) / n_val)
    return max(row["epoch"] for row in rows if row["val_accuracy"] >= highest - error)


def should_stop_early(history: list[EpochRow], phase: int, recipe: Recipe, n_val: int) -> bool:
    """Early stopping: whether a phase has waited `patience` epochs for a better one. Phase 1 costs next to nothing."""
    phase_history = [row for row in history if row["phase"] == phase]
    if phase == 1 or not phase_history:
        return False
    return phase_history[-1]["epoch"] - best_epoch(phase_history, recipe, n_val) >= recipe.patience


def format_epoch(row: EpochRow, epochs: int) -> str:
    """An epoch as a line of the text log."""
    return (
        f"epoch: {row['epoch']}/{epochs}, train_loss: {row['train_loss']:.4f}, train_acc: {row['train_accuracy']:.4f}, "
        f"val_loss: {row['val_loss']:.4f}, val_acc: {row['val_accuracy']:.4f} "
        f"({row['seconds']:.1f} s, phase {row['phase']})"
    )


def _score(row: EpochRow, monitor: str) -> tuple[float, ...]:
    if math.isnan(row["val_loss"]):
        return (row["epoch"],)
    return (row["val_accuracy"], -row["val_loss"]) if monitor == "accuracy" else (-row["val_loss"],)
