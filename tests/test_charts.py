"""Charts are well-formed, drawn inside their frame, and hold the figures they were given."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark import charts

SVG = "{http://www.w3.org/2000/svg}"
CELLS = st.one_of(st.floats(-1e6, 1e6), st.sampled_from(["", "nan", "inf", None, math.nan]))


def history(epochs: int, unfrozen_from: int = 3) -> list[dict]:
    return [
        {
            "epoch": epoch,
            "phase": 1 if epoch < unfrozen_from else 2,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 0.4 / epoch,
            "val_loss": 1.1 / epoch,
            "val_accuracy": 1 - 0.5 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), max_size=6),
    st.integers(1, 7),
    st.one_of(st.none(), st.integers(0, 8)),
)
def test_curves_draw_any_history_as_xml_inside_the_frame(rows, unfrozen_from, best):
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    table = [
        {"epoch": str(epoch), "phase": "1" if epoch < unfrozen_from else "2", **dict(zip(names, row, strict=True))}
        for epoch, row in enumerate(rows, 1)
    ]
    drawing = ElementTree.fromstring(charts.curves(table, best))
    for path in drawing.iter(f"{SVG}path"):
        for number in re.findall(r"-?\d+(?:\.\d+)?", path.attrib["d"]):
            assert -8 <= float(number) <= charts.WIDTH


def test_curves_mark_the_unfreezing_and_the_best_epoch():
    drawing = charts.curves(history(5))
    assert drawing.count("unfrozen") == 2  # once a panel
    assert drawing.count("epoch 5, best") == 2
    assert charts.curves(history(5), best=2).count("epoch 2, best") == 2
    assert "unfrozen" not in charts.curves(history(5, unfrozen_from=1)), "it was never frozen"
    assert "unfrozen" not in charts.curves(history(5, unfrozen_from=9))
    gradual = [row | {"phase": phase} for row, phase in zip(history(6), (1, 2, 2, 3, 3, 3), strict=True)]
    assert charts.curves(gradual).count("unfrozen") == 4 and charts.curves(gradual).count("all unfrozen") == 2
    assert charts.curves(gradual[1:]).count("unfrozen") == charts.curves(gradual[1:]).count("all unfrozen") == 2


def test_a_blank_value_breaks_the_line_and_a_lone_point_is_seen():
    rows = history(5)
    rows[1]["train_loss"] = ""
    lines = [
        path.attrib["d"]
        for path in ElementTree.fromstring(charts.curve(rows, "loss")).iter(f"{SVG}path")
        if path.attrib["class"] == "train"
    ]
    assert [line.count("L") for line in lines[:2]] == [0, 2]
    assert lines[0].endswith("h8")


def test_curves_go_where_the_figures_go():
    drawing = ElementTree.fromstring(charts.curve(history(4), "accuracy"))
    line = next(path.attrib["d"] for path in drawing.iter(f"{SVG}path") if path.attrib["class"] == "validation")
    points = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    assert points == sorted(points, key=lambda point: (point[0], -point[1])), "rising accuracy climbs to the right"
    assert len(points) == 4


@given(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_ticks_span_the_values_in_few_even_steps(one, other):
    low, high = min(one, other), max(one, other)
    ticks = charts._ticks(low, high)
    slack = 1e-6 * max(1e-3, high - low)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert ticks == sorted(set(ticks))


class Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=12, unique=True), st.data())
def test_small_confusion_is_a_table_with_every_name_and_count(classes, data):
    row = st.lists(st.integers(0, 999), min_size=len(classes), max_size=len(classes))
    matrix = data.draw(st.lists(row, min_size=len(classes), max_size=len(classes)))
    page = Text(charts.confusion(matrix, classes))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "span", "small"}
    assert page.tags.count("td") == len(classes) * (len(classes) + 1)
    shown = "".join(page.texts).replace("\r", "\n")
    assert all(name.replace("\r", "\n") in shown for name in classes)
    assert all(str(sum(counts)) in page.texts for counts in matrix)


@pytest.mark.parametrize("classes", [13, 100, 400])
def test_large_confusion_is_a_small_heat_map(classes):
    matrix = [[(3 * i + j) % 7 if abs(i - j) < 20 else 0 for j in range(classes)] for i in range(classes)]
    drawing = charts.confusion(matrix, [f"<{i}>" for i in range(classes)])
    paths = [path.attrib["d"] for path in ElementTree.fromstring(drawing).iter(f"{SVG}path")]
    assert sum(path.count("z") for path in paths) == 1 + sum(count > 0 for counts in matrix for count in counts)
    assert len(drawing) < 800_000


def test_confused_pairs_are_the_mistakes_in_order():
    pairs = charts.confused_pairs([[8, 2, 0], [0, 5, 0], [3, 1, 0]], ["a", "b", "c"])
    assert pairs == [("c", "a", 3, 0.75), ("a", "b", 2, 0.2), ("c", "b", 1, 0.25)]
    assert charts.confused_pairs([[4, 0], [0, 4]], ["a", "b"]) == []


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.3), (1.0, 0.7, 1.0), (0.5, 0.4, 0.6)])
def test_bar_is_as_long_as_its_share(share, low, high):
    track, value, whisker = ElementTree.fromstring(charts.bar(share, low, high))
    assert float(value.attrib["width"]) == 100 * share
    assert float(whisker.attrib["x"]) == pytest.approx(100 * low)
    assert float(whisker.attrib["width"]) == pytest.approx(100 * (high - low))
    assert track.attrib["width"] == "100"
