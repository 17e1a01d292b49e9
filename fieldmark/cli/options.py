"""Words of the command line that several verbs share: their arguments, and the settings of a recipe as options."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

PhotosArgument = Annotated[
    str,
    typer.Argument(
        metavar="PHOTOS", help="Folder with a folder of photos per class, or with train/, val/ and test/ of them."
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A run, its bundle, or an exported .onnx file.")]
SHARED_FIELDS = tuple(
    name
    for name in Recipe.model_fields
    if name not in ("quality", "backbone", "attention", "after", "head", "aux", "folds", "fold")
)
"""The settings that several networks can share."""
CHECK_OUT_HELP = "New folder for a page of all findings and a CSV to decide in."
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


def with_recipe_options(command: Callable[..., None], *names: str) -> Callable[..., None]:
    """The verb with an option for each of these fields of Recipe (without names, for all) in place of `**settings`."""
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
