"""Template + facts -> a page of one file, without scripts or requests."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from fieldmark.core.i18n import ENGLISH, Language, figure
from fieldmark.report import text as wording
from fieldmark.report.charts import svg

TEMPLATES = Path(__file__).parent / "templates"


def environment(language: Language = ENGLISH) -> Environment:
    """In a template `_("{n} photos", n=3)` says a text; what is put into it is escaped, the text itself is ours."""
    made = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    numbers = {name: getattr(language, name) for name in ("percent", "interval", "duration", "listed")}
    made.filters.update(numbers | {"figure": figure, "markdown": wording.markdown, "flow": partial(_flow, language)})
    made.globals.update({"_": partial(_say, language), "lang": language.tag})
    return made


def render(template: str, facts: dict[str, Any], language: Language = ENGLISH) -> str:
    """The template of that name in templates/; `palette` are the colours of all pages."""
    return environment(language).get_template(template).render(palette=Markup(svg.palette(":root")), **facts)


def _flow(language: Language, sentences: Iterable[str]) -> Markup:
    return Markup(language.between).join(sentence for sentence in sentences if sentence)


def _say(language: Language, text: str, /, **values: Any) -> Markup:
    return Markup(language.translated(text)).format(**values)
