"""Words like `lr=1e-3..1e-1` -> which settings of a recipe a search varies, and within what."""

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes.recipe import Recipe

HEAD = ("exact=true,false", "frozen_lr=3e-4..1e-2", "frozen_epochs=10..60", "label_smoothing=0..0.3")
HEAD += ("imbalance=none,weights", "augment=none,standard")
"""What is varied of the head alone, on pooled features that are computed once. (Heads that look at whole maps, as gem
and attention_pool, learn from 64 times as many numbers: a minute a trial, in place of seconds.)"""
WHOLE = ("lr=1e-3..1e-1", "backbone_lr=3e-4..3e-2", "weight_decay=1e-6..1e-3", "label_smoothing=0..0.2")
WHOLE += ("mixup=0..0.4",)
"""What is varied where both phases are trained each time."""
FIXED = ("seed", "devices", "nodes", "folds", "fold", "budget", "logger", "lang", "split_file", "group_by", "apply")
FIXED += ("crop_boxes", "positive", "allow_leaks", "monitor", "stream")
"""What no search varies: it would compare trials that were judged differently, or change nothing."""
ORDERS = 10
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
    whole: bool
    log: bool


def space(words: Iterable[str]) -> dict[str, Choices | Range]:
    """`FIELD=LOW..HIGH` or `FIELD=A,B,C` -> field of Recipe -> what it is varied within.

    Raises:
        FieldmarkError: no such field, one that cannot be searched, or values of another kind.
    """
    found, kinds = dict[str, Choices | Range](), typing.get_type_hints(Recipe)
    for word in words:
        name, _, said = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if name not in kinds or name in FIXED or not said.strip():
            free = ", ".join(field for field in kinds if field not in FIXED)
            raise FieldmarkError(f"--vary {word}: write FIELD=LOW..HIGH or FIELD=A,B,C, with a field of {free}")
        options = {kind for kind in _kinds(kinds[name]) if kind is not types.NoneType}
        try:
            found[name] = _within(said, options)
        except (KeyError, ValueError):
            kind = " or ".join(sorted(kind.__name__ for kind in options))
            raise FieldmarkError(f"--vary {word}: {name} takes {kind}; write LOW..HIGH or A,B,C of it") from None
    return found


def extremes(recipe: Recipe, varied: Mapping[str, Choices | Range]) -> Iterator[Recipe]:
    """The recipe with each of the choices, and with both ends of each range.

    Raises FieldmarkError for a value that no recipe takes.
    """
    for name, of in varied.items():
        ends = of.values if isinstance(of, Choices) else [int(end) if of.whole else end for end in (of.low, of.high)]
        yield from (replace(recipe, **{name: end}) for end in ends)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _within(said: str, options: set[type]) -> Choices | Range:
    if ".." in said:
        low, high = (float(end) for end in said.split(".."))
        whole = options == {int}
        if not options <= {int, float} or not low < high or (whole and not (low.is_integer() and high.is_integer())):
            raise ValueError
        return Range(low, high, whole, low > 0 and high / low >= ORDERS)
    values = re.split(r",(?![^(]*\))", said)  # a comma in brackets belongs to a word, as in se(ratio=8,...)
    return Choices(tuple(_value(value.strip(), options) for value in values))


def _value(text: str, options: set[type]) -> Any:
    if options == {bool}:
        return {"true": True, "false": False}[text.lower()]
    if int in options:
        return int(text)
    if float in options:
        return float(text)
    return None if text == "default" else text
