"""Arguments and options that several commands share, and the fields of a recipe as options."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from fieldmark.core import io
from fieldmark.core.progress import LOGGER
from fieldmark.core.text import sanitize_for_terminal
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

PhotosArgument = Annotated[
    str,
    typer.Argument(
        metavar="PHOTOS", help="Folder with a folder of images per class, or with train/, val/ and test/ of them."
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A run, its bundle, or an exported .onnx file.")]
SHARED_FIELDS = tuple(
    name
    for name in Recipe.model_fields
    if name not in ("quality", "backbone", "attention", "after", "head", "aux", "folds", "fold")
)
"""The fields of a recipe that several networks can share."""
CHECK_OUT_HELP = "New folder for a page of all issues and a CSV for decisions."
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="A named recipe (docs/recipes.md) or a YAML file; options override it."
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted one.")]


def make_recipe(name: str | None, settings: dict[str, Any]) -> Recipe:
    """The recipe of that name or file, overridden by the options that were given."""
    overrides = {field: value for field, value in settings.items() if value is not None}
    return recipes.read_recipe(name).replace(**overrides) if name else Recipe(**overrides)


def print_result(data: Any, lines: Iterable[str], warnings: Iterable[str], as_json: bool) -> None:
    """The result on stdout, as one JSON document (which holds the warnings) or as lines with the warnings on stderr."""
    if as_json:
        print(io.to_json(data))
        return
    for warning in warnings:
        LOGGER.warning("%s", sanitize_for_terminal(warning))
    print("\n".join(map(sanitize_for_terminal, lines)))


def with_recipe_options(command: Callable[..., None], *names: str) -> Callable[..., None]:
    """The command with an option for each of these fields of Recipe (by default all) in place of `**settings`."""
    command_parameters = [
        p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    parameters = []
    for field, info in Recipe.model_fields.items():
        if names and field not in names:
            continue
        text = recipes.help_text(field) + ("" if info.default is None else f" [default: {info.default}]")
        name, type_ = recipes.option_name(field), recipes.value_type(field)
        option = typer.Option(f"{name}/--no-{name[2:]}" if type_ is bool else name, help=text, show_default=False)
        annotation = Annotated[type_ | None, option]
        parameters.append(inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    signature = inspect.Signature([*command_parameters, *parameters])
    with_options.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads the options from
    with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return with_options
