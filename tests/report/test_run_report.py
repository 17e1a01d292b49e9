"""The page says what the files of RUN say, asks nobody for anything, and stands whatever is missing or oddly named."""

import base64
import io
import json
import re
import shutil
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image
from told import Page, make_run, write_csv

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.readers.files import Folder
from fieldmark.evaluation.evaluate import evaluate
from fieldmark.report.run_report import rewrite_report, write_report

ODD = ["<script>alert(1)</script>", "健康 玉米叶", 'a "quoted" & odd|name']


def test_writes_page_card_and_curves_and_nothing_else(tmp_path):
    make_run(tmp_path / "run", ["a", "b", "c"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    written = write_report(tmp_path / "run", None)
    assert [path.name for path in written] == ["report.html", "card.md", "curves.svg"]
    ElementTree.parse(tmp_path / "run" / "curves.svg")
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {path.name for path in written}


# ---- the figures


def place(figures: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        figures = figures[name]
    return figures


def written(value: Any, path: str) -> str:
    """A figure of metrics.json as the English page writes it."""
    if path.endswith(("macro_f1", "roc_auc")):
        return f"{value[0]:.3f}–{value[1]:.3f}" if isinstance(value, list) else f"{value:.3f}"
    if isinstance(value, list):
        return f"{100 * value[0]:.1f}–{100 * value[1]:.1f}\xa0%"
    return "–" if value is None else f"{100 * value:.1f}\xa0%"


def agree(page: Page, metrics: dict[str, Any]) -> None:
    """Every figure on the page is that of metrics.json, each in its place."""
    figures = metrics["test"]
    for path, shown in page.figures.items():
        assert set(shown) == {written(place(figures, path), path)}, path
    shares = ["accuracy", "balanced_accuracy", "macro_f1", "coverage", "accuracy_known", "ece"]
    shares += ["roc_auc", "sensitivity", "specificity", "ppv", "npv"] if "positive" in figures else []
    expected = {*shares, *(f"intervals.{name}" for name in shares)}
    expected |= {"ece_before"} if (metrics["validation"] or {"n": 20})["n"] >= 20 else set()
    if "positive" in figures:
        own = [f"at_threshold.{name}" for name in ("accuracy", *shares[-4:])]
        expected |= {*own, *(path.replace("threshold.", "threshold.intervals.") for path in own)}
    assert expected <= set(page.figures)
    rows = {
        " ".join(row[0].split()): [" ".join(cell.split()) for cell in row[1:]] for row in page.tables["classes"][1:]
    }
    assert set(rows) == set(figures["per_class"])
    for name, (n, recall, _bar, precision, f1) in rows.items():
        of = figures["per_class"][name]
        assert (n, f1) == (str(of["n"]), f"{of['f1']:.3f}")
        for cell, kind in ((recall, "recall"), (precision, "precision")):
            bounds = of[f"{kind}_ci95"]
            told = f"{written(of[kind], kind)} {written(bounds, kind) if bounds else '–'}"
            assert cell == " ".join(told.split()), (name, kind)
    confused = [[" ".join(cell.split()) for cell in row] for row in page.tables.get("confused", [])[1:]]
    assert confused == [
        [
            pair["label"],
            pair["predicted"],
            str(pair["n"]),
            " ".join(f"{written(pair['share'], '')} {written(pair['ci95'], '')}".split()),
        ]
        for pair in figures["confused"]
    ]
    matrix = [[cell.split()[0] for cell in row[1:-1]] for row in page.tables.get("confusion", [])[1:]]
    matrix = matrix or [[cell.split()[0] for cell in row[1:-1]] for row in page.tables.get("confusion long", [])[1:]]
    assert matrix == [[str(n) for n in row] for row in figures["confusion"]]


def close(found: Any, told: Any) -> None:
    """All that is told is found, numbers up to what a photo that is decoded anew may differ by."""
    if isinstance(told, dict):
        for name in told:
            close(found[name], told[name])
    elif isinstance(told, list):
        assert len(found) == len(told)
        for one, other in zip(found, told, strict=True):
            close(one, other)
    else:
        assert found == (pytest.approx(told, abs=1e-4) if isinstance(told, float) else told)


def test_the_figures_in_the_report_metrics_json_and_evaluate_agree(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("resume", "tensorboard"))
    files, gone = rewrite_report(tmp_path / "run")
    assert not gone
    metrics = json.loads((small_run / "metrics.json").read_text())
    agree(Page(files[0]), metrics)
    assert Page(files[0]).figures == Page(small_run / "report.html").figures
    close(evaluate(small_run, None, Reporter(quiet=True)).to_dict(), metrics["test"])


@pytest.mark.parametrize("classes", [["cat", "dog"], ["cat", "dog", "elk", "fox", "gnu", "hen"]], ids=["2", "6"])
def test_the_figures_on_page_and_card_are_those_of_metrics_json(tmp_path, classes):
    metrics = make_run(tmp_path, classes, per_class=60)
    page, card = Page(write_report(tmp_path, None)[0]), (tmp_path / "card.md").read_text(encoding="utf-8")
    agree(page, metrics)
    test, validation = metrics["test"], metrics["validation"]
    share, between = written(test["accuracy"], ""), written(test["ci95"], "")
    n = len(classes)
    sentence = f"On a test set of {60 * n} images, the accuracy over {n} classes is {share}"
    for text in (page.text, re.sub(r"\s+", " ", card)):
        assert sentence.replace("\xa0", " ") in text and between.replace("\xa0", " ") in text
        assert f"{test['macro_f1']:.3f}" in text and written(test["ece"], "").replace("\xa0", " ") in text
    told = (written(validation["accuracy"], ""), "3,378,694", "1.18", "0.60", "9f3c51a2", metrics["command"])
    assert all(shown.replace("\xa0", " ") in page.text for shown in (*told, "4 min 42 s", "91.0 %", "88.0 %"))
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["language"]) == ("fieldmark", "en")
    (figure,) = front["model-index"][0]["results"][0]["metrics"]
    low, high = test["ci95"]
    assert figure["value"] == test["accuracy"]
    assert figure["name"] == f"accuracy (95 % CI {low:.3f} to {high:.3f})"


# ---- the page


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
    of = {"g": "Image of glass, predicted as paper", "p": "Image of paper, predicted as glass"}
    of["r"] = "Image of paper, predicted as paper"
    # Confusions (one photo is gone) beside a right one, mistakes, the sheet: glass confused; paper typical, confused.
    assert [picture["alt"] for picture in pictures] == [of[k] for k in "gr" + "p" + "pg" + "grp"]
    for picture in pictures:
        content = base64.b64decode((picture["src"] or "").removeprefix("data:image/jpeg;base64,"))
        assert max(Image.open(io.BytesIO(content)).size) <= 240
    assert "3 of 4 test images are misclassified" in page.text and "1 of them are below the OOD threshold" in page.text
    worst = page.text[page.text.index("Most confident errors") :]
    assert worst.index("97 %") < worst.index("gone.jpg") < worst.index("61 %")


def test_the_evidence_of_a_run_stands_beside_its_photos(small_run, small_photos, tmp_path):
    shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("resume", "tensorboard"))
    page = Page(write_report(tmp_path / "run", Folder(small_photos))[0])
    typical = [row[1] for row in page.tables["sheet"][1:]]
    assert len(typical) == 3
    spoke = [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]
    assert sum(alt.startswith("Class evidence for") for alt in spoke) >= 3
    shutil.rmtree(tmp_path / "run" / "bundle")
    page = Page(write_report(tmp_path / "run", Folder(small_photos))[0])
    assert "Class activation maps are missing" in page.text and not any(
        "evidence for" in (a.get("alt") or "") for _, a in page.tags
    )


def test_a_hundred_classes_with_photos_stay_small(tmp_path, birds100):
    classes = sorted(path.name for path in (birds100 / "test").iterdir())
    make_run(tmp_path, classes)
    rows = [
        (p.relative_to(birds100), p.parent.name, classes[0], 0.9, True) for p in sorted(birds100.glob("test/*/*"))[::40]
    ]
    write_csv(tmp_path / "predictions.csv", "path,label,predicted,confidence,known", rows)
    path = write_report(tmp_path, Folder(birds100))[0]
    assert path.stat().st_size < 2_000_000
    assert sum(tag == "img" for tag, _ in Page(path).tags) == 12 + 12


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
        assert "its accuracy is unknown" in page.text
        assert "None" not in page.text and "nan" not in page.text


def test_few_photos_no_test_and_guessing_are_told(tmp_path):
    metrics = make_run(tmp_path, ["a", "b"], per_class=12)
    assert "(18 images correct)" in Page(write_report(tmp_path, None)[0]).text
    assert "So small a set leaves a wide 95 % CI" in (tmp_path / "card.md").read_text(encoding="utf-8")
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "test": None}))
    assert "There is no test set. On 24 validation images" in Page(write_report(tmp_path, None)[0]).text
    metrics["test"]["ci95"] = [0.0, 0.9]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert (
        "not significantly better than the majority-class baseline, which always predicts “a” (50.0 %)"
        in Page(write_report(tmp_path, None)[0]).text
    )


@pytest.mark.parametrize(("per_class", "is_off"), [(6, True), (10, False)])
def test_without_a_fitted_threshold_nothing_is_said_to_be_rejected(tmp_path, per_class, is_off):
    make_run(tmp_path, ["a", "b"], per_class=per_class)
    for text in (Page(write_report(tmp_path, None)[0]).text, (tmp_path / "card.md").read_text(encoding="utf-8")):
        assert ("Rejection of unknown images is off: 12 validation images" in text) == is_off
        assert ("also for an image of something else" in text) == is_off
        for claim in ("OOD score below", "fitted on the validation set", "Before temperature scaling it was"):
            assert (claim in text) != is_off, claim


def test_one_reliability_table_where_the_temperature_is_1(tmp_path):
    metrics = make_run(tmp_path, ["a", "b"])
    assert "Before temperature scaling" in Page(write_report(tmp_path, None)[0]).text
    metrics["test"]["reliability"]["before"] = metrics["test"]["reliability"]["after"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = (write_report(tmp_path, None)[0]).read_text(encoding="utf-8")
    assert "<caption>Accuracy by confidence</caption>" in page and "<caption>Before temperature" not in page


@pytest.mark.parametrize(("n", "is_shown"), [(19, False), (20, True)])
def test_the_top_5_accuracy_is_shown_from_20_classes_on(tmp_path, n, is_shown):
    make_run(tmp_path, [f"kind {k}" for k in range(n)])
    assert ("top-5 accuracy" in Page(write_report(tmp_path, None)[0]).text) == is_shown
    assert ("top-5 accuracy" in (tmp_path / "card.md").read_text(encoding="utf-8")) == is_shown


def test_kept_weights_are_said_where_there_was_a_choice(tmp_path):
    for epochs in (1, 2):
        make_run(tmp_path / str(epochs), ["a", "b"], epochs=epochs)
        page = Page(write_report(tmp_path / str(epochs), None)[0]).text
        assert (f"The weights of epoch {epochs}" in page) == ("selected the weights" in page) == (epochs == 2)


def test_one_epoch_and_a_name_that_is_no_unicode(tmp_path):
    make_run(tmp_path, ["a", "b"], epochs=1)
    rows = b"path,label,predicted,confidence,known\na/\xff.jpg,a,b,0.9,True\nb/1.jpg,b,b,,True\n"
    (tmp_path / "predictions.csv").write_bytes(rows)
    assert "1 of 1 test images are misclassified" in Page(write_report(tmp_path, None)[0]).text


def test_folds_are_told_together_and_one_by_one(tmp_path):
    each = [make_run(tmp_path / f"fold-{k}", ["a", "b"], wrong=k) for k in (1, 2, 3)]
    shared = {name: each[0][name] for name in ("classes", "network", "parameters", "seed", "environment", "seconds")}
    folds = [{"test": run["test"], "validation": run["validation"], "bundle": run["bundle"]} for run in each]
    pooled = each[1]["test"] | {"sd": 0.0123, "threshold": 0.0}
    metrics = {"test": pooled, "validation": None, "folds": folds, "warnings": [], **shared}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_report(tmp_path, None)[0])
    agree(page, metrics)
    told = ("In 3-fold cross-validation on 80 images", "standard deviation of the accuracy between the folds is 1.2 %")
    assert all(text in page.text for text in (*told, each[0]["command"], "empty file", "12 of 240 test images are"))
    assert "below 0.00" not in page.text and "nan" not in page.text
    rows = [[" ".join(cell.split()) for cell in row] for row in page.tables["folds"][1:]]
    expected = [[str(k), "80", written(run["test"]["accuracy"], "")] for k, run in enumerate(each, 1)]
    assert [row[:3] for row in rows] == [[cell.replace("\xa0", " ") for cell in row] for row in expected]


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
    assert "Epochs: 6 (2 linear probe, 4 fine-tuning)." in card and "Total time: 4 min 42 s." in card
    assert (
        "- --after: -1:mask\n- --mixup: 0.25\n- --epochs: 6\n" in card
        and "seed:" not in card
        and "standard" not in card
    )
    assert "Epochs: 6 (2 linear probe, 4 fine-tuning). The weights of epoch 6" in page
    (tmp_path / "recipe.yaml").write_text("of_a_later_version: 1")
    assert "Non-default settings" not in Page(write_report(tmp_path, None)[0]).text
