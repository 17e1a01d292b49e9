"""Recipe -> which of its settings others leave without effect, for people to hear."""

from fieldmark.recipes.recipe import Recipe, option

FIRST = ("frozen_epochs", "frozen_lr")
DEPTH = ("unfreeze", "backbone_lr")
SECOND = ("train_size", "start_size", "augment", "mixup", "cutmix", "lr", "find_lr", "schedule", "weight_decay")
SECOND += ("decay_all", "ema", "patience", "steps_per_epoch", "compile")
"""Settings of phase 1, of how deep training goes, and of phase 2 alone."""


def idle(asked: Recipe, solved: bool) -> list[str]:
    """Lines on settings that others leave without effect; `solved` says that phase 1 is solved exactly."""
    frozen = asked.weights != "none" and asked.frozen_epochs > 0
    in_vain = (
        (asked.backbone is not None, "--backbone names the network", ("quality",)),
        (asked.weights == "none", "--weights none trains everything from the start", (*FIRST, *DEPTH)),
        (frozen and solved, "phase 1 is solved exactly (--no-exact takes steps)", FIRST),
        (not asked.epochs and not asked.budget, "--epochs 0 leaves phase 2 out", (*DEPTH, *SECOND)),
        (asked.find_lr, "--find-lr finds the rates of phase 2", ("lr", "backbone_lr")),
        (asked.budget is not None, "--budget plans phase 2", ("epochs", "steps_per_epoch")),
    )
    usual, lines = Recipe(), []
    for so, why, fields in in_vain:
        if so and (found := [option(f) for f in fields if getattr(asked, f) not in (getattr(usual, f), 0)]):
            lines.append(f"{', '.join(found)}: without effect, as {why}")
    return lines
