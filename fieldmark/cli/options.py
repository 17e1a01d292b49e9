"""Words of the command line that several verbs share: their arguments, and the settings of a recipe as options."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

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
    field.name
    for field in dataclasses.fields(Recipe)
    if field.name not in ("quality", "backbone", "attention", "after", "head", "aux", "folds", "fold")
)
"""The settings that several networks can share."""
CHECK_OUT_HELP = "New folder for a page of all findings and a CSV to decide in."
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


def with_recipe_options(command: Callable[..., None], *names: str) -> Callable[..., None]:
    """The verb with an option for each of these fields of Recipe (without names, for all) in place of `**settings`."""
    command_parameters = [
        p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    types, docs, parameters = get_type_hints(Recipe), recipes.field_docs(), []
    for field in dataclasses.fields(Recipe):
        if names and field.name not in names:
            continue
        text = docs[field.name] + ("" if field.default is None else f" [default: {field.default}]")
        name, annotation = recipes.option_name(field.name), types[field.name]
        cli_option = typer.Option(
            f"{name}/--no-{name[2:]}" if annotation is bool else name, help=text, show_default=False
        )
        annotation = Annotated[annotation | None, cli_option]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    signature = inspect.Signature([*command_parameters, *parameters])
    with_options.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads the options from
    with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return with_options
