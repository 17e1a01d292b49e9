"""The texts of Fieldmark's pages and messages, as they stand in the sources: which of them are in a picture?"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from string import Formatter

import yaml
from jinja2.ext import extract_from_ast

from fieldmark.report import html

PACKAGE = Path(__file__).resolve().parents[2] / "fieldmark"


def source_texts() -> set[str]:
    """Every text of templates, Python, the pages of `serve` and `teach`, and translations; {} are placeholders."""
    found = set[str]()
    for file in html.TEMPLATES.glob("*.j2"):
        for _, _, text in extract_from_ast(html.make_environment().parse(file.read_text("utf-8")), ("_",)):
            found.add(text if isinstance(text, str) else str(text[0]) if text else "")
    for file in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text("utf-8")))
        found.update(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for file in (PACKAGE / "core" / "translations").glob("*.yaml"):
        found.update(map(str, yaml.safe_load(file.read_text("utf-8")).values()))
    for page in (PACKAGE / "serve" / "page" / "page.js", PACKAGE / "serve" / "teach_page" / "teach.js"):
        script = page.read_text("utf-8").split("const TEXTS")[1].split("\n};")[0]
        found.update(re.findall(r'\w+: "((?:[^"\\]|\\.)+)"', script))
    return {" ".join(text.split()) for text in found}


def texts_in(shown: Iterable[str], sources: set[str]) -> list[str]:
    """Those of the sources that are shown. A text that no source has, such as the name of a class, is left out."""
    patterns = {text: _pattern(text) for text in sources if _letters(text) >= 4}
    found = set[str]()
    for text in {re.sub(r"\s*[((][\d,]+[))]$", "", " ".join(text.split())) for text in shown}:
        if text in sources and _letters(text) >= 2:
            found.add(text)
        elif matches := [source for source, pattern in patterns.items() if pattern and pattern.fullmatch(text)]:
            found.add(max(matches, key=_letters))
    return sorted(found)


def _letters(text: str) -> int:
    """Number of letters outside the placeholders."""
    return sum(letter.isalpha() for letter in re.sub(r"\{[^}]*\}", "", text))


def _pattern(text: str) -> re.Pattern[str] | None:
    """What the text looks like with values in its placeholders; None if it has none."""
    try:
        parts = [(literal, name) for literal, name, _, _ in Formatter().parse(text)]
    except ValueError:
        return None
    if not any(name is not None for _, name in parts):
        return None
    return re.compile("".join(re.escape(literal) + (".+?" if name is not None else "") for literal, name in parts))
