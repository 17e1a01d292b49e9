"""Words of the command line that several verbs share: their arguments, and the settings of a recipe as options."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

Photos = Annotated[
    str,
    typer.Argument(
        metavar="PHOTOS", help="Folder with a folder of photos per class, or with train/, val/ and test/ of them."
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, its bundle, or an exported .onnx file.")]
ROUTINE = tuple(
    field.name
    for field in dataclasses.fields(Recipe)
    if field.name not in ("quality", "backbone", "attention", "after", "head", "aux", "folds", "fold")
)
"""The settings that several networks can share."""
OUT = "New folder for a page of all findings and a CSV to decide in."
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


def with_settings(verb: Callable[..., None], *names: str) -> Callable[..., None]:
    """The verb with an option for each of these fields of Recipe (without names, for all) in place of `**settings`."""
    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    types, texts, parameters = get_type_hints(Recipe), recipes.documented(), []
    for field in dataclasses.fields(Recipe):
        if names and field.name not in names:
            continue
        text = texts[field.name] + ("" if field.default is None else f" [default: {field.default}]")
        name, kind = recipes.option(field.name), types[field.name]
        flag = typer.Option(f"{name}/--no-{name[2:]}" if kind is bool else name, help=text, show_default=False)
        kind = Annotated[kind | None, flag]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    @functools.wraps(verb)
    def with_options(*args: Any, **kwargs: Any) -> None:
        verb(*args, **kwargs)

    signature = inspect.Signature([*own, *parameters])
    with_options.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads the options from
    with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return with_options


def plain(name: str) -> str:
    """A name without line breaks and other control characters, which could play tricks on a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)
