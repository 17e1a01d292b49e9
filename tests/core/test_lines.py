"""Warnings on the pages of another language: every line that Fieldmark writes is known, and no value is lost."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

import fieldmark
from fieldmark.audit.check import LABEL_CHECK_SKIPPED
from fieldmark.audit.report import AuditReport, LabelQuality, Outlier, Shortcut
from fieldmark.audit.warning_lines import class_size_warnings, issue_warnings
from fieldmark.core.i18n import ENGLISH, LANGUAGES, get_language
from fieldmark.core.lines import READ_ON, compile_patterns, translate_line
from fieldmark.data.catalog import Photo, UnreadableFile, lost_class_warnings, merge_spellings, similar_class_warnings

PACKAGE = Path(fieldmark.__file__).parent
OTHERS = [code for code in LANGUAGES if code != "en"]
SETS = ((("a/1.jpg", "b/2.jpg"),) * 3) + (tuple(f"a/{k}.jpg" for k in range(2000)),)


def patterns_of(code: str) -> dict[str, str]:
    return yaml.safe_load((PACKAGE / "core" / "translations" / f"{code}_lines.yaml").read_text(encoding="utf-8"))


def written_lines() -> list[str]:
    """Lines as the code writes them."""
    report = AuditReport(
        classes={"a": 5, "b": 2000},
        n_given_groups=2,
        unreadable=(UnreadableFile("a/1.jpg", "truncated"),),
        duplicates=SETS,
        near_duplicates=SETS,
        conflicts=SETS[:1],
        leaks=SETS,
        near_leaks=SETS[:1],
        group_leaks=tuple(f"patient {k}" for k in range(300)),
        outliers=tuple(
            Outlier("a/1.jpg", kind, "") for kind in ("dark", "bright", "blank", "blurred", "small", "long")
        ),
        shortcuts=(Shortcut("a", "format", "JPEG", 0.97, 0.0),) * 9,
        label_errors=(LabelQuality("a/1.jpg", "a", "b", 0.1),),
    )
    photos = [Photo("train/Glass/1.jpg", "Glass", "train"), Photo("test/glass/1.jpg", "glass", "test")]
    return [
        *issue_warnings(report),
        *class_size_warnings(Counter({"a": 1, "b": 2000}), has_splits=False),
        *lost_class_warnings(["a", "b"]),
        *merge_spellings(photos).warnings,
        *similar_class_warnings(["A", "a"]),
        LABEL_CHECK_SKIPPED,
    ]


@pytest.mark.parametrize("code", OTHERS)
def test_lines_that_are_written_are_translated(code):
    language = get_language(code)
    for line in written_lines():
        translated = language.line(line)
        assert translated != line, line
        numbers = set(re.findall(r"\d[\d,]*", line.removesuffix(READ_ON)))
        assert numbers == set(re.findall(r"\d[\d,]*", translated.split("；全部见")[0])), (line, translated)
        assert "left out" not in translated and "photo" not in translated.replace("fieldmark check PHOTOS", ""), (
            translated
        )
    assert ENGLISH.line("2 photos") == "2 photos"


@pytest.mark.parametrize("code", OTHERS)
def test_each_pattern_fits_its_own_line(code):
    """With any values; and its translation has the same names, and no markup."""
    patterns = patterns_of(code)
    compiled = compile_patterns(patterns)
    for text, translation in patterns.items():
        names = re.findall(r"\{(\w+)\}", text)
        assert sorted(names) == sorted(re.findall(r"\{(\w+)\}", translation)), text
        assert not re.search(r"[<>&]", translation)
        values = {
            name: "1,234" if name.startswith("n") and name not in ("names", "name") else f"«{name}»" for name in names
        }
        for plural in ("", "s"):
            line = re.sub(r"\[s\]", plural, text).format(**values)
            assert translate_line(line, compiled) == translation.format(**values), line


@pytest.mark.parametrize("code", OTHERS)
def test_no_pattern_is_stale(code):
    """The words of each pattern stand in the code."""
    constants = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                constants.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                constants.append(node.value)
    code_text = "\n".join(constants)
    for text in patterns_of(code):
        for words in re.split(r"\{\w+\}|\[s\]|'|\"|, |(?<=is read as) \w+", text):
            if len(words.strip(" :")) > 13:
                assert words.strip(" :") in code_text, (text, words)
