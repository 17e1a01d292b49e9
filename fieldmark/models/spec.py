"""Text <-> constructors: `se(ratio=8)` <-> partial(SE, ratio=8), `-1:mask` <-> {-1: Mask}, and whole networks.

The command line, YAML files and bundles hold such text. It is parsed as Python call syntax with literal values, and
never executed.
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
from fieldmark.models.heads import AttentionPool, ClassicHead, GeM, LinearHead, MultiStage
from fieldmark.models.network import NetworkSpec

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
    "multi_stage": MultiStage,
    "classic": ClassicHead,
    "gem": GeM,
    "attention_pool": AttentionPool,
    "bilinear": Bilinear,
    "self_product": SelfProduct,
}
NETWORK_OPTIONS = ("attention", "after", "head", "aux")

MAX_LISTED_NAMES = 12  # names that an error lists
YAML_CONSTANTS = {"true": True, "false": False, "null": None}


def parse_attention(text: str) -> Callable[..., Attention] | Replace:
    """`se(ratio=8)` -> constructor `(channels, reference=None) -> Attention`; `replace(se)` -> Replace of it."""
    match _parse_expression(text):
        case ast.Call(func=ast.Name(id="replace"), args=[made], keywords=[]):
            return Replace(_parse_constructor(made, text, ATTENTIONS, "attention"))
        case tree:
            return _parse_constructor(tree, text, ATTENTIONS, "attention")


def parse_gate(text: str) -> Callable[..., Attention]:
    """`se(ratio=8)` -> constructor `(channels, reference=None) -> Attention`."""
    return _parse_constructor(_parse_expression(text), text, ATTENTIONS, "attention")


def parse_head(text: str) -> Callable[..., Any]:
    """`bilinear(reduced=64)` -> constructor `(channels, classes) -> Head`."""
    return _parse_constructor(_parse_expression(text), text, HEADS, "head")


def parse_after(text: str) -> dict[int, Callable[..., Attention]]:
    """`-1:mask,-2:se(ratio=8)` -> stage index -> attention constructor."""
    tree = _parse_expression("{" + text + "}")
    if not isinstance(tree, ast.Dict):
        raise FieldmarkError(f"after={text!r}: write STAGE:ATTENTION,... as in -1:mask,-2:se(ratio=8)")
    slots = {}
    for key, value in zip(tree.keys, tree.values, strict=True):
        try:
            stage = _parse_literal(key, text)
        except FieldmarkError:
            stage = None
        if type(stage) is not int or stage in slots:
            raise FieldmarkError(f"after={text!r}: stages are integers, each once, -1 the last")
        slots[stage] = _parse_constructor(value, text, ATTENTIONS, "attention")
    return slots


def parse_network(text: str) -> dict[str, str]:
    """`resnet50+after=-1:mask+head=bilinear(reduced=64)` -> text by keyword argument of `build`."""
    backbone, *parts = re.split(r"\+([a-z_]+)=", text)
    names, values = parts[::2], parts[1::2]
    for name in names:
        if name not in NETWORK_OPTIONS or names.count(name) > 1:
            raise FieldmarkError(
                f"{text!r}: write the backbone, then any of {', '.join(NETWORK_OPTIONS)} once as +NAME=..."
            )
    return {"backbone": backbone, **dict(zip(names, values, strict=True))}


def parse_bool(text: str | bool | None, name: str) -> bool:
    """Parse `true` or `false`; None is False."""
    value = YAML_CONSTANTS.get(text.lower()) if isinstance(text, str) else bool(text)
    if not isinstance(value, bool):
        raise FieldmarkError(f"{name}={text}: must be true or false")
    return value


def format_constructor(constructor: Callable[..., Any] | Replace) -> str:
    """The inverse of the parsers; a constructor without a name here gets its qualified name, which cannot be parsed."""
    if isinstance(constructor, Replace):
        return f"replace({format_constructor(constructor.constructor)})"
    if isinstance(constructor, partial):
        if constructor.args:
            raise FieldmarkError(f"cannot write {constructor} as text: pass its arguments by keyword")
        arguments = {key: getattr(value, "item", lambda v=value: v)() for key, value in constructor.keywords.items()}
        values = ",".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{format_constructor(constructor.func)}({values})" if values else format_constructor(constructor.func)
    for text, candidate in (ATTENTIONS | HEADS).items():
        if candidate is constructor:
            return text
    return f"{constructor.__module__}.{getattr(constructor, '__qualname__', repr(constructor))}"


def format_after(after: Mapping[int, Callable[..., Any]]) -> str:
    """{-1: Mask} -> `-1:mask`."""
    return ",".join(f"{stage}:{format_constructor(constructor)}" for stage, constructor in after.items())


def format_network(network_spec: NetworkSpec) -> str:
    """The text that `build` parses, such as `resnet50+after=-1:mask`."""
    options = {name: getattr(network_spec, name) for name in NETWORK_OPTIONS}
    extras = (f"+{name}={'true' if value is True else value}" for name, value in options.items() if value)
    return network_spec.backbone + "".join(extras)


def lookup(name: str, names: Mapping[str, Any], kind: str) -> Any:
    """The entry with that name; FieldmarkError with close names, or all if they are few."""
    if name in names:
        return names[name]
    close = get_close_matches(name.lower(), names, 3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    available = f"choose from {', '.join(names)}" if names else "there is none"
    if len(names) > MAX_LISTED_NAMES:
        available = "`fieldmark zoo` lists all"
    raise FieldmarkError(f"no {kind} {name!r}: {hint}{available}")


def _parse_expression(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FieldmarkError(f"cannot read {text!r}: write NAME or NAME(key=value,...)") from error


def _parse_literal(node: ast.expr | None, text: str) -> Any:
    if isinstance(node, ast.Name) and node.id in YAML_CONSTANTS:
        return YAML_CONSTANTS[node.id]
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]  # None (from {**x}) raises ValueError as well
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise FieldmarkError(
            f"cannot read {text!r}: a value is a number, True, False, None or a tuple such as (1, 2)"
        ) from error


def _parse_constructor(node: ast.expr, text: str, names: Mapping[str, Any], kind: str) -> Callable[..., Any]:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name | ast.Attribute) or call.args or any(k.arg is None for k in call.keywords):
        raise FieldmarkError(f"cannot read {text!r}: write NAME or NAME(key=value,...)")
    constructor = lookup(ast.unparse(call.func), names, kind)
    parameters = inspect.signature(constructor).parameters.values()
    keys = {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    arguments = {str(keyword.arg): _parse_literal(keyword.value, text) for keyword in call.keywords}
    for key in arguments:
        lookup(key, keys, f"argument of {kind} {ast.unparse(call.func)}")
    constructor_with_arguments = partial(constructor, **arguments) if arguments else constructor
    try:
        # Reports invalid values before anything is built, without memory. torch only warns about a width of zero.
        with torch.device("meta"), warnings.catch_warnings(action="error"):
            constructor_with_arguments(64, 64)
    except Exception as error:  # whatever torch raises for the value
        raise FieldmarkError(f"cannot build {text!r}: {str(error).partition(chr(10))[0]}") from error
    return constructor_with_arguments
