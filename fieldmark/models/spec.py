"""Words <-> constructors: `se(ratio=8)` <-> partial(SE, ratio=8), `-1:mask` <-> {-1: Mask}, and whole networks.

The words are what CLI, YAML and bundle hold. They are read as Python's call syntax with literal values; nothing is run.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.attention import Attention, Replace
from fieldmark.models.bilinear import Bilinear, SelfProduct
from fieldmark.models.gates import CBAM, ECA, ELA, GCT, SE, CoordinateAttention, Mask
from fieldmark.models.heads import AttentionPool, ClassicHead, GeM, LinearHead

ATTENTIONS: dict[str, Callable[..., Any]] = {
    "none": Attention,
    "se": SE,
    "cbam": CBAM,
    "eca": ECA,
    "coordinate": CoordinateAttention,
    "ela": ELA,
    "gct": GCT,
    "mask": Mask,
}
HEADS: dict[str, Callable[..., Any]] = {
    "linear": LinearHead,
    "classic": ClassicHead,
    "gem": GeM,
    "attention_pool": AttentionPool,
    "bilinear": Bilinear,
    "self_product": SelfProduct,
}
NETWORK_OPTIONS = ("attention", "after", "head", "aux")

MAX_LISTED_NAMES = 12  # names that an error can list
YAML_WORDS = {"true": True, "false": False, "null": None}


def parse_attention(word: str) -> Callable[..., Attention] | Replace:
    """`se(ratio=8)` -> the constructor `(channels, reference=None) -> Attention`, `replace(se)` -> Replace of it."""
    match _parse_expression(word):
        case ast.Call(func=ast.Name(id="replace"), args=[made], keywords=[]):
            return Replace(_parse_constructor(made, word, ATTENTIONS, "attention"))
        case tree:
            return _parse_constructor(tree, word, ATTENTIONS, "attention")


def parse_gate(word: str) -> Callable[..., Attention]:
    """`se(ratio=8)` -> the constructor `(channels, reference=None) -> Attention`."""
    return _parse_constructor(_parse_expression(word), word, ATTENTIONS, "attention")


def parse_head(word: str) -> Callable[..., Any]:
    """`bilinear(reduced=64)` -> the constructor `(channels, classes) -> Head`."""
    return _parse_constructor(_parse_expression(word), word, HEADS, "head")


def parse_after(words: str) -> dict[int, Callable[..., Attention]]:
    """`-1:mask,-2:se(ratio=8)` -> stage number -> attention constructor."""
    tree = _parse_expression("{" + words + "}")
    if not isinstance(tree, ast.Dict):
        raise FieldmarkError(f"after={words!r} should read STAGE:ATTENTION,... as in -1:mask,-2:se(ratio=8)")
    slots = {}
    for key, value in zip(tree.keys, tree.values, strict=True):
        try:
            stage = _parse_literal(key, words)
        except FieldmarkError:
            stage = None
        if type(stage) is not int or stage in slots:
            raise FieldmarkError(f"after={words!r}: stages are numbers, each once, -1 the last")
        slots[stage] = _parse_constructor(value, words, ATTENTIONS, "attention")
    return slots


def parse_network(words: str) -> dict[str, str]:
    """`resnet50+after=-1:mask+head=bilinear(reduced=64)` -> the words by keyword of `build`."""
    backbone, *parts = re.split(r"\+([a-z_]+)=", words)
    names, values = parts[::2], parts[1::2]
    for name in names:
        if name not in NETWORK_OPTIONS or names.count(name) > 1:
            raise FieldmarkError(
                f"{words!r}: after the backbone may come {', '.join(NETWORK_OPTIONS)}, each once as +NAME=..."
            )
    return {"backbone": backbone, **dict(zip(names, values, strict=True))}


def parse_bool(word: str | bool | None, name: str) -> bool:
    """`true` or `false`."""
    value = YAML_WORDS.get(word.lower()) if isinstance(word, str) else bool(word)
    if not isinstance(value, bool):
        raise FieldmarkError(f"{name}={word}: can be true or false")
    return value


def format_constructor(constructor: Callable[..., Any] | Replace) -> str:
    """A constructor -> its words; one that is not ours gets its own name, which cannot be read back."""
    if isinstance(constructor, Replace):
        return f"replace({format_constructor(constructor.constructor)})"
    if isinstance(constructor, partial):
        if constructor.args:
            raise FieldmarkError(f"{constructor} cannot be written down: give its settings by name")
        arguments = {key: getattr(value, "item", lambda v=value: v)() for key, value in constructor.keywords.items()}
        values = ",".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{format_constructor(constructor.func)}({values})" if values else format_constructor(constructor.func)
    for word, candidate in (ATTENTIONS | HEADS).items():
        if candidate is constructor:
            return word
    return f"{constructor.__module__}.{getattr(constructor, '__qualname__', repr(constructor))}"


def format_after(after: Mapping[int, Callable[..., Any]]) -> str:
    """{-1: Mask} -> `-1:mask`."""
    return ",".join(f"{stage}:{format_constructor(constructor)}" for stage, constructor in after.items())


def format_network(network_spec: Mapping[str, Any]) -> str:
    """A network's `spec` -> `resnet50+after=-1:mask`, which `build` reads."""
    extras = (
        f"+{name}={str(network_spec[name]).lower() if name == 'aux' else network_spec[name]}"
        for name in NETWORK_OPTIONS
        if network_spec[name]
    )
    return network_spec["backbone"] + "".join(extras)


def lookup(name: str, names: Mapping[str, Any], kind: str) -> Any:
    """The table's entry of that name; FieldmarkError naming close ones, or all where they are few."""
    if name in names:
        return names[name]
    close = get_close_matches(name.lower(), names, 3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    available = f"there are {', '.join(names)}" if names else "there is none"
    if len(names) > MAX_LISTED_NAMES:
        available = "`fieldmark zoo` lists them all"
    raise FieldmarkError(f"no {kind} {name!r}: {hint}{available}")


def _parse_expression(words: str) -> ast.expr:
    try:
        return ast.parse(words.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FieldmarkError(f"cannot read {words!r}: write NAME or NAME(key=value,...)") from error


def _parse_literal(node: ast.expr | None, words: str) -> Any:
    if isinstance(node, ast.Name) and node.id in YAML_WORDS:
        return YAML_WORDS[node.id]
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]  # None (from {**x}) raises ValueError as well
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise FieldmarkError(f"cannot read {words!r}: a value is a number, True, False, None or (1, 2)") from error


def _parse_constructor(node: ast.expr, words: str, names: Mapping[str, Any], kind: str) -> Callable[..., Any]:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name | ast.Attribute) or call.args or any(k.arg is None for k in call.keywords):
        raise FieldmarkError(f"cannot read {words!r}: write NAME or NAME(key=value,...)")
    constructor = lookup(ast.unparse(call.func), names, kind)
    parameters = inspect.signature(constructor).parameters.values()
    keys = {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    arguments = {str(keyword.arg): _parse_literal(keyword.value, words) for keyword in call.keywords}
    for key in arguments:
        lookup(key, keys, f"setting of {kind} {ast.unparse(call.func)}")
    constructor_with_arguments = partial(constructor, **arguments) if arguments else constructor
    try:
        # Without memory: values that cannot be show before anything is built. torch only warns of a width of zero.
        with torch.device("meta"), warnings.catch_warnings(action="error"):
            constructor_with_arguments(64, 64)
    except Exception as error:  # whatever torch says about a value of the user's
        raise FieldmarkError(f"{words!r} cannot be made: {str(error).partition(chr(10))[0]}") from error
    return constructor_with_arguments
