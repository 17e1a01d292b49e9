"""Recipe -> which of its settings others leave without effect, for people to hear."""

from fieldmark.recipes.recipe import Recipe, option_name

LINEAR_PROBE_FIELDS = ("frozen_epochs", "frozen_lr")
UNFREEZE_FIELDS = ("unfreeze", "backbone_lr")
FINE_TUNING_FIELDS = (
    "train_size",
    "start_size",
    "augment",
    "mixup",
    "cutmix",
    "lr",
    "find_lr",
    "schedule",
    "weight_decay",
)
FINE_TUNING_FIELDS += ("decay_all", "ema", "patience", "steps_per_epoch", "compile")
"""Settings of phase 1, of how deep training goes, and of phase 2 alone."""


def ineffective_settings(recipe: Recipe, is_exact: bool) -> list[str]:
    """Lines on settings that others leave without effect; `solved` says that phase 1 is solved exactly."""
    has_linear_probe = recipe.weights != "none" and recipe.frozen_epochs > 0
    rules = (
        (recipe.backbone is not None, "--backbone names the network", ("quality",)),
        (
            recipe.weights == "none",
            "--weights none trains everything from the start",
            (*LINEAR_PROBE_FIELDS, *UNFREEZE_FIELDS),
        ),
        (has_linear_probe and is_exact, "phase 1 is solved exactly (--no-exact takes steps)", LINEAR_PROBE_FIELDS),
        (
            not recipe.epochs and not recipe.budget,
            "--epochs 0 leaves phase 2 out",
            (*UNFREEZE_FIELDS, *FINE_TUNING_FIELDS),
        ),
        (recipe.find_lr, "--find-lr finds the rates of phase 2", ("lr", "backbone_lr")),
        (recipe.budget is not None, "--budget plans phase 2", ("epochs", "steps_per_epoch")),
    )
    defaults, lines = Recipe(), []
    for applies, reason, fields in rules:
        if applies and (
            ineffective := [option_name(f) for f in fields if getattr(recipe, f) not in (getattr(defaults, f), 0)]
        ):
            lines.append(f"{', '.join(ineffective)}: without effect, as {reason}")
    return lines
