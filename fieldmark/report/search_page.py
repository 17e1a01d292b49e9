"""Trials of a search and the run of the best one -> a page, a table, what --json prints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fieldmark.core import io
from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report import html
from fieldmark.report.charts import svg
from fieldmark.report.charts.svg import HEIGHT, LEFT, WIDTH, Axes

TrialRow = dict[str, Any]


def summarize_search(rows: Sequence[TrialRow], run: Path, test: TrialRow | None) -> TrialRow:
    """`rows`, and `best`: the best trial, the metrics of the original recipe, and the test metrics of the final run."""
    best = next(row for row in rows if row["best"])
    first = next(row for row in rows if not row["settings"])
    best_summary = {name: best[name] for name in ("trial", "settings", "val_accuracy", "val_loss", "photos")}
    best_summary |= {"as_it_stands": {name: first[name] for name in ("val_accuracy", "val_loss")}}
    return {"rows": list(rows), "best": best_summary | {"run": str(run), "test": test}}


def describe_search(summary: TrialRow, language: Language = ENGLISH) -> list[str]:
    """What came of it."""
    best, n = summary["best"], len(summary["rows"])
    pruned = sum(row["val_accuracy"] is None for row in summary["rows"])
    share, photos = best["val_accuracy"], best["photos"]
    standard_error = math.sqrt(max(share * (1 - share), 1 / photos) / photos)
    default_accuracy = language.percent(best["as_it_stands"]["val_accuracy"])
    values = {"trial": best["trial"], "share": language.percent(share), "plain": default_accuracy}
    lines = [
        language(
            "{n} trials, {pruned} of them pruned. The best, trial {trial}, has an accuracy of {share} on {photos:,} "
            "validation images, the original recipe {plain}.",
            **values,
            n=n,
            pruned=pruned,
            photos=photos,
        ),
        language(
            "The standard error of an accuracy on this validation set is {error}, and the best of many trials is "
            "biased upwards. Only the test set, which no trial has used, gives an unbiased estimate.",
            error=language.percent(standard_error),
        ),
    ]
    if (test := best["test"]) and test.get("accuracy") is not None:
        test_values = {
            "share": language.percent(test["accuracy"]),
            "n": test["n"],
            "range": language.interval(test["ci95"]),
        }
        lines.append(
            language(
                "After the full training, the test accuracy is {share} on {n:,} images (95 % CI {range}).",
                **test_values,
            )
        )
    return lines


def write_search_page(summary: TrialRow, out: Path, language: Language = ENGLISH) -> list[Path]:
    """search.html (in that language), search.json, search.csv in the folder `out`. -> the files."""
    rows = summary["rows"]
    io.write_json(out / "search.json", summary | {"answers": describe_search(summary)})
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    columns = ["trial", "val_accuracy", "val_loss", "seconds", "best"]
    table = [{name: row[name] for name in columns} | row["settings"] for row in rows]
    io.write_csv(out / "search.csv", table, [*columns, *names])
    ranked = sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0), row["val_loss"]))
    context = {
        "name": out.resolve().name,
        "rows": ranked,
        "names": names,
        "answers": describe_search(summary, language),
    }
    context |= {"chart": Markup(_trials_chart(rows, language)), "run": summary["best"]["run"]}
    (out / "search.html").write_text(
        html.render("search.html.j2", context, language), encoding="utf-8", errors="replace"
    )
    return [out / name for name in ("search.html", "search.json", "search.csv")]


def _trials_chart(rows: Sequence[TrialRow], language: Language) -> str:
    """Validation accuracy of each trial, and the best so far."""
    points = [(row["trial"], row["val_accuracy"]) for row in rows if row["val_accuracy"] is not None]
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
