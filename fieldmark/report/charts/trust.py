"""Figures of a test -> charts of how far to trust them, as inline SVG and HTML: strings.

The confusion matrix, recall bars, confidence against truth, coverage against accuracy, ROC, accuracy against photos.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fieldmark.core.i18n import ENGLISH, Language
from fieldmark.report.charts.svg import (
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axes,
    circle,
    legend,
    percents,
    square,
    svg,
    ticks,
    width,
)

WHOLE = (0.0, 0.25, 0.5, 0.75, 1.0)


# ---- what it takes for what


def bar(share: float, low: float, high: float) -> str:
    """A share (0 to 1) as a bar with its interval as a whisker; the number stands beside it, screen readers skip it."""
    x, start, end = (round(100 * value, 1) for value in (share, low, high))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="value" width="{x}" height="10"/>'
        f'<rect class="whisker" x="{start}" y="4" width="{round(end - start, 1)}" height="2"/></svg>'
    )


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], _: Language = ENGLISH) -> str:
    """The confusion matrix (rows: true class): an HTML table of counts and row shares, above 12 classes a heat map."""
    if len(classes) > 12:
        return _heatmap(matrix, _)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    long = " long" if len(classes) > 7 or max(map(width, classes)) > 90 else ""  # long names stand upright
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts)
        cells = "".join(_cell(count, count / total if total else 0.0, true == at, _) for at, count in enumerate(counts))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="total">{total}</td></tr>')
    return (
        f'<table class="confusion{long}"><thead><tr><th scope="col">{_("true class")}</th>{head}'
        f'<th scope="col"><span>{_("photos")}</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _cell(count: int, share: float, right: bool, _: Language) -> str:
    # Mistakes are few per cell: the root lets one in a hundred still be seen.
    strength = share if right else math.sqrt(share)
    kind = "right" if right else "wrong" if count else "none"
    percent = f"<small>{_.percent(share, 0)}</small>" if count else ""
    return f'<td class="{kind}" style="--s:{strength:.3f}">{count}{percent}</td>'


def _heatmap(matrix: Sequence[Sequence[int]], _: Language) -> str:
    """A square for every cell, in five strengths with one path each, so that 1000 classes stay a small picture."""
    size, margin = 420, 22
    step = (size - margin) / len(matrix)
    paths: dict[tuple[bool, int], list[str]] = {}
    for true, counts in enumerate(matrix):
        total = sum(counts)
        for answer, count in enumerate(counts):
            if count:
                share = count / total
                level = math.ceil(5 * (share if true == answer else math.sqrt(share)))
                corner = f"M{margin + answer * step:.2f} {margin + true * step:.2f}"
                paths.setdefault((true == answer, level), []).append(f"{corner}h{step:.2f}v{step:.2f}h-{step:.2f}z")
    cells = "".join(
        f'<path class="cells{"" if right else " off"}" fill-opacity="{level / 5}" d="{"".join(squares)}"/>'
        for (right, level), squares in sorted(paths.items())
    )
    frame = f'<path class="grid" style="stroke-width:1" d="M{margin} {margin}H{size - 1}V{size - 1}H{margin}z"/>'
    words = (
        f'<text x="{margin}" y="14">{_("answered class")}</text>'
        f'<text transform="translate(14 {margin}) rotate(-90)" text-anchor="end">{_("true class")}</text>'
    )
    description = _(
        "{n} classes; blue on the diagonal is right, orange beside it is wrong, stronger is more often.", n=len(matrix)
    )
    return svg("matrix", (size, size), _("Confusion matrix"), description, frame + cells + words)


# ---- how far to trust it


def reliability(figures: Mapping[str, Any], _: Language = ENGLISH) -> str:
    """Confidence against the share that was right, before and after temperature scaling, over the photos of each bin.

    DeGroot & Fienberg 1983, "The comparison and evaluation of forecasters"; bins and error as of Guo et al. 2017.
    """
    before, after = figures["reliability"]["before"], figures["reliability"]["after"]
    axes, foot = Axes((0, 1), (0, 1), top=64, floor=274), 322
    most = max((row["n"] for row in after), default=1)
    parts = [f'<text class="name" x="{LEFT}" y="18">{_("Share that was right")}</text>', axes.grid(percents(WHOLE, _))]
    for row in after:
        at, high = axes.x(row["confidence"]), round(26 * row["n"] / most, 1)
        parts.append(f'<rect class="count" x="{at - 8}" y="{foot - high}" width="16" height="{high}"/>')
        parts.append(f'<text class="tiny" x="{at}" y="{foot - high - 3}" text-anchor="middle">{_few(row["n"])}</text>')
    parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
    parts.append(f'<text class="tiny" x="{LEFT - 6}" y="{foot - 2}" text-anchor="end">{_("photos")}</text>')
    parts.append(axes.below(percents(WHOLE, _), _("confidence"), foot))
    parts.append(axes.lines("mark", [(0, 0), (1, 1)]))
    for rows, line, mark, kind in ((before, "other", square, "odd"), (after, "main", circle, "full")):
        parts.append(axes.lines(line, [(row["confidence"], row["accuracy"]) for row in rows]))
        parts += [mark(axes.x(row["confidence"]), axes.y(row["accuracy"]), kind) for row in rows]
    told = {"before": _.percent(figures.get("ece_before")), "after": _.percent(figures.get("ece"))}
    parts.append(legend([("mark", _("as it should be"))], LEFT + 200))
    sides = [
        (square(0, 0, "odd"), _("before: ECE {error}", error=told["before"])),
        (circle(0, 0, "full"), _("after: ECE {error}", error=told["after"])),
    ]
    parts.append(legend(sides, LEFT, 40))
    description = _(
        "Share of right answers against confidence in {bins} bins. Expected calibration error {before} before and"
        " {after} after temperature scaling.",
        bins=len(after),
        **told,
    )
    return svg("reliability", (WIDTH, foot + 42), _("Reliability diagram"), description, "".join(parts))


def _few(n: int) -> str:
    """A count in four letters."""
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k"


def coverage(figures: Mapping[str, Any], _: Language = ENGLISH) -> str:
    """Accuracy of the photos that are answered, against their share; the chosen threshold is marked."""
    curve = [(row["coverage"], row["accuracy"]) for row in figures["coverage_curve"]]
    at, right = figures.get("coverage"), figures.get("accuracy_known")
    chosen = [(at, right)] if at is not None and right is not None else []
    lowest = min(accuracy for _at, accuracy in curve + chosen)
    marks = ticks(min(lowest, 0.95), 1.0)
    axes = Axes((0, 1), (marks[0], marks[-1]))
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{_("Accuracy of what it answers")}</text>',
        axes.grid(percents(marks, _)),
        axes.below(percents(WHOLE, _), _("photos answered")),
        axes.lines("main", curve),
    ]
    for share, accuracy in chosen:
        x, y = axes.x(share), axes.y(accuracy)
        side, anchor = (10, "start") if share < 0.4 else (-10, "end")
        least = figures.get("threshold")
        text = _("threshold") if least is None else _("threshold {threshold}", threshold=f"{least:.2f}")
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{y}" y2="{axes.floor}"/>{circle(x, y)}')
        parts.append(f'<text x="{x + side}" y="{axes.floor - 10}" text-anchor="{anchor}">{text}</text>')
    description = _(
        "At the chosen threshold {coverage} of the photos are answered, {accuracy} of them right.",
        coverage=_.percent(at),
        accuracy=_.percent(right),
    )
    return svg("coverage", (WIDTH, HEIGHT), _("Coverage and accuracy"), description, "".join(parts))


def roc(figures: Mapping[str, Any], _: Language = ENGLISH) -> str:
    """Share found against share of false alarms, (Fawcett 2006, "An introduction to ROC analysis")."""
    axes = Axes((0, 1), (0, 1), top=56, floor=312)
    curve = list(zip(figures["roc"]["fpr"], figures["roc"]["tpr"], strict=True))
    at = figures.get("at_threshold") or {}
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{_("Found against false alarms")}</text>',
        axes.grid(percents(WHOLE, _)),
        axes.below(percents(WHOLE, _), _("false alarms (1 - specificity)")),
        axes.lines("mark", [(0, 0), (1, 1)]),
        axes.lines("main", curve),
    ]
    told = []
    for point, mark, kind, text in (
        (figures, circle, "", _("the likelier class")),
        (at, square, "odd", _("from {threshold} on", threshold=_.percent(at.get("threshold")))),
    ):
        if point.get("sensitivity") is not None and point.get("specificity") is not None:
            parts.append(mark(axes.x(1 - point["specificity"]), axes.y(point["sensitivity"]), kind))
            told.append((mark(0, 0, kind), text))
    parts.append(legend(told, LEFT, 40))
    description = _(
        "The area below the curve is {area}; 0.5 is chance, 1 is perfect.", area=f"{figures['roc_auc']:.3f}"
    )
    return svg("roc", (WIDTH, 350), _("ROC curve"), description, "".join(parts))


# ---- would more photos help?


def growth(curve: Mapping[str, Any], _: Language = ENGLISH) -> str:
    """Accuracy against photos learnt from, with intervals, on an axis of doublings; hollow what the next may bring."""
    points = [(math.log2(row["photos"]), row) for row in curve["points"]]
    last, full = points[-1]
    bounds = [bound for _at, row in points for bound in row["ci95"]]
    marks = ticks(min(bounds), max(*bounds, curve["doubled"]))
    axes = Axes((points[0][0] - 0.25, last + 1.25), (marks[0], marks[-1]))
    ahead = (last + 1, curve["doubled"])
    labels = [(at, f"{row['photos']:,}") for at, row in points] + [(ahead[0], f"{2 * full['photos']:,}")]
    parts = [
        f'<text class="name" x="{LEFT}" y="18">{_("Accuracy")}</text>',
        axes.grid([mark for mark in percents(marks, _) if 0 <= mark[0] <= 1]),
        axes.below(labels, _("photos learnt from")),
    ]
    for at, row in points:
        x, (low, high) = axes.x(at), map(axes.y, row["ci95"])
        parts.append(f'<path class="whisker" d="M{x} {low}V{high}M{x - 5} {low}h10M{x - 5} {high}h10"/>')
    parts.append(axes.lines("main", [(at, row["accuracy"]) for at, row in points]))
    parts.append(axes.lines("other", [(last, full["accuracy"]), ahead]))
    parts += [circle(axes.x(at), axes.y(row["accuracy"]), "full") for at, row in points]
    parts.append(square(axes.x(ahead[0]), axes.y(ahead[1]), "odd"))
    told = [(circle(0, 0, "full"), _("measured")), (square(0, 0, "odd"), _("if it goes on so"))]
    parts.append(legend(told, LEFT + width(_("Accuracy")) + 24))
    description = _(
        "Accuracy {first} with {few} photos, {full} with {all}; {doubled} expected with twice as many.",
        first=_.percent(points[0][1]["accuracy"]),
        few=points[0][1]["photos"],
        full=_.percent(full["accuracy"]),
        all=full["photos"],
        doubled=_.percent(curve["doubled"]),
    )
    return svg("growth", (WIDTH, HEIGHT), _("Accuracy by the number of photos"), description, "".join(parts))
