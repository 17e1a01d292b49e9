"""Templates -> pages: single files without scripts or requests."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from fieldmark.core import io
from fieldmark.core.i18n import ENGLISH, Language, format_number
from fieldmark.report import text as wording
from fieldmark.report.charts.frame import palette

TEMPLATES = Path(__file__).parent / "templates"


def make_environment(language: Language = ENGLISH) -> Environment:
    """Jinja environment in which `_("{n} images", n=3)` translates; values are escaped, the texts are not."""
    made = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    numbers = {name: getattr(language, name) for name in ("percent", "interval", "duration")}
    made.filters.update(
        numbers
        | {
            "names": language.join_names,
            "line": language.line,
            "number": format_number,
            "markdown": wording.escape_markdown,
            "sentences": partial(_join_sentences, language),
        }
    )
    made.globals.update({"_": partial(_translate, language), "lang": language.tag})
    return made


def render(template: str, context: dict[str, Any], language: Language = ENGLISH) -> str:
    """The page of a template in templates/; `palette` are the colours of all pages."""
    return make_environment(language).get_template(template).render(palette=Markup(palette(":root")), **context)


def write_page(file: Path, template: str, context: dict[str, Any], language: Language = ENGLISH) -> None:
    """Render the template into a file, atomically; undecodable bytes of file names become question marks."""
    write_text(file, render(template, context, language))


def write_text(file: Path, text: str) -> None:
    """Write a page, a card or a chart, atomically."""
    with io.atomic_path(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def _join_sentences(language: Language, sentences: Iterable[str]) -> Markup:
    return Markup(language.sentence_separator).join(sentence for sentence in sentences if sentence)


def _translate(language: Language, text: str, /, **values: Any) -> Markup:
    return Markup(language.translate(text)).format(**values)
