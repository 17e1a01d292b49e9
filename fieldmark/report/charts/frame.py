"""Axes, legends and colours of all charts, which are inline SVG.

Charts need no script, font file or request. Colours are CSS variables with a light and a dark value; blue means
correct, orange incorrect, and no two lines differ by colour alone.
"""

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from fieldmark.core.i18n import Language

FONTS = (
    "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','PingFang SC','Microsoft YaHei','Noto Sans CJK SC',"
    "'Noto Sans SC',sans-serif"
)
LIGHT = "--paper:#fff;--ground:#f4f6f8;--ink:#1b1f24;--soft:#5a636e;--line:#dce1e6;--right:#0b62a4;--wrong:#b8500c"
DARK = "--paper:#15181b;--ground:#1e2226;--ink:#e8eaed;--soft:#a4adb7;--line:#363c43;--right:#6db3f2;--wrong:#f0964f"

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 38
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
    """CSS variables for `selector`: light colours, dark ones on a screen in dark mode."""
    return f"{selector}{{{LIGHT}}}@media screen and (prefers-color-scheme:dark){{{selector}{{{DARK}}}}}"


@dataclass(frozen=True)
class Axes:
    """Scales of a panel: `x_range` and `y_range` are the values at its edges, `top` and `bottom` their pixels."""

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
        """Horizontal grid lines at these values, with their labels."""
        return "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(value)}" y2="{self.y(value)}"/>'
            f'<text x="{LEFT - 6}" y="{self.y(value) + 4}" text-anchor="end">{label}</text>'
            for value, label in up
        )

    def x_tick_labels(self, across: Iterable[tuple[float, str]], name: str, floor: float | None = None) -> str:
        """Labels of the x axis and its title."""
        floor = self.bottom if floor is None else floor
        places = [(min(self.x(value), WIDTH - text_width(label) / 2 - 3), label) for value, label in across]
        labels = "".join(f'<text x="{x}" y="{floor + 17}" text-anchor="middle">{label}</text>' for x, label in places)
        middle = (LEFT + WIDTH - RIGHT) / 2
        return f'{labels}<text x="{middle}" y="{floor + 33}" text-anchor="middle">{escape(name)}</text>'

    def lines(self, kind: str, points: Iterable[tuple[float, float | None]]) -> str:
        """A path for each run of values without None; a single point becomes a short dash, so that it is visible."""
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
    """A legend: ("main", text) draws a line of that class, ("<...>", text) that marker."""
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
    """Approximate width in pixels of a text 13 pixels high."""
    return sum(13 if unicodedata.east_asian_width(letter) in "WF" else 7 for letter in text)


def svg(name: str, size: tuple[int, int], title: str, description: str, body: str) -> str:
    """A complete SVG file, which can also be inlined in a page; `name` is unique there."""
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
    """Shares with labels in percent."""
    return [(value, language("{number} %", number=f"{100 * value:.6g}")) for value in values]
