"""Accuracy against cost, for the page of a comparison; points are numbered as the rows of its table."""

import math
from collections.abc import Sequence

from fieldmark.core.i18n import Language
from fieldmark.report.charts import frame as svg
from fieldmark.report.charts.frame import HEIGHT, LEFT, WIDTH, Axes
from fieldmark.report.results import ComparisonRow


def accuracy_cost_chart(rows: Sequence[ComparisonRow], cost: str, title: str, unit: str, language: Language) -> str:
    """Accuracy with its 95 % CI over the field `cost` of the rows, on a log scale if the values span more than 1:8."""
    values = [float(getattr(row, cost)) for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > 8
    scale = math.log10 if wide else float
    marks = _log_ticks(values) if wide else svg.nice_ticks(min(values), max(values))
    heights = svg.nice_ticks(min(row.ci95[0] for row in rows), max(row.ci95[1] for row in rows))
    axes = Axes((scale(marks[0]), scale(marks[-1])), (heights[0], heights[-1]))
    parts = [f'<text class="name" x="{LEFT}" y="18">{title}</text>', axes.grid(svg.percent_labels(heights, language))]
    parts.append(axes.x_tick_labels(((scale(mark), f"{mark:.6g}") for mark in marks), unit))
    for number, (row, value) in enumerate(zip(rows, values, strict=True), 1):
        x, (low, high) = axes.x(scale(value)), row.ci95
        parts.append(f'<path class="whisker" d="M{x} {axes.y(low)}V{axes.y(high)}"/>')
        parts.append(svg.circle(x, axes.y(row.accuracy)))
        beside, anchor = (x - 8, "end") if x > 0.9 * WIDTH else (x + 8, "start")
        y = axes.y(row.accuracy) + 4
        parts.append(f'<text class="name" x="{beside}" y="{y}" text-anchor="{anchor}">{number}</text>')
    places = [(k, language.percent(row.accuracy), float(getattr(row, cost))) for k, row in enumerate(rows, 1)]
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
