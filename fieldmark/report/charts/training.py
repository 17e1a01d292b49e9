"""Loss and accuracy over the epochs of a training."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from fieldmark.core.i18n import ENGLISH, Language, finite_float, gettext_noop
from fieldmark.report.charts.frame import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Axes,
    circle,
    legend,
    nice_ticks,
    percent_labels,
    svg,
    text_width,
)

TITLES = {"loss": gettext_noop("Loss"), "accuracy": gettext_noop("Accuracy")}
PHASE_NAMES = {
    "1": gettext_noop("linear probe"),
    "2": gettext_noop("fine-tuning"),
    "3": gettext_noop("all layers"),
    "4": gettext_noop("head refit"),
}


def training_curves(history: Sequence[Mapping[str, Any]], best: int | None = None, language: Language = ENGLISH) -> str:
    """Loss and accuracy over the epochs, side by side, as a complete SVG file.

    `history` holds the rows of history.csv, as numbers or as text; blank values and those that are not finite are left
    out. `best` is the epoch whose weights were kept, by default that of the highest validation accuracy.
    """
    right = f'<g transform="translate({WIDTH} 0)">{_training_panel(history, "accuracy", best, language)}</g>'
    body = _training_panel(history, "loss", best, language) + right
    return svg("curves", (2 * WIDTH, HEIGHT), language("Training curves"), _describe_history(history, language), body)


def training_curve(
    history: Sequence[Mapping[str, Any]], kind: str, best: int | None = None, language: Language = ENGLISH
) -> str:
    """One panel of `training_curves`, "loss" or "accuracy", for a page."""
    title = language("{metric} by epoch", metric=language(TITLES[kind]))
    return svg(
        kind,
        (WIDTH, HEIGHT),
        title,
        _describe_history(history, language),
        _training_panel(history, kind, best, language),
    )


def _training_panel(history: Sequence[Mapping[str, Any]], kind: str, best: int | None, language: Language) -> str:
    train, validation = _points(history, f"train_{kind}"), _points(history, f"val_{kind}")
    epochs = [int(row["epoch"]) for row in history] or [1]
    first, last = min(epochs), max(epochs)
    finite_values = [value for _at, value in train + validation if value is not None]
    marks = nice_ticks(min(finite_values + [0.0] * (kind == "loss"), default=0.0), max(finite_values, default=1.0))
    axes = Axes((first, last), (marks[0], marks[-1]))
    title, step = language(TITLES[kind]), max(1, math.ceil((last - first) / 8))
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{title}</text>',
        axes.grid(percent_labels(marks, language) if kind == "accuracy" else [(mark, f"{mark:.6g}") for mark in marks]),
        axes.x_tick_labels([(epoch, str(epoch)) for epoch in range(first, last + 1, step)], language("epoch")),
        _unfreeze_markers(history, axes, *((axes.bottom - 8, -17) if kind == "accuracy" else (TOP + 14, 17)), language),
        *(axes.lines("other", points) for points in _comparable(history, train)),
        *(axes.lines("main", points) for points in _comparable(history, validation)),
    ]
    legend_items = [("other", language("train")), ("main", language("validation"))]
    kept_epoch = _best_epoch(history) if best is None else best
    kept_value = dict(validation).get(kept_epoch) if kept_epoch is not None else None
    if kept_epoch is not None and kept_value is not None:
        parts.append(circle(axes.x(kept_epoch), axes.y(kept_value)))
        legend_items.append((circle(0, 0), language("best: {n}", n=kept_epoch)))
    return "".join([*parts, legend(legend_items, LEFT + text_width(title) + 18)])


def _unfreeze_markers(
    history: Sequence[Mapping[str, Any]], axes: Axes, y: float, down: float, language: Language
) -> str:
    """Vertical lines between epochs of different phases, where more layers are unfrozen."""
    parts: list[str] = []
    for before, row in pairwise(history):
        if str(row.get("phase")) == str(before.get("phase")):
            continue
        x_pixel = axes.x(int(row["epoch"]) - 0.5)
        label = language(PHASE_NAMES.get(str(row.get("phase")), "fine-tuning"))
        label_offset, anchor = (6, "start") if x_pixel < 0.7 * WIDTH else (-6, "end")
        parts.append(f'<line class="mark" x1="{x_pixel}" x2="{x_pixel}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x_pixel + label_offset}" y="{y}" text-anchor="{anchor}">{label}</text>')
        y += down  # so that two labels never overlap
    return "".join(parts)


def _points(history: Sequence[Mapping[str, Any]], column: str) -> list[tuple[int, float | None]]:
    return [(int(row["epoch"]), finite_float(row.get(column))) for row in history]


def _comparable(
    history: Sequence[Mapping[str, Any]], points: list[tuple[int, float | None]]
) -> Iterator[list[tuple[int, float | None]]]:
    """The points that a line may connect.

    With a head refit, it and the linear probe have a head that is fitted exactly. The epochs between them have another
    one, so a line from one to the other would show a fall that is none.
    """
    phases = {int(row["epoch"]): str(row.get("phase")) for row in history}
    exact = {epoch for epoch, phase in phases.items() if phase in ("1", "4")} if "4" in phases.values() else set[int]()
    for is_exact in (True, False):
        yield [point for point in points if (point[0] in exact) == is_exact]


def _best_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    scored = [(value, -epoch) for epoch, value in _points(history, "val_accuracy") if value is not None]
    return -max(scored)[1] if scored else None


def _describe_history(history: Sequence[Mapping[str, Any]], language: Language) -> str:
    best = _best_epoch(history)
    if best is None:
        return language("No validation metrics were recorded.")
    accuracy = language.percent(dict(_points(history, "val_accuracy"))[best])
    description = language(
        "Validation accuracy is highest in epoch {best} of {n}, at {accuracy}.",
        best=best,
        n=len(history),
        accuracy=accuracy,
    )
    return description
