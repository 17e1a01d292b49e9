"""Named tensors, of a published set or of a file -> a network that has them all, strictly."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fieldmark.errors import FieldmarkError
from fieldmark.network.attention import Attention, brought
from fieldmark.network.backbone import Network
from fieldmark.network.zoo import Variant

SHOWN = 6  # keys that an error names of each kind


def rename(state: dict[str, Tensor], renames: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Every key with each pattern replaced, in order; keys that are the network's already stay as they are."""
    for pattern, ours in renames:
        state = {re.sub(pattern, ours, key): tensor for key, tensor in state.items()}
    return state


def load(network: Network, state: dict[str, Tensor], variant: Variant, *, published_head: bool, source: str) -> bool:
    """Load tensors under the published names into the network; True if its attention slots were inserted by this.

    Every key must be there and no other, except: the head, where it is not the published one, and class layers of
    other classes; auxiliary heads, which either side may lack; added slots, where the file has none of their keys:
    they start as the identity; gates of the published blocks that `Replace` or "none" took out. Weights of colour
    photos fit a network of grey ones. Raises FieldmarkError listing missing keys as `-`, surplus ones as `+`, other
    shapes as `~`.
    """
    # A BN's count of batches is no weight: older files lack it, and nothing here reads it.
    given = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    expected = {_published_name(key, variant.names): key for key in own}

    published_head = published_head and "fc" in variant.names  # a row that names no class layer has a head of ours
    class_layers = [variant.names["fc"]] if published_head else []
    for name, _ in variant.auxiliary.values():
        parts = [{key for key in keys if key.startswith(f"{name}.")} for keys in (given, expected)]
        if not all(parts):
            given, expected = _without(given, parts[0]), _without(expected, parts[1])
        else:
            auxiliary = network.backbone.get_submodule(name)
            class_layers += [f"{name}.{child}" for child, m in auxiliary.named_children() if m is auxiliary.last]
    if not published_head:
        given = _without(given, {k for k in given if k.rpartition(".")[0] in variant.names.values()})
        expected = {key: ours for key, ours in expected.items() if not ours.startswith("head.")}
    for layer in class_layers:
        bias = f"{layer}.bias"
        if bias in given and bias in expected and len(given[bias]) != len(own[expected[bias]]):
            keys = {bias, f"{layer}.weight"}
            given, expected = _without(given, keys), _without(expected, keys)

    given = _without(given, _taken_out(network, variant, given, own))
    slots = tuple(f"{name}." for name in network.slots)
    in_slots = {key for key, ours in expected.items() if ours.startswith(slots)}
    inserted = bool(slots) and in_slots.isdisjoint(given)
    if inserted:
        expected = _without(expected, in_slots)
    given = _in_grey(network, given, expected)
    _compare(given, {key: own[ours] for key, ours in expected.items()}, source)
    network.load_state_dict({expected[key]: tensor for key, tensor in given.items()}, strict=False)
    if inserted:
        for slot in network.slots.values():
            slot.start_as_identity()
    return inserted


def _published_name(key: str, names: Mapping[str, str]) -> str:
    """`backbone.layer1.0.conv1.weight` -> `layer1.0.conv1.weight`, `head.fc.weight` -> `classifier.weight`."""
    part, _, rest = key.partition(".")
    layer, _, kind = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}" if part == "head" else rest


def _without(keys: dict[str, Any], some: set[str]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in some}


def _taken_out(network: Network, variant: Variant, given: dict[str, Tensor], own: dict[str, Tensor]) -> set[str]:
    """The given keys of the published blocks' own gates, where the network has others or none; says so."""
    if variant.gate is None or any(isinstance(m, Attention) and m.brought for m in network.modules()):
        return set()
    with torch.device("meta"):
        layers = variant.make(channels=network.spec["channels"], gate=brought(variant.gate))
    gates = [name for name, module in layers.named_modules() if isinstance(module, Attention) and module.brought]
    keys = {key for key in given if key.startswith(tuple(f"{name}." for name in gates))}
    ours = {key.removeprefix("backbone."): tensor.shape for key, tensor in own.items()}
    if all(ours.get(key) == given[key].shape for key in keys):  # a file of this very network, saved after training
        return set()
    weights = sum(given[key].numel() for key in keys)
    print(f"fieldmark: {len(gates)} gates of the published network left out, with {weights:,} weights", file=sys.stderr)
    return keys


def _in_grey(network: Network, given: dict[str, Tensor], expected: dict[str, str]) -> dict[str, Tensor]:
    """First-layer weights of colour photos, summed for a network of one channel: as if it saw that one thrice."""
    first = next((key for key, ours in expected.items() if key in given and given[key].ndim == 4), None)
    if network.spec["channels"] == 1 and first and given[first].shape[1] == 3:
        return given | {first: given[first].sum(1, keepdim=True)}
    return given


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
