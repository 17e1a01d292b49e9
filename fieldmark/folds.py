"""Recipe with folds -> as many trainings one after the other, each tested on another part of all photos; their mean.

Figures over folds are means weighted by test photos; `sd` is the standard deviation of the accuracy from fold to fold.
"""

import dataclasses
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from fieldmark import recipe as recipes
from fieldmark import records
from fieldmark.errors import FieldmarkError
from fieldmark.recipe import Recipe, seconds

Metrics = dict[str, Any]
FIGURES = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "ece", "roc_auc", "sensitivity", "specificity")


def require(recipe: Recipe) -> None:
    """Refuse folds that cannot be."""
    if recipe.folds == 1 or recipe.fold > recipe.folds:
        raise FieldmarkError(f"--folds is {recipe.folds}, --fold {recipe.fold}: give 2 folds or more, and one of them")
    if recipe.folds and recipe.split_file:
        raise FieldmarkError("--folds splits the photos itself: leave --split-file out")


def cross_validate(train: Callable[[Recipe, Path], Metrics], recipe: Recipe, out: Path) -> Metrics:
    """Train every fold into `out`/fold-K and write the mean figures to `out`/metrics.json. -> them.

    What `train` finds done it does not repeat, so an interrupted run goes on where it was. A budget is that of all.
    """
    if recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("--folds trains one after the other: with several devices give each fold its --fold")
    fresh = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    recipes.write(recipe, out / "recipe.half")
    (out / "recipe.half").replace(out / "recipe.yaml")
    if recipe.budget:
        recipe = dataclasses.replace(recipe, budget=f"{seconds(recipe.budget) / recipe.folds:.0f}s")
    try:
        first = train(dataclasses.replace(recipe, fold=1), out / "fold-1")
    except FieldmarkError:
        if fresh:  # nothing is lost, and the same command works once the photos are in order
            shutil.rmtree(out)
        raise
    each = [first] + [train(dataclasses.replace(recipe, fold=k), out / f"fold-{k}") for k in range(2, recipe.folds + 1)]
    if len({run["fingerprint"] for run in each}) > 1:
        raise FieldmarkError(f"the photos have changed since {out} was begun: train into another --out")
    best = max(each, key=lambda run: (run["validation"] or {}).get("accuracy", 0.0))
    warnings = dict.fromkeys(text for run in each for text in run["warnings"])
    found = {
        "test": mean([run["test"] for run in each]),
        "validation": mean([run["validation"] for run in each]),
        "folds": [{"test": run["test"], "validation": run["validation"], "bundle": run["bundle"]} for run in each],
        "bundle": best["bundle"],
        "seconds": {part: sum(run["seconds"][part] for run in each) for part in best["seconds"]},
        "warnings": list(warnings),
        **{key: best[key] for key in ("classes", "network", "parameters", "fingerprint", "seed", "environment")},
    }
    records.write(out / "metrics.json", found)
    return found


def mean(each: list[Metrics | None]) -> Metrics | None:
    """Of the figures of several folds; `ci95` is Wilson's interval of all their photos together."""
    figures = [figures for figures in each if figures]
    if not figures:
        return None
    n = [one["n"] for one in figures]
    right = round(sum(one["accuracy"] * k for one, k in zip(figures, n, strict=True)))
    interval = binomtest(right, sum(n)).proportion_ci(method="wilson")
    accuracies = [one["accuracy"] for one in figures]
    found = {
        name: sum(one[name] * k for one, k in zip(figures, n, strict=True)) / sum(n)
        for name in FIGURES
        if all(name in one for one in figures)
    }
    sd = statistics.stdev(accuracies) if len(figures) > 1 else 0.0
    return found | {"n": sum(n), "sd": sd, "ci95": [float(interval.low), float(interval.high)]}
