"""Every English text has a translation with the same placeholders, and translated pages hold no English."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from string import Formatter

import pytest
import yaml
from jinja2.ext import extract_from_ast
from PIL import Image
from told import Words, english, make_run, write_csv

import fieldmark
from fieldmark.audit.check import check
from fieldmark.audit.report import LabelQuality
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, LANGUAGES, get_language
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import UnreadableFile
from fieldmark.data.readers.files import Folder
from fieldmark.recipes.recipe import Recipe
from fieldmark.report import html
from fieldmark.report.check_page import write_check
from fieldmark.report.run_report import rewrite_report, write_report

PACKAGE = Path(fieldmark.__file__).parent
TRANSLATIONS = PACKAGE / "core" / "translations"
TRANSLATORS = {"_", "language", "gettext_noop", "ENGLISH"}
"""Names by which texts are translated, in Python and in templates."""
OTHERS = [code for code in LANGUAGES if code != "en"]


def translatable_texts() -> dict[str, str]:
    """Every text that is passed to a translator -> the file that it is in."""
    texts: dict[str, str] = {}
    for file in sorted(html.TEMPLATES.glob("*.j2")):
        tree = html.make_environment().parse(file.read_text(encoding="utf-8"))
        for _, _, text in extract_from_ast(tree, ("_",)):
            texts[str(text if isinstance(text, str) else text[0] if text else None)] = file.name
    for file in sorted(PACKAGE.rglob("*.py")):
        names = {"self"} if file.name == "i18n.py" else TRANSLATORS
        for call in (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) in names and call.args and isinstance(call.args[0], ast.Constant):
                texts[str(call.args[0].value)] = file.name
    return texts


def placeholders(text: str) -> set[tuple[str, str | None]]:
    return {(name, form) for _, name, form, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("code", OTHERS)
def test_every_text_is_translated_with_the_same_placeholders(code: str):
    texts, translations = translatable_texts(), get_language(code).texts
    assert len(texts) > 150
    assert not {text: file for text, file in texts.items() if text not in translations}, "without a translation"
    assert not [text for text in translations if text not in texts], "unused"
    for text in texts:
        translation = translations[text]
        assert placeholders(translation) == placeholders(text), text
        assert translation.strip() and not re.search(r'[<>&"]', text + translation), "pages do not escape texts"


@pytest.mark.parametrize("code", OTHERS)
def test_each_key_is_unique(code: str):
    lines = (TRANSLATIONS / f"{code}.yaml").read_text(encoding="utf-8").splitlines()
    keys = [line.partition('": "')[0] for line in lines if line.startswith('"')]
    assert len(keys) == len(set(keys)) == len(get_language(code).texts)


def test_numbers_are_written_as_people_write_them():
    zh, space = get_language("zh"), "\N{NO-BREAK SPACE}"
    assert (ENGLISH.percent(0.9213), zh.percent(0.9213)) == (f"92.1{space}%", "92.1%")
    assert (ENGLISH.interval((0.89, 0.944)), zh.interval((0.89, 0.944))) == (f"89.0–94.4{space}%", "89.0%～94.4%")
    assert (ENGLISH.duration(292), zh.duration(292), zh.duration(12.34)) == ("4 min 52 s", "4 分 52 秒", "12.3 秒")
    assert zh.percent(None) == zh.interval(None) == zh.interval((None, 1)) == zh.duration("nan") == "–"
    assert ENGLISH("{a} % of {text}", a=5, text="{x} %") == f"5{space}% of {{x}} %", "what is put in stays as it is"


def test_the_language_of_a_recipe_is_one_that_is_there():
    for code in LANGUAGES:
        assert Recipe(lang=code).lang == code and get_language(code).tag == LANGUAGES[code]
    with pytest.raises(FieldmarkError, match="--lang is 'de', but can be en or zh"):
        Recipe(lang="de")


@pytest.mark.parametrize(
    "classes", [["玉米叶", "锈病"], [f"第{k}类" for k in range(7)], [f"第{k}类" for k in range(22)]]
)
def test_nothing_english_is_left_in_chinese(tmp_path, classes):
    metrics = make_run(tmp_path / "运行", classes, per_class=12)
    for name in classes:
        (tmp_path / "照片" / name).mkdir(parents=True)
        for k in range(12):
            Image.new("RGB", (9, 9), (9 * k, 80, 80)).save(tmp_path / "照片" / name / f"{k}.jpg")
    page, card, curves = write_report(tmp_path / "运行", Folder(tmp_path / "照片"), get_language("zh"))
    shown = page.read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in shown and all(name in shown for name in classes)
    environment = [str(value) for pair in metrics["environment"].items() for value in pair]
    names = [*environment, *metrics["warnings"], "audit.json", "quarantine.csv", "model.onnx", ".jpg", "--epochs"]
    names += ["efficientnet_lite0", "RUN/bundle", "9f3c51a2", "truncated", "<i>bad</i>", "3.1e-07"]
    named = ["a/2.jpg", "x.jpg", "decisions.csv", "fieldmark check", "known", "False", "--augment strong"]
    assert not english("\n".join(Words(shown).words), names + named)
    assert not english("\n".join(Words(curves.read_text(encoding="utf-8")).words), [])
    text = card.read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---")[1])["language"] == "zh"
    body = re.sub(r"```.*?```", "", text.partition("\n---\n")[2], flags=re.DOTALL).replace("\\", "")
    warnings = [warning.replace("<", "&lt;") for warning in metrics["warnings"]]
    assert not english(body, [*warnings, *names, "torch", "`known`", "false", "bundle.json"])


def test_the_page_of_check_is_chinese_too(small_photos, tmp_path):
    found = check(small_photos, Reporter(quiet=True), quick=True)
    path = found.catalog.photos[0].path
    issues = {
        "unreadable": (UnreadableFile(path, "truncated"),),
        "duplicates": (tuple(photo.path for photo in found.catalog.photos[:10]),),
        "label_errors": (LabelQuality(path, "disc", "square", 0.1),),
    }
    found = replace(found, report=replace(found.report, **issues))
    page = write_check(found, tmp_path / "out", "zh")[0].read_text(encoding="utf-8")
    names = [*found.report.classes, "truncated", "decisions.csv", "labels.csv", "--apply", "photos"]
    assert "疑似标签错误" in page and "另有 2 张" in page
    assert not english("\n".join(Words(page).words), names)


def test_a_report_can_be_written_anew_in_another_language(tmp_path, here):
    run = tmp_path / "run"
    make_run(run, ["a", "b"])
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "a" / "0.jpg")
    audit = json.loads((run / "audit.json").read_text())
    (run / "audit.json").write_text(json.dumps(audit | {"folder": str(tmp_path / "photos")}))
    write_csv(run / "predictions.csv", "path,label,predicted,confidence,known", [("a/0.jpg", "a", "b", 0.9, True)])
    done = here("report", run, "--lang", "zh", "--json")
    assert (done.code, [Path(file).name for file in done.json["files"]]) == (
        0,
        ["report.html", "card.md", "curves.svg"],
    )
    shown = (run / "report.html").read_text(encoding="utf-8")
    assert "Confusion matrix" not in shown and "混淆矩阵" in shown and "data:image/jpeg" in shown
    (run / "recipe.yaml").write_text("lang: zh")
    assert rewrite_report(run)[1] == [] and "混淆矩阵" in (run / "report.html").read_text(encoding="utf-8")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    done = here("report", run, "--lang", "en")
    assert done.code == 2 and "it would lose its pictures" in done.err and "--photos" in done.err
    assert "data:image/jpeg" in (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    done = here("report", run, "--lang", "en")
    assert done.code == 1 and "the images cannot be read" in done.err and "report.html" in done.out
    assert "en or zh" in here("report", run, "--lang", "de").refusal
    assert "metrics.json" in here("report", tmp_path).refusal
