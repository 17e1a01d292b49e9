"""Figures -> inline SVG and HTML, as strings: learning curves, confusion matrix, recall bars.

Nothing here needs a script, a font file or a request. Colours are CSS variables with a light and a dark value; blue
stands for right, orange for wrong, and no line is told apart by colour alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','PingFang SC','Microsoft YaHei',sans-serif"
LIGHT = "--paper:#fff;--ground:#f4f6f8;--ink:#1b1f24;--soft:#5a636e;--line:#dce1e6;--right:#0b62a4;--wrong:#b8500c"
DARK = "--paper:#15181b;--ground:#1e2226;--ink:#e8eaed;--soft:#a4adb7;--line:#363c43;--right:#6db3f2;--wrong:#f0964f"

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 38
TITLES = {"loss": "Loss", "accuracy": "Accuracy"}


def palette(selector: str) -> str:
    """CSS that gives `selector` the colours: light, on a screen dark where the reader asks for it."""
    return f"{selector}{{{LIGHT}}}@media screen and (prefers-color-scheme:dark){{{selector}{{{DARK}}}}}"


def curves(history: Sequence[Mapping[str, Any]], best: int | None = None) -> str:
    """Loss and accuracy side by side over the epochs: a complete SVG file, which can also stand inside a page.

    `history` holds the rows of history.csv, as numbers or as text; what is blank or not finite is left out. `best` is
    the epoch that was kept; None takes the one of the highest validation accuracy.
    """
    right = f'<g transform="translate({WIDTH} 0)">{_panel(history, "accuracy", best)}</g>'
    return _svg(2 * WIDTH, HEIGHT, "Learning curves", _describe(history), _panel(history, "loss", best) + right)


def curve(history: Sequence[Mapping[str, Any]], kind: str, best: int | None = None) -> str:
    """One panel of `curves`, "loss" or "accuracy": a page sets two side by side or, on a phone, one below the other."""
    return _svg(WIDTH, HEIGHT, f"{TITLES[kind]} over the epochs", _describe(history), _panel(history, kind, best))


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The confusion matrix (rows: true class): an HTML table of counts and row shares, above 12 classes a heat map."""
    if len(classes) > 12:
        return _heatmap(matrix)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    long = " long" if len(classes) > 7 or max(map(len, classes)) > 12 else ""  # long names stand upright
    rows = []
    for true, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts)
        cells = "".join(_cell(count, count / total if total else 0.0, true == at) for at, count in enumerate(counts))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="total">{total}</td></tr>')
    return (
        f'<table class="confusion{long}"><thead><tr><th scope="col">true class</th>{head}'
        f'<th scope="col"><span>photos</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def confused_pairs(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], most: int = 10
) -> list[tuple[str, str, int, float]]:
    """The commonest mistakes, most photos first: (true class, answered class, photos, share of the true class)."""
    pairs = [
        (classes[true], classes[answer], count, count / sum(counts))
        for true, counts in enumerate(matrix)
        for answer, count in enumerate(counts)
        if count and true != answer
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3]))[:most]


def bar(share: float, low: float, high: float) -> str:
    """A share (0 to 1) as a bar with its interval as a whisker; the number stands beside it, screen readers skip it."""
    x, start, end = (round(100 * value, 1) for value in (share, low, high))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="value" width="{x}" height="10"/>'
        f'<rect class="whisker" x="{start}" y="4" width="{round(end - start, 1)}" height="2"/></svg>'
    )


def _svg(width: int, height: int, title: str, description: str, body: str) -> str:
    name = title.lower().replace(" ", "-")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="{name} {name}-text"><title id="{name}">{title}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc><style>{palette(".chart")}'
        f".chart text{{font:13px {FONTS};fill:var(--soft)}}.chart .name{{font-weight:600;fill:var(--ink)}}"
        ".chart .grid{stroke:var(--line)}.chart .mark{stroke:var(--soft);stroke-dasharray:2 3}"
        ".chart path{fill:none;stroke-width:2;stroke-linejoin:round}.chart .validation{stroke:var(--right)}"
        ".chart .train{stroke:var(--wrong);stroke-dasharray:5 3}.chart circle{stroke-width:2;fill:var(--paper)}"
        ".chart .cells{stroke:none;fill:var(--right)}.chart .cells.off{fill:var(--wrong)}</style>"
        f'<rect width="{width}" height="{height}" style="fill:var(--paper)"/>{body}</svg>'
    )


def _panel(history: Sequence[Mapping[str, Any]], kind: str, best: int | None) -> str:
    train, validation = _points(history, f"train_{kind}"), _points(history, f"val_{kind}")
    epochs = [int(row["epoch"]) for row in history] or [1]
    first, last = min(epochs), max(epochs)
    seen = [value for _, value in train + validation if value is not None]
    ticks = _ticks(min(seen + [0.0] * (kind == "loss"), default=0.0), max(seen, default=1.0))

    def x(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<text class="name" x="{LEFT}" y="18">{TITLES[kind]}</text>']
    for tick in ticks:
        label = f"{100 * tick:.6g} %" if kind == "accuracy" else f"{tick:.6g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{label}</text>')
    for epoch in range(first, last + 1, max(1, math.ceil((last - first) / 8))):
        parts.append(f'<text x="{x(epoch)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">epoch</text>')
    label, down = (HEIGHT - BOTTOM - 8, -17) if kind == "accuracy" else (TOP + 14, 17)
    parts.append(_unfrozen(history, x, label, down))
    for name, points in (("train", train), ("validation", validation)):
        parts += [f'<path class="{name}" d="{line}"/>' for line in _lines(points, x, y)]
    parts.append(_legend(122, "train"))
    parts.append(_legend(190, "validation"))
    kept = _best(history) if best is None else best
    at = dict(validation).get(kept) if kept is not None else None
    if kept is not None and at is not None:
        parts.append(f'<circle class="validation" cx="{x(kept)}" cy="{y(at)}" r="5"/>')
        parts.append('<circle class="validation" cx="300" cy="14" r="5"/>')
        parts.append(f'<text x="310" y="18">epoch {kept}, best</text>')
    return "".join(parts)


def _legend(at: int, name: str) -> str:
    return f'<path class="{name}" d="M{at} 14h22"/><text x="{at + 28}" y="18">{name}</text>'


def _unfrozen(history: Sequence[Mapping[str, Any]], x: Callable[[float], float], y: float, down: float) -> str:
    """The moments at which more of the backbone began to train: between two epochs of different phases."""
    parts: list[str] = []
    for before, row in pairwise(history):
        if str(row.get("phase")) == str(before.get("phase")):
            continue
        at, label = x(int(row["epoch"]) - 0.5), "all unfrozen" if str(row.get("phase")) == "3" else "unfrozen"
        side, anchor = (6, "start") if at < 0.7 * WIDTH else (-6, "end")
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at + side}" y="{y}" text-anchor="{anchor}">{label}</text>')
        y += down  # so that two labels never stand in one another
    return "".join(parts)


def _points(history: Sequence[Mapping[str, Any]], column: str) -> list[tuple[int, float | None]]:
    return [(int(row["epoch"]), number(row.get(column))) for row in history]


def number(value: Any) -> float | None:
    """The finite number that a cell of a CSV or JSON file holds, or None."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def _lines(
    points: list[tuple[int, float | None]], x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    """Path data for each unbroken stretch; a point that stands alone becomes a short dash, so that it can be seen."""
    stretches: list[list[str]] = [[]]
    for epoch, value in points:
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{x(epoch)} {y(value)}")
    return [f"M{'L'.join(stretch)}{'m-4 0h8' if len(stretch) == 1 else ''}" for stretch in stretches if stretch]


def _best(history: Sequence[Mapping[str, Any]]) -> int | None:
    scored = [(value, -epoch) for epoch, value in _points(history, "val_accuracy") if value is not None]
    return -max(scored)[1] if scored else None


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that span low to high."""
    least = 1e-6 * max(abs(low), abs(high), 1e-3)  # below that it is one value, which gets a scale of its own size
    spread = high - low if high - low > least else max(abs(high), 1e-3)
    power = 10 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= spread / 4.5)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 10) for at in range(start, max(stop, start + 1) + 1)]


def _describe(history: Sequence[Mapping[str, Any]]) -> str:
    best = _best(history)
    if best is None:
        return "No validation figures were recorded."
    accuracy = dict(_points(history, "val_accuracy"))[best]
    return f"{len(history)} epochs; validation accuracy is highest in epoch {best}, at {100 * (accuracy or 0):.1f} %."


def _cell(count: int, share: float, right: bool) -> str:
    # Mistakes are few per cell: the root lets one in a hundred still be seen.
    strength = share if right else math.sqrt(share)
    kind = "right" if right else "wrong" if count else "none"
    percent = f"<small>{100 * share:.0f} %</small>" if count else ""
    return f'<td class="{kind}" style="--s:{strength:.3f}">{count}{percent}</td>'


def _heatmap(matrix: Sequence[Sequence[int]]) -> str:
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
        f'<text x="{margin}" y="14">answered class</text>'
        f'<text transform="translate(14 {margin}) rotate(-90)" text-anchor="end">true class</text>'
    )
    description = (
        f"{len(matrix)} classes; blue on the diagonal is right, orange beside it is wrong, stronger is more often."
    )
    return _svg(size, size, "Confusion matrix", description, frame + cells + words)
