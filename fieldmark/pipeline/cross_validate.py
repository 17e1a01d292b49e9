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
from fieldmark.recipes.recipe import Recipe, parse_duration

FoldMetrics = dict[str, Any]


def validate_folds(recipe: Recipe) -> None:
    """Refuse folds that cannot be."""
    if recipe.folds == 1 or recipe.fold > recipe.folds:
        raise FieldmarkError(f"--folds is {recipe.folds}, --fold {recipe.fold}: give 2 folds or more, and one of them")
    if recipe.folds and recipe.split_file:
        raise FieldmarkError("--folds splits the photos itself: leave --split-file out")


def cross_validate(train: Callable[[Recipe, Path], FoldMetrics], recipe: Recipe, out: Path) -> FoldMetrics:
    """Train every fold into `out`/fold-K and write the figures of all to `out`/metrics.json, and a report. -> them.

    What `train` finds done it does not repeat, so an interrupted run goes on where it was. A budget is that of all.
    """
    from fieldmark.report.run_report import rewrite_report  # not before; see run.py

    if recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("--folds trains one after the other: with several devices give each fold its --fold")
    fresh = not out.exists()
    for fold in out.glob("fold-*"):
        if (fold / "metrics.json").exists() and not (fold / "answers.npz").exists():
            raise FieldmarkError(f"{fold} was trained by an earlier version, without its answers: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    recipes.write_recipe(recipe, out / "recipe.yaml")
    if recipe.budget:
        recipe = recipe.replace(budget=f"{parse_duration(recipe.budget) / recipe.folds:.0f}s")
    try:
        first = train(recipe.replace(fold=1), out / "fold-1")
    except FieldmarkError:
        if fresh:  # nothing is lost, and the same command works once the photos are in order
            shutil.rmtree(out)
        raise
    fold_metrics = [first] + [train(recipe.replace(fold=k), out / f"fold-{k}") for k in range(2, recipe.folds + 1)]
    if len({run["fingerprint"] for run in fold_metrics}) > 1:
        raise FieldmarkError(f"the photos have changed since {out} was begun: train into another --out")
    best = max(fold_metrics, key=lambda run: (run["validation"] or {}).get("accuracy", 0.0))
    warnings = dict.fromkeys(text for run in fold_metrics for text in run["warnings"])
    metrics = {
        "test": pool_fold_metrics(
            fold_metrics, [out / f"fold-{k}" / "answers.npz" for k in range(1, recipe.folds + 1)]
        ),
        "validation": None,  # other photos chose in each
        "folds": [
            {"test": run["test"], "validation": run["validation"], "bundle": run["bundle"]} for run in fold_metrics
        ],
        "bundle": best["bundle"],
        "seconds": {part: sum(run["seconds"][part] for run in fold_metrics) for part in best["seconds"]},
        "warnings": list(warnings),
        **{key: best[key] for key in ("classes", "network", "parameters", "fingerprint", "seed", "environment")},
    }
    io.write_json(out / "metrics.json", metrics)
    rewrite_report(out)
    return metrics


def _positive_threshold(split_metrics: FoldMetrics, positive: str | None) -> float:
    """The probability from which this fold calls a photo positive."""
    threshold = split_metrics.get("at_threshold", {}).get("threshold", 0.5)
    return threshold if split_metrics.get("positive") == positive else 1 - threshold


def pool_fold_metrics(fold_metrics: list[FoldMetrics], files: list[Path]) -> FoldMetrics | None:
    """The figures of all test photos, each by its own fold's classifier and threshold; `sd` from fold to fold."""
    from fieldmark.evaluation.metrics import Predictions, compute_metrics

    folds_with_test = [
        (run, Predictions.load(file)) for run, file in zip(fold_metrics, files, strict=True) if run["test"]
    ]
    if not folds_with_test:
        return None
    # Every fold has a threshold of its own: what counts is how far above it a score lies.
    shifted = [
        dataclasses.replace(pooled_metrics, scores=pooled_metrics.scores - run["test"]["threshold"])
        for run, pooled_metrics in folds_with_test
    ]
    positive = next((run["test"]["positive"] for run, _ in folds_with_test if "positive" in run["test"]), None)
    decision_thresholds = np.concatenate(
        [np.full(len(one), _positive_threshold(run["test"], positive)) for run, one in folds_with_test]
    )
    accuracies = [run["test"]["accuracy"] for run, _ in folds_with_test]
    metrics = compute_metrics(
        Predictions.concatenate(shifted), fold_metrics[0]["classes"], 0.0, positive, decision_thresholds
    )
    sd = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return dataclasses.replace(metrics, sd=sd).to_dict()
