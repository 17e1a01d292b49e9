"""Figures of a test -> charts of how far to trust them, as inline SVG and HTML: strings.

The confusion matrix, recall bars, confidence against truth, coverage against accuracy, ROC, accuracy against photos.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fieldmark.core.i18n import ENGLISH, Language, format_number
from fieldmark.report.charts.frame import (
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axes,
    circle,
    legend,
    nice_ticks,
    percent_labels,
    square,
    svg,
    text_width,
)

UNIT_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


# ---- what it takes for what


def interval_bar(share: float, low: float, high: float) -> str:
    """A share (0 to 1) as a bar with its interval as a whisker; the number stands beside it, screen readers skip it."""
    x, start, end = (round(100 * value, 1) for value in (share, low, high))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="value" width="{x}" height="10"/>'
        f'<rect class="whisker" x="{start}" y="4" width="{round(end - start, 1)}" height="2"/></svg>'
    )


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], language: Language = ENGLISH) -> str:
    """The confusion matrix (rows: true class): an HTML table of counts and row shares, above 12 classes a heat map."""
    if len(classes) > 12:
        return _heatmap(matrix, language)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    long = " long" if len(classes) > 7 or max(map(text_width, classes)) > 90 else ""  # long names stand upright
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts)
        cells = "".join(
            _cell(count, count / total if total else 0.0, true == at, language) for at, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="total">{total}</td></tr>')
    return (
        f'<table class="confusion{long}"><thead><tr><th scope="col">{language("true class")}</th>{head}'
        f'<th scope="col"><span>{language("images")}</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _cell(count: int, share: float, is_correct: bool, language: Language) -> str:
    # Mistakes are few per cell: the root lets one in a hundred still be seen.
    strength = share if is_correct else math.sqrt(share)
    kind = "right" if is_correct else "wrong" if count else "none"
    percent = f"<small>{language.percent(share, 0)}</small>" if count else ""
    return f'<td class="{kind}" style="--s:{strength:.3f}">{count}{percent}</td>'


def _heatmap(matrix: Sequence[Sequence[int]], language: Language) -> str:
    """A square for every cell, in five strengths with one path each, so that 1000 classes stay a small picture."""
    size, margin = 420, 22
    step = (size - margin) / len(matrix)
    paths: dict[tuple[bool, int], list[str]] = {}
    for true, counts in enumerate(matrix):
        total = sum(counts)
        for predicted, count in enumerate(counts):
            if count:
                share = count / total
                level = math.ceil(5 * (share if true == predicted else math.sqrt(share)))
                corner = f"M{margin + predicted * step:.2f} {margin + true * step:.2f}"
                paths.setdefault((true == predicted, level), []).append(f"{corner}h{step:.2f}v{step:.2f}h-{step:.2f}z")
    cells = "".join(
        f'<path class="cells{"" if right else " off"}" fill-opacity="{level / 5}" d="{"".join(squares)}"/>'
        for (right, level), squares in sorted(paths.items())
    )
    frame = f'<path class="grid" style="stroke-width:1" d="M{margin} {margin}H{size - 1}V{size - 1}H{margin}z"/>'
    axis_titles = (
        f'<text x="{margin}" y="14">{language("predicted class")}</text>'
        f'<text transform="translate(14 {margin}) rotate(-90)" text-anchor="end">{language("true class")}</text>'
    )
    description = language(
        "{n} classes; blue, on the diagonal, is correct; orange is incorrect; stronger colours are more frequent.",
        n=len(matrix),
    )
    return svg("matrix", (size, size), language("Confusion matrix"), description, frame + cells + axis_titles)


# ---- how far to trust it


def reliability_diagram(split_metrics: Mapping[str, Any], language: Language = ENGLISH) -> str:
    """Confidence against the share that was right, before and after temperature scaling, over the photos of each bin.

    DeGroot & Fienberg 1983, "The comparison and evaluation of forecasters"; bins and error as of Guo et al. 2017.
    """
    before, after = split_metrics["reliability"]["before"], split_metrics["reliability"]["after"]
    axes, foot = Axes((0, 1), (0, 1), top=64, bottom=274), 322
    most = max((row["n"] for row in after), default=1)
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{language("Accuracy")}</text>',
        axes.grid(percent_labels(UNIT_TICKS, language)),
    ]
    for row in after:
        at, high = axes.x(row["confidence"]), round(26 * row["n"] / most, 1)
        parts.append(f'<rect class="count" x="{at - 8}" y="{foot - high}" width="16" height="{high}"/>')
        parts.append(
            f'<text class="tiny" x="{at}" y="{foot - high - 3}" text-anchor="middle">{_short_count(row["n"])}</text>'
        )
    parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
    parts.append(f'<text class="tiny" x="{LEFT - 6}" y="{foot - 2}" text-anchor="end">{language("images")}</text>')
    parts.append(axes.x_tick_labels(percent_labels(UNIT_TICKS, language), language("confidence"), foot))
    parts.append(axes.lines("mark", [(0, 0), (1, 1)]))
    is_scaled = is_temperature_scaled(split_metrics)
    curves = ((before, "other", square, "odd"),) if is_scaled else ()
    for rows, line, mark, kind in (*curves, (after, "main", circle, "full")):
        parts.append(axes.lines(line, [(row["confidence"], row["accuracy"]) for row in rows]))
        parts += [mark(axes.x(row["confidence"]), axes.y(row["accuracy"]), kind) for row in rows]
    ece_text = {
        "before": language.percent(split_metrics.get("ece_before")),
        "after": language.percent(split_metrics.get("ece")),
    }
    parts.append(legend([("mark", language("perfect calibration"))], LEFT + 200))
    legend_items = [
        (square(0, 0, "odd"), language("before: ECE {error}", error=ece_text["before"])),
        (circle(0, 0, "full"), language("after: ECE {error}", error=ece_text["after"])),
    ]
    if not is_scaled:
        legend_items = [(circle(0, 0, "full"), language("ECE {error}", error=ece_text["after"]))]
    parts.append(legend(legend_items, LEFT, 40))
    description = language(
        "Accuracy by confidence in {bins} bins. Expected calibration error {before} before and {after} after"
        " temperature scaling.",
        bins=len(after),
        **ece_text,
    )
    return svg("reliability", (WIDTH, foot + 42), language("Reliability diagram"), description, "".join(parts))


def is_temperature_scaled(split_metrics: Mapping[str, Any]) -> bool:
    """Whether temperature scaling changed the confidences by more than rounding; a temperature of 1 does not."""
    before, after = split_metrics["reliability"]["before"], split_metrics["reliability"]["after"]
    if len(before) != len(after):
        return True
    pairs = [(one[name], other[name]) for one, other in zip(before, after, strict=True) for name in one]
    return not all(math.isclose(one, other, abs_tol=1e-6) for one, other in pairs)


def _short_count(n: int) -> str:
    """A count in four letters."""
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k"


def coverage_chart(split_metrics: Mapping[str, Any], language: Language = ENGLISH) -> str:
    """Accuracy of the photos that are answered, against their share; the chosen threshold is marked."""
    curve = [(row["coverage"], row["accuracy"]) for row in split_metrics["coverage_curve"]]
    chosen_coverage, selective_accuracy = split_metrics.get("coverage"), split_metrics.get("accuracy_known")
    chosen = (
        [(chosen_coverage, selective_accuracy)]
        if chosen_coverage is not None and selective_accuracy is not None and split_metrics.get("threshold") != 0
        else []
    )
    lowest = min(accuracy for _at, accuracy in curve + chosen)
    marks = nice_ticks(min(lowest, 0.95), 1.0)
    axes = Axes((0, 1), (marks[0], marks[-1]))
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{language("Selective accuracy")}</text>',
        axes.grid(percent_labels(marks, language)),
        axes.x_tick_labels(percent_labels(UNIT_TICKS, language), language("coverage")),
        axes.lines("main", curve),
    ]
    for share, accuracy in chosen:
        x, y = axes.x(share), axes.y(accuracy)
        label_offset, anchor = (10, "start") if share < 0.4 else (-10, "end")
        threshold = split_metrics.get("threshold")
        text = (
            language("threshold")
            if threshold is None
            else language("threshold {threshold}", threshold=f"{threshold:.2f}")
        )
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{y}" y2="{axes.bottom}"/>{circle(x, y)}')
        parts.append(f'<text x="{x + label_offset}" y="{axes.bottom - 10}" text-anchor="{anchor}">{text}</text>')
    description = language("No image is rejected as unknown.")
    if split_metrics.get("threshold") != 0:
        description = language(
            "At the chosen threshold the coverage is {coverage} and the selective accuracy {accuracy}.",
            coverage=language.percent(chosen_coverage),
            accuracy=language.percent(selective_accuracy),
        )
    return svg("coverage", (WIDTH, HEIGHT), language("Selective accuracy by coverage"), description, "".join(parts))


def roc_chart(split_metrics: Mapping[str, Any], language: Language = ENGLISH) -> str:
    """Share found against share of false alarms, (Fawcett 2006, "An introduction to ROC analysis")."""
    axes = Axes((0, 1), (0, 1), top=56, bottom=312)
    curve = list(zip(split_metrics["roc"]["fpr"], split_metrics["roc"]["tpr"], strict=True))
    at_threshold = split_metrics.get("at_threshold") or {}
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{language("ROC curve")}</text>',
        axes.grid(percent_labels(UNIT_TICKS, language)),
        axes.x_tick_labels(percent_labels(UNIT_TICKS, language), language("false positive rate (1 - specificity)")),
        axes.lines("mark", [(0, 0), (1, 1)]),
        axes.lines("main", curve),
    ]
    legend_items = []
    for point, mark, kind, text in (
        (split_metrics, circle, "", language("threshold {threshold}", threshold=0.5)),
        (
            at_threshold,
            square,
            "odd",
            language("threshold {threshold}", threshold=format_number(at_threshold.get("threshold"))),
        ),
    ):
        if point.get("sensitivity") is not None and point.get("specificity") is not None:
            parts.append(mark(axes.x(1 - point["specificity"]), axes.y(point["sensitivity"]), kind))
            legend_items.append((mark(0, 0, kind), text))
    parts.append(legend(legend_items, LEFT, 40))
    description = language(
        "The area under the curve is {area}; 0.5 is chance, 1 is perfect.", area=f"{split_metrics['roc_auc']:.3f}"
    )
    return svg("roc", (WIDTH, 350), language("ROC curve"), description, "".join(parts))


# ---- would more photos help?


def data_scaling_chart(curve: Mapping[str, Any], language: Language = ENGLISH) -> str:
    """Accuracy against photos learnt from, with intervals, on an axis of doublings; hollow what the next may bring."""
    points = [(math.log2(row["photos"]), row) for row in curve["points"]]
    last, full = points[-1]
    bounds = [bound for _at, row in points for bound in row["ci95"]]
    marks = nice_ticks(min(bounds), max(*bounds, curve["doubled"]))
    axes = Axes((points[0][0] - 0.25, last + 1.25), (marks[0], marks[-1]))
    ahead = (last + 1, curve["doubled"])
    labels = [(x_value, f"{row['photos']:,}") for x_value, row in points] + [(ahead[0], f"{2 * full['photos']:,}")]
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{language("Accuracy")}</text>',
        axes.grid([mark for mark in percent_labels(marks, language) if 0 <= mark[0] <= 1]),
        axes.x_tick_labels(labels, language("training images")),
    ]
    for at, row in points:
        x, (low, high) = axes.x(at), map(axes.y, row["ci95"])
        parts.append(f'<path class="whisker" d="M{x} {low}V{high}M{x - 5} {low}h10M{x - 5} {high}h10"/>')
    parts.append(axes.lines("main", [(at, row["accuracy"]) for at, row in points]))
    parts.append(axes.lines("other", [(last, full["accuracy"]), ahead]))
    parts += [circle(axes.x(at), axes.y(row["accuracy"]), "full") for at, row in points]
    parts.append(square(axes.x(ahead[0]), axes.y(ahead[1]), "odd"))
    legend_items = [(circle(0, 0, "full"), language("measured")), (square(0, 0, "odd"), language("extrapolated"))]
    parts.append(legend(legend_items, LEFT + text_width(language("Accuracy")) + 24))
    description = language(
        "Accuracy {first} with {few} images, {full} with {all}; {doubled} extrapolated to twice as many.",
        first=language.percent(points[0][1]["accuracy"]),
        few=points[0][1]["photos"],
        full=language.percent(full["accuracy"]),
        all=full["photos"],
        doubled=language.percent(curve["doubled"]),
    )
    return svg(
        "growth", (WIDTH, HEIGHT), language("Accuracy by number of training images"), description, "".join(parts)
    )
