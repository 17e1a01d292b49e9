"""Recipe with folds -> as many trainings one after the other, each tested on another part of all photos; all together.

Figures over folds are those of all their photos together, each judged by the classifier that had not seen it; `sd` is
the standard deviation of the accuracy from fold to fold.
"""

import dataclasses
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe, seconds

Metrics = dict[str, Any]


def require(recipe: Recipe) -> None:
    """Refuse folds that cannot be."""
    if recipe.folds == 1 or recipe.fold > recipe.folds:
        raise FieldmarkError(f"--folds is {recipe.folds}, --fold {recipe.fold}: give 2 folds or more, and one of them")
    if recipe.folds and recipe.split_file:
        raise FieldmarkError("--folds splits the photos itself: leave --split-file out")


def cross_validate(train: Callable[[Recipe, Path], Metrics], recipe: Recipe, out: Path) -> Metrics:
    """Train every fold into `out`/fold-K and write the figures of all to `out`/metrics.json, and a report. -> them.

    What `train` finds done it does not repeat, so an interrupted run goes on where it was. A budget is that of all.
    """
    from fieldmark.report.run_report import rewrite  # not before; see run.py

    if recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("--folds trains one after the other: with several devices give each fold its --fold")
    fresh = not out.exists()
    for fold in out.glob("fold-*"):
        if (fold / "metrics.json").exists() and not (fold / "answers.npz").exists():
            raise FieldmarkError(f"{fold} was trained by an earlier version, without its answers: give another --out")
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
        "test": pooled(each, [out / f"fold-{k}" / "answers.npz" for k in range(1, recipe.folds + 1)]),
        "validation": None,  # other photos chose in each
        "folds": [{"test": run["test"], "validation": run["validation"], "bundle": run["bundle"]} for run in each],
        "bundle": best["bundle"],
        "seconds": {part: sum(run["seconds"][part] for run in each) for part in best["seconds"]},
        "warnings": list(warnings),
        **{key: best[key] for key in ("classes", "network", "parameters", "fingerprint", "seed", "environment")},
    }
    io.write(out / "metrics.json", found)
    rewrite(out)
    return found


def _decision(figures: Metrics, positive: str | None) -> float:
    """The probability from which this fold calls a photo positive."""
    own = figures.get("at_threshold", {}).get("threshold", 0.5)
    return own if figures.get("positive") == positive else 1 - own


def pooled(each: list[Metrics], files: list[Path]) -> Metrics | None:
    """The figures of all test photos, each by its own fold's classifier and threshold; `sd` from fold to fold."""
    from fieldmark.evaluation.metrics import Answers, figures

    tested = [(run, Answers.read(file)) for run, file in zip(each, files, strict=True) if run["test"]]
    if not tested:
        return None
    # Every fold has a threshold of its own: what counts is how far above it a score lies.
    over = [dataclasses.replace(found, scores=found.scores - run["test"]["threshold"]) for run, found in tested]
    positive = next((run["test"]["positive"] for run, _ in tested if "positive" in run["test"]), None)
    decisions = np.concatenate([np.full(len(found), _decision(run["test"], positive)) for run, found in tested])
    found = figures(Answers.together(over), each[0]["classes"], 0.0, positive, decisions)
    accuracies = [run["test"]["accuracy"] for run, _ in tested]
    return (found or {}) | {"sd": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0}
