"""Page, table and sentences of a hyperparameter search."""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from fieldmark.core import io
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report import html
from fieldmark.report.charts import frame as svg
from fieldmark.report.charts.frame import HEIGHT, LEFT, WIDTH, Axes
from fieldmark.report.results import SearchResult, Trial

COLUMNS = ["trial", "val_accuracy", "val_loss", "seconds", "best"]
"""Columns of search.csv, before the hyperparameters."""


def describe_search(result: SearchResult, language: Language = ENGLISH) -> list[str]:
    """Sentences on the best trial, its uncertainty and its test accuracy."""
    best = result.best
    accuracy, photos = best.val_accuracy or 0.0, best.photos or 1
    standard_error = math.sqrt(max(accuracy * (1 - accuracy), 1 / photos) / photos)
    values = {
        "trial": best.trial,
        "share": language.percent(accuracy),
        "plain": language.percent(result.original.val_accuracy),
    }
    lines = [
        language(
            "{n} trials, {pruned} of them pruned. The best, trial {trial}, has an accuracy of {share} on {photos:,} "
            "validation images, the original recipe {plain}.",
            **values,
            n=len(result.trials),
            pruned=sum(trial.val_accuracy is None for trial in result.trials),
            photos=photos,
        ),
        language(
            "The standard error of an accuracy on this validation set is {error}, and the best of many trials is "
            "biased upwards. Only the test set, which no trial has used, gives an unbiased estimate.",
            error=language.percent(standard_error),
        ),
    ]
    if test := result.test:
        lines.append(
            language(
                "After the full training, the test accuracy is {share} on {n:,} images (95 % CI {range}).",
                share=language.percent(test.accuracy),
                n=test.n,
                range=language.interval(test.ci95),
            )
        )
    return lines


def write_search_page(result: SearchResult, out: Path, language: Language = ENGLISH) -> list[Path]:
    """Write search.html (in that language), search.json and search.csv into the folder `out`; return the files."""
    files = [out / name for name in ("search.html", "search.json", "search.csv")]
    io.write_json(files[1], result.to_dict() | {"answers": describe_search(result)})
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.settings))
    table = [{name: getattr(trial, name) for name in COLUMNS} | dict(trial.settings) for trial in result.trials]
    io.write_csv(files[2], table, [*COLUMNS, *names])
    context = {
        "name": out.resolve().name,
        "rows": sorted(result.trials, key=_rank),
        "names": names,
        "sentences": describe_search(result, language),
        "chart": Markup(_trials_chart(result.trials, language)),
        "run": str(result.run),
    }
    html.write_page(files[0], "search.html.j2", context, language)
    return files


def _rank(trial: Trial) -> tuple[bool, float, float]:
    """Best first, pruned trials last."""
    return trial.score is None, -(trial.score or 0.0), trial.val_loss or 0.0


def _trials_chart(trials: Sequence[Trial], language: Language) -> str:
    """Validation accuracy of each trial, and the best so far."""
    points = [(trial.trial, trial.val_accuracy) for trial in trials if trial.val_accuracy is not None]
    values = [value for at, value in points]
    heights = svg.nice_ticks(max(0, min(values) - 0.03), min(1, max(values) + 0.03))  # their labels in whole percents
    marks = svg.nice_ticks(0, max(1, max(trial for trial, _ in points)))
    axes = Axes((0, max(marks[-1], points[-1][0])), (heights[0], heights[-1]))
    best = [(trial, max(value for at, value in points if at <= trial)) for trial, _ in points]
    legend = svg.legend([("main", language("best so far")), (svg.circle(0, 0), language("a trial"))], LEFT)
    integer_ticks = [(mark, f"{mark:.0f}") for mark in marks if float(mark).is_integer()]
    parts = [
        legend,
        axes.grid(svg.percent_labels(heights, language)),
        axes.x_tick_labels(integer_ticks, language("trial")),
        axes.lines("main", best),
    ]
    parts += [svg.circle(axes.x(trial), axes.y(value)) for trial, value in points]
    description = language.join_names(
        language("{name}: {value}", name=trial, value=language.percent(value)) for trial, value in points
    )
    return svg.svg(
        "trials", (WIDTH, HEIGHT), language("Validation accuracy of the trials"), description, "".join(parts)
    )
