"""Arguments and options that several commands share, and the fields of a recipe as options."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

PhotosArgument = Annotated[
    str,
    typer.Argument(
        metavar="PHOTOS", help="Folder with a folder of images per class, or with train/, val/ and test/ of them."
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, its bundle, an .onnx file, or hf://user/name.")
]
SHARED_FIELDS = tuple(
    name
    for name in Recipe.model_fields
    if name not in ("quality", "backbone", "attention", "after", "head", "aux", "folds", "fold")
)
"""The fields of a recipe that several networks can share."""
COMMON_FIELDS = ("backbone", "quality", "weights", "image_size", "epochs", "budget", "batch", "lr", "augment")
COMMON_FIELDS += ("group_by", "split_file", "positive", "seed")
"""The fields that --help shows of a command with many; --help-all shows the rest."""
MAX_SHOWN = 20
"""Fields of a recipe that a command's --help shows without hiding the rarer ones."""
CHECK_OUT_HELP = "New folder for a page of all issues and a CSV for decisions."
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="A named recipe, as waste, or a YAML file; options override it."
    ),
]
PrivateHostsOption = Annotated[
    bool,
    typer.Option("--allow-private-hosts", help="Also read https:// addresses of this machine or its own network."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted one.")]


def make_recipe(name: str | None, settings: dict[str, Any]) -> Recipe:
    """The recipe of that name or file, overridden by the options that were given."""
    overrides = {field: value for field, value in settings.items() if value is not None}
    return recipes.read_recipe(name).replace(**overrides) if name else Recipe(**overrides)


def check_token(token: str | None) -> None:
    """Raise `FieldmarkError` if a token was given that no request can carry, or an empty one."""
    # Requests carry it in a header, which takes printable ASCII. An empty one would count as no token at all.
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise FieldmarkError("--token must be of letters, digits and other characters of ASCII, at least one")


def show_all_options(context: typer.Context, is_requested: bool) -> None:
    """The help of a command with the options that --help hides."""
    if is_requested:
        unhide_options(context.command)
        if text := context.get_help():  # with Rich it is printed already
            print(text)
        raise typer.Exit


def unhide_options(command: Any) -> None:
    """Let the help of a command show all its options."""
    for parameter in command.params:
        parameter.hidden = False


HelpAllOption = Annotated[
    bool,
    typer.Option("--help-all", callback=show_all_options, is_eager=True, help="Show all options and exit."),
]


def recipe_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command an option for each of these fields of Recipe (by default all).

    It receives them as `**settings`.
    """
    fields = [field for field in Recipe.model_fields if not names or field in names]
    has_hidden = len(fields) > MAX_SHOWN
    options = [_recipe_option(field, is_hidden=has_hidden and field not in COMMON_FIELDS) for field in fields]
    if has_hidden:
        options.append(_keyword("help_all", False, HelpAllOption))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        signature = inspect.Signature([*(p for p in own if p.kind is not p.VAR_KEYWORD), *options])

        @functools.wraps(command)
        def with_options(*args: Any, help_all: bool = False, **kwargs: Any) -> None:
            command(*args, **kwargs)

        with_options.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads the options from
        with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return with_options

    return decorate


def _recipe_option(field: str, *, is_hidden: bool) -> inspect.Parameter:
    """The option of a field, in the panel of its section."""
    default, section = Recipe.model_fields[field].default, recipes.section(field)
    text = to_markup(recipes.help_text(field)) + ("" if default is None else f" [dim]Default: {default}.[/dim]")
    name, type_ = recipes.option_name(field), recipes.value_type(field)
    flags = f"{name}/--no-{name[2:]}" if type_ is bool else name
    option = typer.Option(flags, help=text, show_default=False, hidden=is_hidden, rich_help_panel=section)
    return _keyword(field, None, Annotated[type_ | None, option])


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def to_markup(text: str) -> str:
    """Text with `code` in bold, for Rich."""
    return re.sub(r"`([^`]+)`", r"[bold]\1[/bold]", escape(text))
