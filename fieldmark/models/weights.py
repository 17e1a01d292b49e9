"""Named tensors, of a published set or of a file -> a network that has them all, strictly."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.attention import Attention, brought
from fieldmark.models.backbone import Network
from fieldmark.models.zoo import Variant

SHOWN = 3  # keys that an error names of each kind
DOUBLED = ".sigmoid.peak"  # how the key ends that only gates have which started as the identity


def load(
    network: Network,
    state: dict[str, Tensor],
    variant: Variant,
    *,
    published_head: bool,
    source: str,
    renames: tuple[tuple[str, str], ...] = (),
) -> bool:
    """Load tensors under the published names, or under the network's own as a bundle has them.

    -> whether the attention slots are in the form that starts as the identity. `renames` are for keys that are neither.

    Every key must be there and no other, except: the head, where it is not the published one; class layers of other
    classes, or of none; auxiliary heads, which either side may lack; added slots, where the file has none of their
    keys: they start as the identity; gates of the published blocks that `Replace` or "none" took out. Weights of colour
    photos fit a network of grey ones. Raises FieldmarkError listing missing keys as `-`, surplus ones as `+`, other
    shapes as `~`.
    """
    given = _weights(state)
    doubled = any(key.endswith(DOUBLED) for key in given)
    if doubled:  # saved from a network whose slots had started as the identity
        _start(network)
    own = _weights(network.state_dict())
    saved = bool(given) and all(key.startswith(("backbone.", "head.")) for key in given)
    prefix = "backbone." if saved else ""
    expected = {key if saved else _published_name(key, variant.names): key for key in own}
    if not saved:
        if "fc" not in variant.names:  # a row that names no class layer has a head of ours
            expected = {key: ours for key, ours in expected.items() if not ours.startswith("head.")}
        given = {key if key in expected else renamed(key, renames): tensor for key, tensor in given.items()}

    given, expected, class_layers = _heads(given, expected, own, variant, published_head, saved)
    for name, _ in variant.auxiliary.values():
        name = prefix + name
        parts = [{key for key in keys if key.startswith(f"{name}.")} for keys in (given, expected)]
        if all(parts):
            auxiliary = network.backbone.get_submodule(name.removeprefix("backbone."))
            class_layers += [f"{name}.{child}" for child, m in auxiliary.named_children() if m is auxiliary.last]
        else:
            given, expected = _without(given, parts[0]), _without(expected, parts[1])
    for layer in class_layers:
        keys = {f"{layer}.bias", f"{layer}.weight"}
        shapes = [{key: len(tensors[key]) for key in keys & set(tensors)} for tensors in (given, _as(expected, own))]
        if shapes[0] != shapes[1]:
            given, expected = _without(given, keys), _without(expected, keys)

    given = _without(given, _taken_out(network, variant, given, _as(expected, own), prefix, source))
    slots = tuple(f"{name}." for name in network.slots)
    in_slots = {key for key, ours in expected.items() if ours.startswith(slots)}
    network.fresh = bool(slots) and in_slots.isdisjoint(given)
    if network.fresh:
        expected = _without(expected, in_slots)
    given = _in_grey(network, given, _as(expected, own))
    _compare(given, _as(expected, own), source)
    network.load_state_dict({expected[key]: tensor for key, tensor in given.items()}, strict=False)
    if network.fresh:
        _start(network)
    return network.fresh or doubled


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but a BN's count of batches: older files lack it, and nothing here reads it."""
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _start(network: Network) -> None:
    for slot in network.slots.values():
        slot.start_as_identity()


def _published_name(key: str, names: Mapping[str, str]) -> str:
    """`backbone.layer1.0.conv1.weight` -> `layer1.0.conv1.weight`, `head.fc.weight` -> `classifier.weight`."""
    part, _, rest = key.partition(".")
    layer, _, kind = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}" if part == "head" else rest


def renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    """The key with each pattern replaced, in order."""
    for pattern, ours in renames:
        key = re.sub(pattern, ours, key)
    return key


def _without(keys: dict[str, Any], some: set[str]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in some}


def _as(expected: dict[str, str], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors under the names that the file should have."""
    return {key: own[ours] for key, ours in expected.items()}


def _heads(
    given: dict[str, Tensor],
    expected: dict[str, str],
    own: dict[str, Tensor],
    variant: Variant,
    published_head: bool,
    saved: bool,
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Both sides as they are, and the class layer; or without their heads, where these differ in more than classes."""
    ours = {key for key, name in expected.items() if name.startswith("head.")}
    if saved:
        theirs, last = {key for key in given if key.startswith("head.")}, "head.fc"
        alike = _form(theirs, given) == _form(ours, _as(expected, own))
    else:
        theirs = {key for key in given if key.rpartition(".")[0] in variant.names.values()}
        last = variant.names.get("fc", "")
        alike = published_head and bool(last)
    if alike:
        return given, expected, [last]
    return _without(given, theirs), _without(expected, ours), []


def _form(keys: set[str], tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes of a head's tensors, however many classes it has."""
    return {k: tensors[k].shape[1:] if k.startswith("head.fc.") else tensors[k].shape for k in keys}


def _taken_out(
    network: Network,
    variant: Variant,
    given: dict[str, Tensor],
    own: dict[str, Tensor],
    prefix: str,
    source: str,
) -> set[str]:
    """The given keys of the published blocks' own gates, where the network has others or none; says so."""
    if variant.gate is None or any(isinstance(m, Attention) and m.brought for m in network.modules()):
        return set()
    with torch.device("meta"):
        layers = variant.make(channels=network.spec["channels"], gate=brought(variant.gate))
    gates = [name for name, module in layers.named_modules() if isinstance(module, Attention) and module.brought]
    inside = tuple(f"{prefix}{name}." for name in gates)
    theirs, ours = ({k: t.shape for k, t in tensors.items() if k.startswith(inside)} for tensors in (given, own))
    if not theirs or (theirs == ours and source != "imagenet"):  # a file of this very network, saved after training
        return set()
    weights = sum(given[key].numel() for key in theirs)
    print(f"fieldmark: {len(gates)} gates of the published network left out, with {weights:,} weights", file=sys.stderr)
    return set(theirs)


def _in_grey(network: Network, given: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """First-layer weights of colour photos, summed for a network of one channel: as if it saw that one thrice."""
    if network.spec["channels"] != 1:
        return given
    colour = ((key, given[key]) for key in own if key in given and given[key].ndim == 4 and given[key].shape[1] == 3)
    first = next(((key, tensor) for key, tensor in colour if own[key].shape[1:2] == (1,)), None)
    return given | {first[0]: first[1].sum(1, keepdim=True)} if first else given


def _compare(given: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    missing = [f"-{key}" for key in expected if key not in given]
    surplus = [f"+{key}" for key in given if key not in expected]
    reshaped = [
        f"~{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if missing or surplus or reshaped:
        shown = [
            " ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
            for keys in (missing, surplus, reshaped)
            if keys
        ]
        raise FieldmarkError(
            f"{source} does not fit this network: {'; '.join(shown)} (- missing in the weights, + not in the network, "
            "~ another shape): give the weights of the same network, attention and channels"
        )
