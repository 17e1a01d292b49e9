"""Words like `lr=1e-3..1e-1` -> which settings of a recipe a search varies, and within what."""

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe

HEAD_SPACE = ("exact=true,false", "frozen_lr=3e-4..1e-2", "frozen_epochs=10..60", "label_smoothing=0..0.3")
HEAD_SPACE += ("imbalance=none,weights", "augment=none,standard")
"""What is varied of the head alone, on pooled features that are computed once. (Heads that look at whole maps, as gem
and attention_pool, learn from 64 times as many numbers: a minute a trial, in place of seconds.)"""
FULL_SPACE = ("lr=1e-3..1e-1", "backbone_lr=3e-4..3e-2", "weight_decay=1e-6..1e-3", "label_smoothing=0..0.2")
FULL_SPACE += ("mixup=0..0.4",)
"""What is varied where both phases are trained each time."""
NOT_SEARCHABLE = (
    "seed",
    "devices",
    "nodes",
    "folds",
    "fold",
    "budget",
    "logger",
    "lang",
    "split_file",
    "test_share",
    "group_by",
    "apply",
)
NOT_SEARCHABLE += ("crop_boxes", "positive", "allow_leaks", "monitor", "stream")
"""What no search varies: trials would be evaluated differently, or not differ at all."""
LOG_SCALE_RATIO = 10
"""A range that spans so many times its lower end is searched in proportions."""


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included; in proportions where `log`."""

    low: float
    high: float
    is_integer: bool
    log: bool


def parse_search_space(words: Iterable[str]) -> dict[str, Choices | Range]:
    """`FIELD=LOW..HIGH` or `FIELD=A,B,C` -> field of Recipe -> what it is varied within.

    Raises:
        FieldmarkError: no such field, one that cannot be searched, or values of another kind.
    """
    domains, kinds = dict[str, Choices | Range](), typing.get_type_hints(Recipe)
    for word in words:
        name, _, domain_text = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if name not in kinds or name in NOT_SEARCHABLE or not domain_text.strip():
            free = ", ".join(field for field in kinds if field not in NOT_SEARCHABLE)
            raise FieldmarkError(f"--vary {word}: write FIELD=LOW..HIGH or FIELD=A,B,C, with a field of {free}")
        options = {kind for kind in _kinds(kinds[name]) if kind is not types.NoneType}
        try:
            domains[name] = _parse_domain(domain_text, options)
        except (KeyError, ValueError):
            kind = " or ".join(sorted(kind.__name__ for kind in options))
            raise FieldmarkError(f"--vary {word}: {name} takes {kind}; write LOW..HIGH or A,B,C of it") from None
    return domains


def boundary_recipes(recipe: Recipe, search_space: Mapping[str, Choices | Range]) -> Iterator[Recipe]:
    """The recipe with each of the choices, and with both ends of each range.

    Raises FieldmarkError for a value that no recipe takes.
    """
    for name, domain in search_space.items():
        ends = (
            domain.values
            if isinstance(domain, Choices)
            else [int(end) if domain.is_integer else end for end in (domain.low, domain.high)]
        )
        yield from (recipe.replace(**{name: end}) for end in ends)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _parse_domain(text: str, options: set[type]) -> Choices | Range:
    if ".." in text:
        low, high = (float(end) for end in text.split(".."))
        is_integer = options == {int}
        if (
            not options <= {int, float}
            or not low < high
            or (is_integer and not (low.is_integer() and high.is_integer()))
        ):
            raise ValueError
        return Range(low, high, is_integer, low > 0 and high / low >= LOG_SCALE_RATIO)
    values = re.split(r",(?![^(]*\))", text)  # a comma in brackets belongs to a word, as in se(ratio=8,...)
    return Choices(tuple(_parse_value(value.strip(), options) for value in values))


def _parse_value(text: str, options: set[type]) -> Any:
    if options == {bool}:
        return {"true": True, "false": False}[text.lower()]
    if int in options:
        return int(text)
    if float in options:
        return float(text)
    return None if text == "default" else text
