"""k-fold cross-validation: one training for each fold, and the pooled metrics of all folds.

Every image is in the test set of one fold. The pooled metrics are those of all test predictions together; `sd` is the
standard deviation of the accuracy between the folds.
"""

import dataclasses
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.evaluation.results import Metrics
from fieldmark.pipeline.run import Run
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe, parse_duration
from fieldmark.report.run_metrics import FoldMetrics, RunMetrics


def validate_folds(recipe: Recipe) -> None:
    """Raise FieldmarkError for impossible settings of `folds` and `fold`."""
    if recipe.folds == 1 or recipe.fold > recipe.folds:
        raise FieldmarkError(f"--folds is {recipe.folds}, --fold {recipe.fold}: give 2 folds or more, and one of them")
    if recipe.folds and recipe.split_file:
        raise FieldmarkError("--folds splits the images itself: leave --split-file out")


def cross_validate(train_fold: Callable[[Recipe, Path], Run], recipe: Recipe, out: Path) -> Run:
    """Train every fold into `out`/fold-K, and write the pooled metrics and a report into `out`.

    Finished folds are not trained again, so that an interrupted cross-validation continues. A budget is that of all
    folds together.
    """
    # not before there is something to report
    from fieldmark.report.recommendations.recommend import recommend_for_run
    from fieldmark.report.run_report import rewrite_report

    if recipe.devices * recipe.nodes > 1:
        raise FieldmarkError("--folds trains one after the other: with several devices give each fold its --fold")
    _require_predictions(out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    recipes.write_recipe(recipe, out / "recipe.yaml")
    runs = _train_folds(train_fold, recipe, out, is_new)
    if len({run.metrics["fingerprint"] for run in runs}) > 1:
        raise FieldmarkError(f"the images have changed since {out} was started: train into another --out")
    metrics = _combine(runs)
    io.write_json(out / "metrics.json", metrics.to_dict())
    next_steps = [recommendation.to_dict() for recommendation in recommend_for_run(out)]
    io.write_json(out / "metrics.json", dataclasses.replace(metrics, next_steps=next_steps).to_dict())
    rewrite_report(out)
    return Run.load(out)


def _require_predictions(out: Path) -> None:
    for fold in out.glob("fold-*"):
        if (fold / "metrics.json").exists() and not (fold / "answers.npz").exists():
            raise FieldmarkError(f"{fold} has no answers.npz, as an earlier version trained it: give another --out")


def _train_folds(train_fold: Callable[[Recipe, Path], Run], recipe: Recipe, out: Path, is_new: bool) -> list[Run]:
    if recipe.budget:
        recipe = recipe.replace(budget=f"{parse_duration(recipe.budget) / recipe.folds:.0f}s")
    runs: list[Run] = []
    try:
        for k in range(1, recipe.folds + 1):
            runs.append(train_fold(recipe.replace(fold=k), out / f"fold-{k}"))
    except FieldmarkError:
        if is_new and not runs:  # nothing is lost, and the same command works once the images are corrected
            shutil.rmtree(out)
        raise
    return runs


def _combine(runs: Sequence[Run]) -> RunMetrics:
    """Metrics of a cross-validation; the bundle is that of the fold with the best validation accuracy."""
    folds = [run.results for run in runs]
    best = max(folds, key=lambda fold: fold.validation.accuracy if fold.validation else 0.0)
    return RunMetrics(
        test=pool_metrics(runs),
        validation=None,  # each fold has another validation set
        folds=[FoldMetrics(fold.test, fold.validation, fold.bundle or "") for fold in folds],
        bundle=best.bundle,
        seconds={part: sum(fold.seconds[part] for fold in folds) for part in best.seconds},
        warnings=list(dict.fromkeys(text for fold in folds for text in fold.warnings)),
        classes=best.classes,
        network=best.network,
        parameters=best.parameters,
        fingerprint=best.fingerprint,
        seed=best.seed,
        environment=best.environment,
    )


def pool_metrics(runs: Sequence[Run]) -> Metrics | None:
    """Metrics of the test predictions of all folds, each with its own thresholds; None without test images."""
    from fieldmark.evaluation.metrics import Predictions, compute_metrics

    tests, predictions = list[Metrics](), list[Predictions]()
    for run in runs:
        if test := run.results.test:
            tests.append(test)
            predictions.append(Predictions.load(run.folder / "answers.npz"))
    if not tests:
        return None
    # The folds have different thresholds: with scores relative to their own, one threshold of 0 applies to all.
    shifted = [
        dataclasses.replace(fold, scores=fold.scores - test.threshold)
        for fold, test in zip(predictions, tests, strict=True)
    ]
    positive = next((test.binary.positive for test in tests if test.binary), None)
    thresholds = [
        np.full(len(fold), _positive_threshold(test, positive)) for fold, test in zip(predictions, tests, strict=True)
    ]
    classes = list(runs[0].results.classes)
    pooled = compute_metrics(Predictions.concatenate(shifted), classes, 0.0, positive, np.concatenate(thresholds))
    accuracies = [test.accuracy for test in tests]
    sd = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return dataclasses.replace(pooled, sd=sd)


def _positive_threshold(test: Metrics, positive: str | None) -> float:
    """The probability from which this fold predicts `positive`; its own positive class may be the other one."""
    if test.binary is None:
        return 0.5
    threshold = test.binary.at_threshold.threshold
    return threshold if test.binary.positive == positive else 1 - threshold
