"""The documentation as a site: `make docs`. Pages are Markdown; the reference comes from the docstrings."""

import ast
import re
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from typer.cli import get_docs_for_click

from fieldmark.cli.main import app
from fieldmark.cli.options import unhide_options
from fieldmark.serve.app import create_app
from fieldmark.serve.limits import Limits

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "fieldmark"

project = "Fieldmark"
copyright = "the Fieldmark developers, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
# quickstart.md has that name already; the notebook's page is a copy. Pages that others include are none by themselves.
exclude_patterns = ["build", "quickstart.ipynb", "guides/networks.md", "reference/routes.md"]
nb_execution_mode = "off"  # a test runs the notebook
html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
pygments_dark_style = "a11y-high-contrast-dark"  # as the light one; the usual one underlines modules like links
smartquotes_action = "qe"  # quotes and ellipses; two hyphens are an option
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline", "colon_fence"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # autodoc describes the members too: an "Attributes:" section is text, or each stands twice
suppress_warnings = ["ref.python"]  # the type `bytes` and fields of that name
default_role = "code"  # docstrings say `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def _command_line(_app) -> None:
    """reference/cli.md: what `fieldmark VERB --help-all` says, by typer's own means."""
    command = typer.main.get_command(app)
    context = typer.Context(command)
    for verb in command.list_commands(context):
        unhide_options(command.get_command(context, verb))
    said = get_docs_for_click(obj=command, ctx=context, name="fieldmark")
    said = re.sub(r"\[/?bold\]", "`", re.sub(r"\[/?dim\]", "", said)).replace("\\[", "[")  # Rich's markup
    said = re.sub(r"^Examples:\n((?:  `.*`\n)+)", _example_block, said, flags=re.MULTILINE)
    (HERE / "reference" / "cli.md").write_text(said.replace("# `fieldmark`", "# Command line", 1))


def _example_block(examples: re.Match) -> str:
    lines = (line.strip().strip("`") for line in examples[1].splitlines())
    return "\n".join(["Examples:", "", "```sh", *lines, "```", ""])


def _packages(_app) -> None:
    """reference/packages/PACKAGE.md for every package: its purpose, and its modules from their docstrings."""
    (HERE / "reference" / "packages").mkdir(exist_ok=True)
    packages = [package.name for package in sorted(PACKAGE.iterdir()) if (package / "__init__.py").is_file()]
    for package in packages:
        page = [f"# fieldmark.{package}", "", _first_line(PACKAGE / package / "__init__.py"), ""]
        for file in sorted((PACKAGE / package).rglob("*.py")):
            name = ".".join(("fieldmark", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
            if name != f"fieldmark.{package}" and not file.stem.startswith("__main"):
                import_module(name)  # now: autodoc imports under TYPE_CHECKING, where pydantic's models cannot be built
                page += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
        (HERE / "reference" / "packages" / f"{package}.md").write_text("\n".join(page), encoding="utf-8")


def http_routes() -> str:
    """reference/routes.md: the routes of the service, from its OpenAPI document."""
    batcher: Any = SimpleNamespace(classifier=None, max_batch_size=1)
    routes = ["| route | |", "|---|---|"]
    for path, methods in create_app(batcher, Limits()).app.openapi()["paths"].items():
        for method, route in methods.items():
            text = " ".join(route.get("description", route["summary"]).split())
            parameters = [f"`{given['name']}`: {given['schema']['type']}" for given in route.get("parameters", ())]
            routes.append(f"| `{method.upper()} {path}` | {text} {'; '.join(parameters)} |")
    return "\n".join(routes) + "\n"


def _notebook(_app) -> None:
    shutil.copyfile(HERE / "quickstart.ipynb", HERE / "quickstart_notebook.ipynb")


def _dark_images(_app, _page: str, source: list[str]) -> None:
    """Beside each image NAME-light.webp its NAME-dark.webp, of which the theme shows one."""
    pair = r"![\1](\2-light.webp){.only-light}\n![\1](\2-dark.webp){.only-dark}"
    source[0] = re.sub(r"!\[([^\]]*)\]\(([^)\s]+)-light\.webp\)", pair, source[0])


def _finish_page(_app, page: str, _template, context: dict, _doctree) -> None:
    """What static/site.css needs to know, and the language of pages in Chinese: browsers choose the glyphs by it."""
    if page.endswith(".zh-CN"):
        context["language"] = "zh-CN"
    body = context.get("body") or ""
    body = re.sub(r'<span class="pre">([^<]{1,28})</span>', r'<span class="pre whole">\1</span>', body)
    body = re.sub(r"(</(?:em|strong|a|code)>\)?) -- ", r"\1 – ", body)  # between a parameter and its text
    context["body"] = re.sub(r"<td>(<p>.*?</p>)</td>", _sized_cell, body, flags=re.DOTALL)


def _sized_cell(cell: re.Match) -> str:
    characters = len(re.sub(r"<[^>]*>", "", cell[1]))
    return f'<td class="{"long" if characters > 36 else "medium"}">{cell[1]}</td>' if characters > 12 else cell[0]


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]


def _no_type_before_a_colon(_app, what: str, _name, _thing, _options, lines: list[str]) -> None:
    """Napoleon takes what stands before the first colon of an attribute's text for its type; ours are annotated.

    Python's own text for the fields of a named tuple says nothing.
    """
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def setup(app) -> None:
    app.connect("builder-inited", _command_line)
    app.connect("builder-inited", _packages)
    app.connect("builder-inited", lambda _: (HERE / "reference" / "routes.md").write_text(http_routes(), "utf-8"))
    app.connect("builder-inited", _notebook)
    app.connect("source-read", _dark_images)
    app.connect("html-page-context", _finish_page)
    app.connect("autodoc-process-docstring", _no_type_before_a_colon, priority=400)  # napoleon comes at 500
