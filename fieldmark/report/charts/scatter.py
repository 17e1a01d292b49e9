"""Rows of a comparison -> accuracy against what it costs, as inline SVG; a point wears the number of its row."""

import math
from collections.abc import Sequence
from typing import Any

from fieldmark.core.i18n import Language
from fieldmark.report.charts import svg
from fieldmark.report.charts.svg import HEIGHT, LEFT, WIDTH, Axes


def accuracy_cost_chart(rows: Sequence[dict[str, Any]], cost: str, title: str, unit: str, language: Language) -> str:
    """Accuracy with its 95 % interval over `rows[...][cost]`, on a logarithmic axis where that spans over 1:8."""
    values = [float(row[cost]) for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > 8
    scale = math.log10 if wide else float
    marks = _log_ticks(values) if wide else svg.nice_ticks(min(values), max(values))
    heights = svg.nice_ticks(min(row["ci95"][0] for row in rows), max(row["ci95"][1] for row in rows))
    axes = Axes((scale(marks[0]), scale(marks[-1])), (heights[0], heights[-1]))
    parts = [f'<text class="name" x="{LEFT}" y="18">{title}</text>', axes.grid(svg.percent_labels(heights, language))]
    parts.append(axes.x_tick_labels(((scale(mark), f"{mark:.6g}") for mark in marks), unit))
    for number, (row, value) in enumerate(zip(rows, values, strict=True), 1):
        x, (low, high) = axes.x(scale(value)), row["ci95"]
        parts.append(f'<path class="whisker" d="M{x} {axes.y(low)}V{axes.y(high)}"/>')
        parts.append(svg.circle(x, axes.y(row["accuracy"])))
        beside, anchor = (x - 8, "end") if x > 0.9 * WIDTH else (x + 8, "start")
        y = axes.y(row["accuracy"]) + 4
        parts.append(f'<text class="name" x="{beside}" y="{y}" text-anchor="{anchor}">{number}</text>')
    places = [(k, language.percent(row["accuracy"]), float(row[cost])) for k, row in enumerate(rows, 1)]
    description = language.join_names(
        language("{k}: {share} at {value:.4g} {unit}", k=k, share=a, value=v, unit=unit) for k, a, v in places
    )
    return svg.svg(f"over-{cost}", (WIDTH, HEIGHT), title, description, "".join(parts))


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, ... around the values."""
    marks = [factor * 10.0**power for power in range(-3, 12) for factor in (1, 2, 5)]
    low = max((mark for mark in marks if mark <= min(values)), default=marks[0])
    high = min((mark for mark in marks if mark >= max(values)), default=marks[-1])
    return [mark for mark in marks if low <= mark <= high]
