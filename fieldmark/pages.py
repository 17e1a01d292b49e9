"""Template + facts -> a page of one file, without scripts or requests."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from fieldmark import charts, wording

FILTERS = ("percent", "interval", "figure", "duration", "markdown")  # functions of wording.py


def render(template: str, facts: dict[str, Any]) -> str:
    """The template of that name in templates/; `palette` are the colours of all pages."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update({name: getattr(wording, name) for name in FILTERS})
    return environment.get_template(template).render(palette=Markup(charts.palette(":root")), **facts)
