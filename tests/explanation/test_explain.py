"""Explanations agree with `predict` and sum to the logit; their pages are complete and load nothing."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from told import Words, english

from fieldmark.core import io
from fieldmark.core.progress import Reporter
from fieldmark.explanation import attribution, class_sheet, faithfulness
from fieldmark.explanation.attribution import METHODS
from fieldmark.explanation.explain import AttentionMap, Explanation, MapScore
from fieldmark.explanation.neighbours import Neighbour, load_reference_set
from fieldmark.inference import bundle
from fieldmark.inference.run_folder import LabelledPrediction
from fieldmark.report import explain_page
from fieldmark.report.explain_page import describe_faithfulness, write_class_sheet, write_explanations

NAMES = ["<script>alert(1)</script>", "健康 玉米叶", 'a "quoted" & odd|name']


def state(*folders: Path) -> dict[str, str]:
    """The contents of all files, to see that none has changed."""
    files = (file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Page(HTMLParser):
    """The tags of a page, its visible text, and whether it asks anybody for anything."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source.replace("<wbr>", ""))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def stands_alone(self) -> bool:
        kept = all(
            (attributes.get(name) or "data:").startswith(("data:", "#"))
            for _, attributes in self.tags
            for name in ("src", "href", "srcset", "action")
        )
        tags = {tag for tag, _ in self.tags}
        return (
            kept and not tags & {"script", "iframe", "link"} - {"link"} and not re.search(r"url\(|@import", self.source)
        )

    def pictures(self) -> list[str]:
        assert all(attributes.get("alt") for tag, attributes in self.tags if tag == "img")
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def odd_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, its classes renamed to what a page must not obey."""
    run = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("odd") / "run"))
    info = bundle.read_info(run)
    renamed = dict(zip(info.classes, NAMES, strict=True))
    info = replace(info, classes=list(NAMES)).to_dict()
    io.write_json(run / "bundle" / "bundle.json", info)
    model = onnx.load(run / "bundle" / "model.onnx")
    (entry,) = model.metadata_props
    entry.value = io.to_json(info)
    onnx.save(model, run / "bundle" / "model.onnx")
    rows: list[dict[str, Any]] = [*io.read_csv(run / "predictions.csv")]
    rows = [row | {name: renamed[row[name]] for name in ("label", "predicted")} for row in rows]
    rows[0]["predicted"] = next(name for name in NAMES if name != rows[0]["label"])  # one error, and an image gone
    gone = {"path": "gone.jpg", "label": NAMES[1], "predicted": NAMES[0], "confidence": 0.9}
    io.write_csv(run / "predictions.csv", [*rows, {**rows[0], **gone}], list(rows[0]))
    return run


def test_it_says_what_predict_says_and_adds_up(here, small_run: Path, small_photos: Path, tmp_path: Path):
    bad, photos = tmp_path / "bad.jpg", [small_photos / "disc" / "00.jpg", small_photos / "square" / "00.jpg"]
    bad.write_bytes(photos[0].read_bytes()[:500])
    before, out = state(small_run, small_photos), tmp_path / "out"
    done = here("explain", small_run, photos[0], bad, photos[1], "--out", out, "--json")
    assert done.code == 1 and state(small_run, small_photos) == before
    first, error, second = done.json["photos"]
    assert error == {"path": str(bad), "error": here("predict", small_run, bad, "--json").json[0]["error"]}
    for found, answer in zip((first, second), here("predict", small_run, *photos, "--json").json, strict=True):
        assert {name: found[name] for name in ("path", "label", "confidence", "known")} == {
            name: answer[name] for name in ("path", "label", "confidence", "known")
        }
        assert found["target"] == found["label"]
        assert found["evidence"] + found["bias"] == pytest.approx(found["logit"], abs=1e-4)
        assert 0 < found["chance"] < 1 and len(found["nearest"]) == 4
        (drawn,) = found["maps"]
        assert drawn["method"] == "evidence" and 0 <= drawn["deletion"] <= 1 and 0 <= drawn["insertion"] <= 1
    names = ["explain.html", "00.evidence.png", "00-2.evidence.png"]
    assert done.json["files"] == [str(out / name) for name in names]
    assert sorted(out.iterdir()) == sorted(out / name for name in names), "two photos of one name, and nothing else"
    page = Page(out / "explain.html")
    assert page.stands_alone() and len(page.pictures()) == 2 * (3 + 4)
    assert f"{bad} could not be read: truncated" in page.text
    for found in (first, second):
        assert all(f"{found[name]:.4f}" in page.text for name in ("evidence", "bias", "logit"))
    again = here("explain", small_run, photos[0], "--out", out)
    assert "exists" in again.refusal


def test_every_method_has_its_picture(
    small_run: Path, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(faithfulness, "N_STEPS", 4)
    monkeypatch.setattr(attribution, "N_GRADIENT_STEPS", 2)
    photo = small_photos / "cross, blue" / "03.jpg"
    quiet = Reporter(quiet=True)
    report = write_explanations(small_run, [photo], tmp_path / "out", quiet, methods=["all"], target="square")
    (explanation,) = report.images
    assert isinstance(explanation, Explanation) and explanation.target == "square" != explanation.label
    assert [score.method for score in explanation.maps] == list(METHODS)
    for score in explanation.maps:
        with Image.open(score.file or "") as picture:
            assert picture.format == "PNG" and Path(score.file or "").parent == tmp_path / "out"
    page = Page(tmp_path / "out" / "explain.html")
    assert (
        "The maps show the requested class, square." in page.text and len(page.pictures()) == 1 + len(METHODS) + 1 + 4
    )
    assert ("Most faithful:" in page.text) != ("No map is more faithful" in page.text)


def test_attention_is_shown_by_the_name_of_its_gate(
    small_run: Path, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gates = {"backbone.after_2": np.linspace(0.25, 1.5, 6).reshape(2, 3), "../<b>odd</b>": np.array([[0.0, 1.0]])}
    monkeypatch.setattr(attribution, "attention_maps", lambda network, x: gates)
    monkeypatch.setattr(faithfulness, "N_STEPS", 4)
    report = write_explanations(small_run, [small_photos / "disc" / "01.jpg"], tmp_path / "out", Reporter(quiet=True))
    (explanation,) = report.images
    assert isinstance(explanation, Explanation)
    assert [gate.module for gate in explanation.attention] == list(gates)
    assert all(Path(gate.file or "").resolve().parent == tmp_path / "out" for gate in explanation.attention)
    assert sorted(map(str, (tmp_path / "out").iterdir())) == sorted(report.files)
    page = Page(tmp_path / "out" / "explain.html")
    assert page.stands_alone() and "factor 0.25 to 1.50" in page.text and "<b>" not in page.source


def score(method: str, deletion: float, insertion: float) -> MapScore:
    return MapScore(method, deletion, insertion, beats_random=insertion - deletion > 0.2)


@pytest.mark.parametrize(
    ("maps", "chance", "says"),
    [
        (
            [score("evidence", 0.2, 0.9)],
            0.5,
            "Most faithful: evidence. Deletion 20.%, insertion 90.%; random maps 50.%.$",
        ),
        (
            [score("evidence", 0.3, 0.8), score("grad_cam", 0.2, 0.9)],
            0.5,
            "Most faithful: Grad-CAM. .* random maps 50.%.$",
        ),
        (
            [score("evidence", 0.21, 0.9), score("grad_cam", 0.2, 0.9)],
            0.5,
            "Most faithful: evidence. .* random maps 50.%.$",
        ),
        ([score("evidence", 0.2, 0.9), score("occlusion", 0.5, 0.5)], 0.5, "Not better than random: occlusion"),
        ([score("evidence", 0.5, 0.6)], 0.5, "No map is more faithful than random"),
        ([score("evidence", 0.0, 0.01)], 0.01, "“gnu” is improbable whatever is blurred"),
    ],
)
def test_the_most_faithful_map_is_named(maps: list[MapScore], chance: float, says: str):
    explanation = Explanation("1.jpg", "elk", 0.9, True, "gnu", 1.5, 1.0, 0.5, chance, tuple(maps), (), ())
    assert re.search(says, describe_faithfulness(explanation))


def test_keys_of_the_json():
    scores = (MapScore("evidence", 0.2, 0.9, True, "out/1.evidence.png"),)
    gates, neighbours = (AttentionMap("backbone.after_2", "out/1.png"),), (Neighbour("a/1.jpg", "elk", 0.5),)
    explanation = Explanation("1.jpg", "elk", 0.9, True, "gnu", 1.5, 1.0, 0.5, 0.4, scores, gates, neighbours)
    assert io.to_json(explanation.to_dict(), indent=None) == (
        '{"path": "1.jpg", "label": "elk", "confidence": 0.9, "known": true, "target": "gnu", "logit": 1.5, '
        '"evidence": 1.0, "bias": 0.5, "chance": 0.4, "maps": [{"method": "evidence", "deletion": 0.2, '
        '"insertion": 0.9, "beats_random": true, "file": "out/1.evidence.png"}], "attention": [{"module": '
        '"backbone.after_2", "file": "out/1.png"}], '
        '"nearest": [{"path": "a/1.jpg", "label": "elk", "similarity": 0.5}]}'
    )


def test_nearest_images_are_shown(odd_run: Path, small_photos: Path, tmp_path: Path):
    with np.load(odd_run / "gallery.npz") as gallery:
        path = str(gallery["paths"][0])
    photo, quiet = small_photos / path, Reporter(quiet=True)
    report = write_explanations(odd_run, [photo], tmp_path / "out", quiet, target=NAMES[0], nearest=3)
    (explanation,) = report.images
    assert isinstance(explanation, Explanation)
    near = explanation.nearest
    assert near[0].path == path and near[0].similarity == pytest.approx(1, abs=1e-2)  # kept in bfloat16 where there is
    similarities = [neighbour.similarity for neighbour in near]
    assert len(near) == 3 and similarities == sorted(similarities, reverse=True)
    page = Page(tmp_path / "out" / "explain.html")
    assert page.stands_alone() and len(page.pictures()) == 1 + 1 + 1 + 3
    assert "<script>alert" not in page.source and NAMES[0] in page.text and explanation.label in page.text


def test_data_set_and_reference_set_may_be_gone(odd_run: Path, small_photos: Path, tmp_path: Path):
    run = Path(shutil.copytree(odd_run, tmp_path / "run"))
    audit = json.loads((run / "audit.json").read_text()) | {"folder": str(tmp_path / "nowhere")}
    (run / "audit.json").write_text(json.dumps(audit))
    photo, quiet = small_photos / "disc" / "05.jpg", Reporter(quiet=True)
    near = write_explanations(run, [photo], tmp_path / "names", quiet, nearest=2).to_dict()["photos"][0]["nearest"]
    page = Page(tmp_path / "names" / "explain.html")
    assert page.text.count("no image") == 2 and near[1]["path"] in page.text
    whole = (run / "gallery.npz").read_bytes()
    for damaged in (b"", whole[:300], whole[:-100]):
        (run / "gallery.npz").write_bytes(damaged)
        assert load_reference_set(run, 1280) is None
    assert write_explanations(run, [photo], tmp_path / "none", quiet).to_dict()["photos"][0]["nearest"] == []
    assert "has no reference set" in Page(tmp_path / "none" / "explain.html").text


def test_what_cannot_be_explained_is_refused(here, small_run: Path, small_photos: Path, tmp_path: Path):
    photo, out = small_photos / "disc" / "00.jpg", tmp_path / "out"
    (tmp_path / "text.jpg").write_text("no photo")
    for words, reason in (
        ((photo, "--method", "gradcam"), "no method 'gradcam': did you mean grad_cam?"),
        ((photo, "--class", "disk"), "no class 'disk': the classifier knows disc"),
        ((tmp_path / "text.jpg",), "nothing to explain"),
        ((tmp_path / "none*.jpg",), "no such file"),
        ((photo, "--nearest", "-1"), "--nearest"),
    ):
        assert reason in here("explain", small_run, *words, "--out", out).refusal
        assert not out.exists()
    assert "exists" in here("explain", small_run, photo, "--out", tmp_path / "text.jpg").refusal
    assert (tmp_path / "text.jpg").read_text() == "no photo"


# ---- the sheet


def test_the_sheet_shows_each_class(here, odd_run: Path, small_photos: Path, tmp_path: Path):
    before = state(odd_run, small_photos)
    done = here("explain", odd_run, "--out", tmp_path / "out", "--json")
    assert done.code == 1 and state(odd_run, small_photos) == before
    assert done.json["files"] == [str(tmp_path / "out" / "sheet.html")]
    assert {photo["class"] for photo in done.json["photos"]} == set(NAMES)
    (gone,) = (photo for photo in done.json["photos"] if "error" in photo)
    assert (gone["path"], gone["kind"]) == ("gone.jpg", "confused")
    page = Page(tmp_path / "out" / "sheet.html")
    assert page.stands_alone() and len(page.pictures()) == len(done.json["photos"]) - 1
    assert all(name in page.text for name in NAMES) and "no such file" in page.text


def row(path: str, predicted: str, confidence: float, label: str = "a") -> LabelledPrediction:
    return LabelledPrediction(path, label, predicted, confidence, known=True, run=Path("RUN"))


def test_the_sheet_shows_the_most_confident_the_most_confident_error_and_the_least_confident():
    rows = [row("1", "a", 0.6), row("2", "a", 0.9), row("3", "b", 0.5), row("4", "b", 0.8), row("5", "a", 0.4)]
    (section,) = class_sheet._examples_by_class(rows)
    assert (section.label, section.n_correct, section.n) == ("a", 3, 5)
    assert [(kind, one.path) for kind, one in section.examples] == [
        ("typical", "2"),
        ("confused", "4"),
        ("uncertain", "5"),
    ]
    (only,) = class_sheet._examples_by_class(rows[:1])
    assert [kind for kind, _ in only.examples] == ["typical"]
    hardest_first = class_sheet._examples_by_class([*rows, row("6", "b", 0.7, "b"), row("7", "a", 0.7, "c")])
    assert [section.label for section in hardest_first] == ["c", "a", "b"]


def test_the_size_of_the_sheet_is_bounded(odd_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = write_class_sheet(odd_run, tmp_path / "whole", Reporter(quiet=True))
    size = (tmp_path / "whole" / "sheet.html").stat().st_size
    monkeypatch.setattr(explain_page, "MAX_SHEET_CHARACTERS", size // 2)
    cut = write_class_sheet(odd_run, tmp_path / "cut", Reporter(quiet=True))
    assert 0 < len(cut.images) < len(whole.images)
    assert (tmp_path / "cut" / "sheet.html").stat().st_size < size
    assert "of 3 classes with the most errors" in Page(tmp_path / "cut" / "sheet.html").text


def test_without_test_photos_there_is_no_sheet(here, small_run: Path, tmp_path: Path):
    assert "pass the images as PHOTOS" in here("explain", small_run / "bundle", "--out", tmp_path / "out").refusal
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    (run / "predictions.csv").write_text("path,label,predicted\n1.jpg,disc,disc\n")
    assert "is damaged: it has no column 'confidence'" in here("explain", run, "--out", tmp_path / "out").refusal
    (run / "predictions.csv").write_text("path,label,predicted,confidence,known\n")
    assert "no test images" in here("explain", run, "--out", tmp_path / "out").refusal


def test_its_pages_are_chinese_where_that_is_asked_for(
    odd_run: Path, small_photos: Path, tmp_path: Path, here, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(faithfulness, "N_STEPS", 4)
    monkeypatch.setattr(attribution, "N_GRADIENT_STEPS", 2)
    gates = {"backbone.after_2": np.linspace(0.25, 1.5, 6).reshape(2, 3)}
    monkeypatch.setattr(attribution, "attention_maps", lambda network, x: gates)
    (tmp_path / "bad.jpg").write_bytes(b"")
    photos = [small_photos / "disc" / "01.jpg", tmp_path / "bad.jpg"]
    words = ("--out", tmp_path / "out", "--lang", "zh", "--method", "all", "--class", NAMES[0])
    found = here("explain", odd_run, *photos, *words, "--json").json
    assert here("explain", odd_run, "--out", tmp_path / "sheet", "--lang", "zh").code == 1  # a photo is gone
    latin = [*NAMES, *gates, *map(str, photos), "empty file", "logits", "logit", "Grad-CAM", "ReLU", "Petsiuk et al."]
    latin += [one["path"] for photo in found["photos"] for one in photo.get("nearest", [])]
    latin += ["disc", "square", "cross, blue"]  # as the gallery calls them
    for file in ("out/explain.html", "sheet/sheet.html"):
        page = (tmp_path / file).read_text(encoding="utf-8").replace("<wbr>", "")
        assert '<html lang="zh-CN">' in page and "类激活图" in page
        said = english("\n".join(Words(page).words), latin)
        assert said <= {
            "run",
            "x",
            "model",
            "onnx",
            "fieldmark",
            "explain",
            "RUN",
            "PHOTO",
            "out",
            "DIR",
            "no",
            "such",
            "file",
        }
