"""The page says what the files of RUN say, asks nobody for anything, and stands whatever is missing or oddly named."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from fieldmark.errors import FieldmarkError
from fieldmark.photos.files import Folder
from fieldmark.report import write_report

ODD = ["<script>alert(1)</script>", "健康 玉米叶", 'a "quoted" & odd|name']


def make_run(run: Path, classes: list[str], per_class: int = 40, wrong: int = 3, epochs: int = 6) -> dict[str, Any]:
    """A RUN as train leaves it: of each class's photos, `wrong` are taken for the next class. Returns its metrics."""
    run.mkdir(parents=True, exist_ok=True)
    size, right = len(classes), (per_class - wrong) / per_class
    matrix = [
        [per_class - wrong if i == j else wrong if j == (i + 1) % size else 0 for j in range(size)] for i in range(size)
    ]
    figures = {
        "accuracy": right,
        "top5": 0.987,
        "n": per_class * size,
        "ci95": [right - 0.0312, min(1.0, right + 0.0213)],
        "balanced_accuracy": right,
        "macro_f1": 0.9119,
        "ece": 0.0234,
        "loss": 0.27,
        "per_class": {name: {"precision": right, "recall": right, "f1": right, "n": per_class} for name in classes},
        "confusion": matrix,
        "threshold": 0.53,
        "coverage": 0.9137,
    }
    if size == 2:
        figures |= {"roc_auc": 0.9632, "sensitivity": 0.8712, "specificity": 0.9423, "positive": classes[1]}
    metrics = {
        "test": figures,
        "validation": {**figures, "accuracy": 0.8765},
        "seconds": {"decode": 9.1, "features": 31.4, "phase1": 12.2, "phase2": 221.3, "evaluate": 8.2},
        "bundle": "RUN/bundle",
        "warnings": ["class <b>trash</b> has 137 photos"],
        "classes": classes,
        "network": {"backbone": "efficientnet_lite0", "attention": None, "after": None, "head": None},
        "parameters": 3_378_694,
        "best_epoch": epochs,
        "temperature": 1.18,
        "fingerprint": "9f3c51a2",
        "seed": 7,
        "environment": {"fieldmark": "0.1.0", "python": "3.11.2", "threads": 2},
        "command": "fieldmark train PHOTOS --out RUN --seed 7",
        "export": {"max_difference": 3.1e-7, "label_agreement": 1.0, "photos": 64},
    }
    predictions = [
        (f"{name}/{k}.jpg", name, classes[(i + (k < wrong)) % size], round(0.5 + k / 100, 4), k > 1)
        for i, name in enumerate(classes)
        for k in range(per_class)
    ]
    history = [
        (e, 1 if e < 3 else 2, 1e-3, "" if e == 1 else 1 / e, "", 1 / e, 1 - 0.3 / e, 9) for e in range(1, epochs + 1)
    ]
    split = [
        (f"{name}/{part}{k}.jpg", name, part) for name in classes for part in ("train", "val", "test") for k in range(9)
    ]
    write_csv(run / "predictions.csv", "path,label,predicted,confidence,known", predictions)
    write_csv(run / "history.csv", "epoch,phase,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds", history)
    write_csv(run / "split.csv", "path,label,split", split)
    write_csv(run / "quarantine.csv", "path,reason", [("<i>bad</i>.jpg", "truncated")])
    audit = {
        "duplicates": [["a/1.jpg", "b/<u>.jpg"]],
        "unreadable": [{"path": "x.jpg", "reason": "empty file"}],
        "leaks": [],
    }
    (run / "audit.json").write_text(json.dumps(audit))
    (run / "recipe.yaml").write_text("epochs: 6 # <em>\n")
    (run / "metrics.json").write_text(json.dumps(metrics))
    return metrics


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def test_writes_page_card_and_curves_and_nothing_else(tmp_path):
    make_run(tmp_path / "run", ["a", "b", "c"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    written = write_report(tmp_path / "run", None)
    assert [path.name for path in written] == ["report.html", "card.md", "curves.svg"]
    ElementTree.parse(tmp_path / "run" / "curves.svg")
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {path.name for path in written}


def test_the_figures_on_page_and_card_are_those_of_metrics_json(tmp_path):
    metrics = make_run(tmp_path, ["cat", "dog", "elk", "fox", "gnu", "hen"])
    page, card = Page(write_report(tmp_path, None)[0]).text, (tmp_path / "card.md").read_text(encoding="utf-8")
    sentence = "On 240 photos it had never seen, the classifier names the right one of 6 classes 92.5 % of the time"
    for text in (page, re.sub(r"\s+", " ", card)):
        assert sentence in text
        assert "89.4–94.6 %" in text and "0.912" in text
    for shown in (
        "98.7 %",
        "87.6 %",
        "91.4 %",
        "3,378,694",
        "1.18",
        "0.53",
        "9f3c51a2",
        metrics["command"],
        "4 min 42 s",
    ):
        assert shown in page
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "fieldmark"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == metrics["test"]["accuracy"]


@pytest.mark.parametrize("classes", [ODD, ODD[:2], [*ODD, *(f"kind {i}" for i in range(97))]], ids=["3", "2", "100"])
def test_names_are_shown_and_never_obeyed(tmp_path, classes):
    make_run(tmp_path, classes)
    page, card = Page(write_report(tmp_path, None)[0]), (tmp_path / "card.md").read_text(encoding="utf-8")
    assert not {"script", "b", "i", "u", "em"} & {tag for tag, _ in page.tags}
    assert all(name in page.text for name in classes)
    assert "<script" not in card and "健康 玉米叶" in card
    assert len(classes) < 3 or 'a "quoted" &amp; odd\\|name' in card


def test_the_page_asks_nobody_for_anything(tmp_path):
    make_run(tmp_path, ODD)
    path = write_report(tmp_path, None)[0]
    for tag, attributes in Page(path).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"@import|url\(|//(?!www\.w3\.org/2000/svg)[a-z]", path.read_text(encoding="utf-8"))


def test_tables_and_pictures_can_be_read_aloud(tmp_path, trashnet):
    classes = ["glass", "paper"]
    make_run(tmp_path, classes)
    page = Page(write_report(tmp_path, Folder(trashnet))[0])
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    for drawing in drawings:
        assert drawing.get("aria-hidden") or set((drawing["aria-labelledby"] or "").split()) <= set(names)


def test_the_surest_mistakes_come_first_with_their_photos(tmp_path, trashnet):
    make_run(tmp_path, ["glass", "paper"])
    photos = [("glass/glass1.jpg", "glass", "paper", 0.61, False), ("paper/paper1.jpg", "paper", "glass", 0.97, True)]
    gone = [("paper/gone.jpg", "paper", "glass", 0.8, True), ("paper/paper2.jpg", "paper", "paper", 0.55, True)]
    write_csv(tmp_path / "predictions.csv", "path,label,predicted,confidence,known", photos + gone)
    page = Page(write_report(tmp_path, Folder(trashnet))[0])
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        "A photo of paper, answered as glass",
        "A photo of glass, answered as paper",
        "A photo of paper, answered as paper",
    ]
    for picture in pictures:
        content = base64.b64decode((picture["src"] or "").removeprefix("data:image/jpeg;base64,"))
        assert max(Image.open(io.BytesIO(content)).size) <= 240
    assert page.text.index("97 %") < page.text.index("gone.jpg") < page.text.index("61 %")
    assert "3 of 4 test photos got a wrong answer" in page.text and "1 fell below the threshold" in page.text


def test_a_hundred_classes_with_photos_stay_small(tmp_path, birds100):
    classes = sorted(path.name for path in (birds100 / "test").iterdir())
    make_run(tmp_path, classes)
    rows = [
        (p.relative_to(birds100), p.parent.name, classes[0], 0.9, True) for p in sorted(birds100.glob("test/*/*"))[::40]
    ]
    write_csv(tmp_path / "predictions.csv", "path,label,predicted,confidence,known", rows)
    path = write_report(tmp_path, Folder(birds100))[0]
    assert path.stat().st_size < 2_000_000
    assert sum(tag == "img" for tag, _ in Page(path).tags) == 12 + 1


@pytest.mark.parametrize(
    "missing", ["history.csv", "split.csv", "quarantine.csv", "audit.json", "recipe.yaml", "predictions.csv"]
)
def test_an_optional_file_may_be_missing(tmp_path, missing):
    make_run(tmp_path, ["a", "b"])
    (tmp_path / missing).unlink()
    page = Page(write_report(tmp_path, None)[0])
    assert "92.5 %" in page.text
    assert (tmp_path / "curves.svg").exists() == (missing != "history.csv")


def test_bare_metrics_and_null_figures_make_a_page(tmp_path):
    metrics = make_run(tmp_path / "nulls", ["a", "b"])
    metrics["test"] = {
        name: value if name in ("per_class", "confusion") else None for name, value in metrics["test"].items()
    }
    for name in ("temperature", "environment", "seconds", "network", "export", "parameters", "best_epoch", "warnings"):
        metrics[name] = None
    for folder, content in (("nulls", metrics), ("bare", {}), ("untested", {"classes": ["a", "b"], "test": None})):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "metrics.json").write_text(json.dumps(content))
        page = Page(write_report(tmp_path / folder, None)[0])
        assert "nobody knows yet how good it is" in page.text
        assert "None" not in page.text and "nan" not in page.text


def test_few_photos_no_test_and_guessing_are_told(tmp_path):
    metrics = make_run(tmp_path, ["a", "b"], per_class=12)
    assert "18 times" in Page(write_report(tmp_path, None)[0]).text
    assert "So few photos prove little" in (tmp_path / "card.md").read_text(encoding="utf-8")
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "test": None}))
    assert "No photo was kept for a test. On 24 validation photos" in Page(write_report(tmp_path, None)[0]).text
    metrics["test"]["ci95"] = [0.0, 0.9]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert "not shown to be better than always answering “a” (50.0 %)" in Page(write_report(tmp_path, None)[0]).text


def test_one_epoch_and_a_name_that_is_no_unicode(tmp_path):
    make_run(tmp_path, ["a", "b"], epochs=1)
    rows = b"path,label,predicted,confidence,known\na/\xff.jpg,a,b,0.9,True\nb/1.jpg,b,b,,True\n"
    (tmp_path / "predictions.csv").write_bytes(rows)
    assert "1 of 1 test photos got a wrong answer" in Page(write_report(tmp_path, None)[0]).text


@pytest.mark.parametrize("content", [None, "{", "\x00"])
def test_without_metrics_it_says_what_to_do(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(FieldmarkError, match=r"metrics\.json.*--resume"):
        write_report(tmp_path, None)


def test_what_was_asked_for_is_told_and_what_is_usual_is_not(tmp_path):
    make_run(tmp_path, ["a", "b"], epochs=6)
    (tmp_path / "recipe.yaml").write_text("epochs: 6\nafter: -1:mask\nseed: 0\naugment: standard\nmixup: 0.25\n")
    page, card = Page(write_report(tmp_path, None)[0]).text, (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "--after -1:mask --mixup 0.25 --epochs 6 Time" in page
    assert "6 epochs, 4 min 42 s in all." in card
    assert (
        "- --after: -1:mask\n- --mixup: 0.25\n- --epochs: 6\n" in card and "seed" not in card and "standard" not in card
    )
    assert "6 epochs, the first 2 with the backbone frozen; the weights of epoch 6" in page
    (tmp_path / "recipe.yaml").write_text("of_a_later_version: 1")
    assert "Settings beyond" not in Page(write_report(tmp_path, None)[0]).text
