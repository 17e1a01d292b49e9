"""Training history -> its curves as inline SVG, a string; and the frame in which all charts are drawn.

Nothing here needs a script, a font file or a request. Colours are CSS variables with a light and a dark value; blue
stands for right, orange for wrong, and no line is told apart by colour alone.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from fieldmark.core.i18n import ENGLISH, Language, finite_float, gettext_noop

FONTS = (
    "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','PingFang SC','Microsoft YaHei','Noto Sans CJK SC',"
    "'Noto Sans SC',sans-serif"
)
LIGHT = "--paper:#fff;--ground:#f4f6f8;--ink:#1b1f24;--soft:#5a636e;--line:#dce1e6;--right:#0b62a4;--wrong:#b8500c"
DARK = "--paper:#15181b;--ground:#1e2226;--ink:#e8eaed;--soft:#a4adb7;--line:#363c43;--right:#6db3f2;--wrong:#f0964f"

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 38
TITLES = {"loss": gettext_noop("Loss"), "accuracy": gettext_noop("Accuracy")}
STYLE = (
    f".chart text{{font:13px {FONTS};fill:var(--soft)}}.chart .name{{font-weight:600;fill:var(--ink)}}"
    ".chart .tiny{font-size:10px}.chart .grid{stroke:var(--line)}"
    ".chart path{fill:none;stroke-width:2;stroke-linejoin:round}.chart .main{stroke:var(--right)}"
    ".chart .other{stroke:var(--wrong);stroke-dasharray:5 3}"
    ".chart .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}"
    ".chart .point{stroke:var(--right);stroke-width:2;fill:var(--paper)}.chart .count{fill:var(--right);opacity:.35}"
    ".chart .point.full{fill:var(--right)}.chart .point.odd{stroke:var(--wrong)}"
    ".chart .whisker{stroke:var(--ink);stroke-width:1}"
    ".chart .cells{stroke:none;fill:var(--right)}.chart .cells.off{fill:var(--wrong)}"
)


def palette(selector: str) -> str:
    """CSS that gives `selector` the colours: light, on a screen dark where the reader asks for it."""
    return f"{selector}{{{LIGHT}}}@media screen and (prefers-color-scheme:dark){{{selector}{{{DARK}}}}}"


# ---- the frame of a chart


@dataclass(frozen=True)
class Axes:
    """Where values lie in a panel: `across` and `up` are those at its edges, `top` and `floor` the edges' pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def grid(self, up: Iterable[tuple[float, str]]) -> str:
        """A line and its label at each of these heights."""
        return "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(value)}" y2="{self.y(value)}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(value) + 4}" text-anchor="end">{label}</text>'
            for value, label in up
        )

    def x_tick_labels(self, across: Iterable[tuple[float, str]], name: str, floor: float | None = None) -> str:
        """Labels below the panel and what they count."""
        floor = self.bottom if floor is None else floor
        places = [(min(self.x(value), WIDTH - text_width(label) / 2 - 3), label) for value, label in across]
        labels = "".join(f'<text x="{x}" y="{floor + 17}" text-anchor="middle">{label}</text>' for x, label in places)
        middle = (LEFT + WIDTH - RIGHT) / 2
        return f'{labels}<text x="{middle}" y="{floor + 33}" text-anchor="middle">{escape(name)}</text>'

    def lines(self, kind: str, points: Iterable[tuple[float, float | None]]) -> str:
        """A path for each unbroken stretch; a point that stands alone becomes a short dash, so that it can be seen."""
        stretches: list[list[str]] = [[]]
        for x_value, value in points:
            if value is None:
                stretches.append([])
            else:
                stretches[-1].append(f"{self.x(x_value)} {self.y(value)}")
        return "".join(
            f'<path class="{kind}" d="M{"L".join(stretch)}{"m-4 0h8" if len(stretch) == 1 else ""}"/>'
            for stretch in stretches
            if stretch
        )


def circle(x: float, y: float, kind: str = "") -> str:
    return f'<circle class="point {kind}" cx="{x}" cy="{y}" r="5"/>'


def square(x: float, y: float, kind: str = "") -> str:
    return f'<rect class="point {kind}" x="{x - 4.5}" y="{y - 4.5}" width="9" height="9"/>'


def legend(items: Iterable[tuple[str, str]], x_start: float, y: float = 18) -> str:
    """What lines and points mean, one after the other: ("main", text) draws a line of that kind, ("<...>", text) it."""
    parts: list[str] = []
    for kind, text in items:
        is_marker = kind.startswith("<")
        parts.append(f'<g transform="translate({x_start + 6} {y - 4})">{kind}</g>' if is_marker else "")
        parts.append("" if is_marker else f'<path class="{kind}" d="M{x_start} {y - 4}h22"/>')
        x_start += 16 if is_marker else 28
        parts.append(f'<text x="{x_start}" y="{y}">{escape(text)}</text>')
        x_start += text_width(text) + 14
    return "".join(parts)


def text_width(text: str) -> int:
    """About how many pixels a text takes that is drawn 13 high."""
    return sum(13 if unicodedata.east_asian_width(letter) in "WF" else 7 for letter in text)


def svg(name: str, size: tuple[int, int], title: str, description: str, body: str) -> str:
    """A complete SVG file, which can also stand inside a page, where `name` is its own."""
    wide, high = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {wide} {high}" width="{wide}" '
        f'height="{high}" role="img" aria-labelledby="{name} {name}-text"><title id="{name}">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc><style>{palette(".chart")}{STYLE}</style>'
        f'<rect width="{wide}" height="{high}" style="fill:var(--paper)"/>{body}</svg>'
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that span low to high."""
    min_span = 1e-6 * max(abs(low), abs(high), 1e-3)  # below that it is one value, which gets a scale of its own size
    spread = high - low if high - low > min_span else max(abs(high), 1e-3)
    power = 10 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= spread / 4.5)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 10) for at in range(start, max(stop, start + 1) + 1)]


def percent_labels(values: Iterable[float], language: Language) -> list[tuple[float, str]]:
    """Shares with their labels, as far as the figures go."""
    return [(value, language("{number} %", number=f"{100 * value:.6g}")) for value in values]


# ---- how it learnt


def training_curves(history: Sequence[Mapping[str, Any]], best: int | None = None, language: Language = ENGLISH) -> str:
    """Loss and accuracy side by side over the epochs: a complete SVG file, which can also stand inside a page.

    `history` holds the rows of history.csv, as numbers or as text; what is blank or not finite is left out. `best` is
    the epoch that was kept; None takes the one of the highest validation accuracy.
    """
    right = f'<g transform="translate({WIDTH} 0)">{_training_panel(history, "accuracy", best, language)}</g>'
    body = _training_panel(history, "loss", best, language) + right
    return svg("curves", (2 * WIDTH, HEIGHT), language("Training curves"), _describe_history(history, language), body)


def training_curve(
    history: Sequence[Mapping[str, Any]], kind: str, best: int | None = None, language: Language = ENGLISH
) -> str:
    """One panel of `curves`, "loss" or "accuracy": a page sets two side by side or, on a phone, one below the other."""
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
        axes.lines("other", train),
        axes.lines("main", validation),
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
    """The moments at which more of the backbone began to train: between two epochs of different phases."""
    parts: list[str] = []
    for before, row in pairwise(history):
        if str(row.get("phase")) == str(before.get("phase")):
            continue
        x_pixel = axes.x(int(row["epoch"]) - 0.5)
        label = language("all layers") if str(row.get("phase")) == "3" else language("fine-tuning")
        label_offset, anchor = (6, "start") if x_pixel < 0.7 * WIDTH else (-6, "end")
        parts.append(f'<line class="mark" x1="{x_pixel}" x2="{x_pixel}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x_pixel + label_offset}" y="{y}" text-anchor="{anchor}">{label}</text>')
        y += down  # so that two labels never stand in one another
    return "".join(parts)


def _points(history: Sequence[Mapping[str, Any]], column: str) -> list[tuple[int, float | None]]:
    return [(int(row["epoch"]), finite_float(row.get(column))) for row in history]


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
