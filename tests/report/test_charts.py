"""Charts are well-formed, drawn inside their frame, and hold the figures they were given."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import CURVE, made

from fieldmark.core.i18n import ENGLISH, get_language
from fieldmark.evaluation.metrics import compute_metrics
from fieldmark.report.charts import frame, training, trust

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
    drawing = ElementTree.fromstring(training.training_curves(table, best))
    for path in drawing.iter(f"{SVG}path"):
        for number in re.findall(r"-?\d+(?:\.\d+)?", path.attrib["d"]):
            assert -8 <= float(number) <= frame.WIDTH


def test_curves_mark_the_unfreezing_and_the_best_epoch():
    drawing = training.training_curves(history(5))
    assert drawing.count("fine-tuning") == 2  # once a panel
    assert drawing.count("best: 5") == 2
    assert training.training_curves(history(5), best=2).count("best: 2") == 2
    assert "fine-tuning" not in training.training_curves(history(5, unfrozen_from=1)), "without a linear probe"
    assert "fine-tuning" not in training.training_curves(history(5, unfrozen_from=9))
    gradual = [row | {"phase": phase} for row, phase in zip(history(6), (1, 2, 2, 3, 3, 3), strict=True)]
    assert (
        training.training_curves(gradual).count("fine-tuning")
        == training.training_curves(gradual).count("all layers")
        == 2
    )
    assert "fine-tuning" not in training.training_curves(gradual[1:])
    assert training.training_curves(gradual[1:]).count("all layers") == 2


def test_no_line_leads_from_the_linear_probe_to_another_head():
    rows = [row | {"phase": phase} for row, phase in zip(history(6), (1, 2, 2, 2, 2, 4), strict=True)]
    drawing = ElementTree.fromstring(training.training_curve(rows, "accuracy"))
    lines = [path.attrib["d"] for path in drawing.iter(f"{SVG}path") if path.attrib["class"] == "main"]
    assert [line.count("L") for line in lines[:2]] == [1, 3]  # probe and refit; four epochs of fine-tuning


def test_a_blank_value_breaks_the_line_and_a_lone_point_is_seen():
    rows = history(5)
    rows[1]["train_loss"] = ""
    lines = [
        path.attrib["d"]
        for path in ElementTree.fromstring(training.training_curve(rows, "loss")).iter(f"{SVG}path")
        if path.attrib["class"] == "other"
    ]
    assert [line.count("L") for line in lines[:2]] == [0, 2]
    assert lines[0].endswith("h8")


def test_curves_go_where_the_figures_go():
    drawing = ElementTree.fromstring(training.training_curve(history(4), "accuracy"))
    line = next(path.attrib["d"] for path in drawing.iter(f"{SVG}path") if path.attrib["class"] == "main")
    points = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    assert points == sorted(points, key=lambda point: (point[0], -point[1])), "rising accuracy climbs to the right"
    assert len(points) == 4


@given(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_ticks_span_the_values_in_few_even_steps(one, other):
    low, high = min(one, other), max(one, other)
    ticks = frame.nice_ticks(low, high)
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
    page = Text(trust.confusion_matrix(matrix, classes))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "span", "small"}
    assert page.tags.count("td") == len(classes) * (len(classes) + 1)
    shown = "".join(page.texts).replace("\r", "\n")
    assert all(name.replace("\r", "\n") in shown for name in classes)
    assert all(str(sum(counts)) in page.texts for counts in matrix)


@pytest.mark.parametrize("classes", [13, 100, 400])
def test_large_confusion_is_a_small_heat_map(classes):
    matrix = [[(3 * i + j) % 7 if abs(i - j) < 20 else 0 for j in range(classes)] for i in range(classes)]
    drawing = trust.confusion_matrix(matrix, [f"<{i}>" for i in range(classes)])
    paths = [path.attrib["d"] for path in ElementTree.fromstring(drawing).iter(f"{SVG}path")]
    assert sum(path.count("z") for path in paths) == 1 + sum(count > 0 for counts in matrix for count in counts)
    assert len(drawing) < 800_000


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.3), (1.0, 0.7, 1.0), (0.5, 0.4, 0.6)])
def test_bar_is_as_long_as_its_share(share, low, high):
    track, value, whisker = ElementTree.fromstring(trust.interval_bar(share, low, high))
    assert float(value.attrib["width"]) == 100 * share
    assert float(whisker.attrib["x"]) == pytest.approx(100 * low)
    assert float(whisker.attrib["width"]) == pytest.approx(100 * (high - low))
    assert track.attrib["width"] == "100"


# ---- how far to trust it


@pytest.fixture(scope="module")
def two():
    """Figures of two classes, of which one is looked for."""
    return compute_metrics(made(2, 40, 5), ["a", "b"], 0.6, "b", 0.4).to_dict()


def inside(drawing: str, height: float) -> ElementTree.Element:
    """The chart as XML, after a look that all of it lies in its frame."""
    tree = ElementTree.fromstring(drawing)
    for shape in [*tree.iter(f"{SVG}circle"), *tree.iter(f"{SVG}rect")]:
        if shape.get("style") is None:
            x, y = (float(shape.get(a) or shape.get(b) or 0) for a, b in (("cx", "x"), ("cy", "y")))
            assert -5 <= x <= frame.WIDTH and -5 <= y <= height
    for text in tree.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= frame.WIDTH and float(text.attrib["y"]) <= height
    return tree


def lines(tree: ElementTree.Element, kind: str) -> list[list[tuple[float, float]]]:
    """The points of the paths of a kind."""
    paths = [path.attrib["d"] for path in tree.iter(f"{SVG}path") if path.get("class") == kind]
    points = [[point.split() for point in path[1:].split("L")] for path in paths if "h" not in path]
    return [[(float(x), float(y)) for x, y in line] for line in points]


@pytest.mark.parametrize("_", [ENGLISH, get_language("zh")], ids=["en", "zh"])
def test_reliability_shows_both_sides_and_the_photos_of_each_bin(two, _):
    tree = inside(trust.reliability_diagram(two, _), 364)
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    after, before = two["reliability"]["after"], two["reliability"]["before"]
    assert all(str(row["n"]) in texts for row in after)
    (tempered,), (plain,) = lines(tree, "main"), lines(tree, "other")
    assert (len(tempered), len(plain)) == (len(after), len(before))
    assert [x for x, _y in tempered] == sorted(x for x, _y in tempered)
    for error in (two["ece"], two["ece_before"]):
        assert any(_.percent(error) in text for text in texts)


def test_reliability_without_a_fitted_temperature_is_one_line(two):
    after = two["reliability"]["after"]
    before = [row | {"confidence": row["confidence"] + 1e-9} for row in after]  # as rounding leaves it
    same = two | {"reliability": {"before": before, "after": after}}
    drawing = trust.reliability_diagram(same)
    tree = inside(drawing, 364)
    assert len(list(lines(tree, "main"))) == 1 and not list(lines(tree, "other"))
    assert "before: ECE" not in drawing and "after: ECE" not in drawing


def test_coverage_marks_no_threshold_that_was_not_fitted(two):
    drawing = trust.coverage_chart(two | {"threshold": 0.0})
    assert "<circle" not in drawing and "threshold" not in drawing and "No image is rejected" in drawing


def test_coverage_marks_the_chosen_threshold(two):
    tree = inside(trust.coverage_chart(two), frame.HEIGHT)
    (line,) = lines(tree, "main")
    (mark,) = tree.iter(f"{SVG}circle")
    assert len(line) == len(two["coverage_curve"])
    x = frame.LEFT + two["coverage"] * (frame.WIDTH - frame.LEFT - frame.RIGHT)
    assert float(mark.attrib["cx"]) == pytest.approx(x, abs=0.1)
    assert "threshold 0.60" in "".join(tree.itertext())
    perfect = {**two, "coverage_curve": [row | {"accuracy": 1.0} for row in two["coverage_curve"]], "threshold": None}
    inside(trust.coverage_chart(perfect | {"accuracy_known": 1.0}), frame.HEIGHT)
    inside(trust.coverage_chart(perfect | {"accuracy_known": None}), frame.HEIGHT)


def test_roc_climbs_and_marks_both_ways_to_decide(two):
    tree = inside(trust.roc_chart(two), 350)
    (line,) = lines(tree, "main")
    assert line == sorted(line, key=lambda point: (point[0], -point[1]))
    circles = [shape for shape in tree.iter(f"{SVG}circle") if "point" in shape.attrib["class"]]
    squares = [shape for shape in tree.iter(f"{SVG}rect") if "point" in shape.get("class", "")]
    assert len(circles) == len(squares) == 2, "in the chart and in its legend"
    inside(trust.roc_chart({**two, "at_threshold": None}), 350)


def test_growth_has_an_interval_at_each_point_and_what_twice_as_many_may_bring():
    tree = inside(trust.data_scaling_chart(CURVE), frame.HEIGHT)
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    assert {"160", "320", "640", "1,280", "2,560"} <= set(texts)
    assert sum(path.get("class") == "whisker" for path in tree.iter(f"{SVG}path")) == len(CURVE["points"])
    (ahead,) = lines(tree, "other")
    assert ahead[1][0] > ahead[0][0] and ahead[1][1] < ahead[0][1]


def test_charts_of_one_page_share_no_name(two):
    drawings = [training.training_curve(history(3), kind) for kind in training.TITLES]
    drawings += [draw(two) for draw in (trust.reliability_diagram, trust.coverage_chart, trust.roc_chart)]
    drawings += [trust.data_scaling_chart(CURVE), trust.confusion_matrix([[1] * 13] * 13, list("abcdefghijklm"))]
    names = re.findall(r'id="([^"]+)"', "".join(drawings))
    assert len(names) == len(set(names)) == 2 * len(drawings)


def test_a_chinese_legend_is_given_room():
    assert frame.text_width("验证集") == 39 and frame.text_width("abc") == 21
    drawing = training.training_curve(history(12), "accuracy", 12, get_language("zh"))
    assert all(word in drawing for word in ("准确率", "训练集", "验证集", "最佳：第 12 轮", "微调"))
