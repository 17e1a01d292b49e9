"""Named tensors, of a published set or of a file -> a network that has them all, strictly."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.attention import Attention, mark_pretrained
from fieldmark.models.backbone import Network
from fieldmark.models.zoo import Variant

MAX_LISTED_KEYS = 3  # keys that an error names of each kind
DOUBLED_SIGMOID_SUFFIX = ".sigmoid.peak"  # how the key ends that only gates have which started as the identity


def load_weights(
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
    file_tensors = _drop_batch_counts(state)
    has_doubled_gates = any(key.endswith(DOUBLED_SIGMOID_SUFFIX) for key in file_tensors)
    if has_doubled_gates:  # saved from a network whose slots had started as the identity
        _start_as_identity(network)
    own = _drop_batch_counts(network.state_dict())
    is_own_format = bool(file_tensors) and all(key.startswith(("backbone.", "head.")) for key in file_tensors)
    prefix = "backbone." if is_own_format else ""
    expected = {key if is_own_format else _published_name(key, variant.head_names): key for key in own}
    if not is_own_format:
        if "fc" not in variant.head_names:  # a row that names no class layer has a head of ours
            expected = {key: ours for key, ours in expected.items() if not ours.startswith("head.")}
        file_tensors = {
            key if key in expected else rename_key(key, renames): tensor for key, tensor in file_tensors.items()
        }

    file_tensors, expected, class_layers = _match_heads(
        file_tensors, expected, own, variant, published_head, is_own_format
    )
    for name, _ in variant.auxiliary.values():
        name = prefix + name
        auxiliary_keys = [{key for key in keys if key.startswith(f"{name}.")} for keys in (file_tensors, expected)]
        if all(auxiliary_keys):
            auxiliary = network.backbone.get_submodule(name.removeprefix("backbone."))
            class_layers += [f"{name}.{child}" for child, m in auxiliary.named_children() if m is auxiliary.last]
        else:
            file_tensors, expected = (
                _drop_keys(file_tensors, auxiliary_keys[0]),
                _drop_keys(expected, auxiliary_keys[1]),
            )
    for layer in class_layers:
        keys = {f"{layer}.bias", f"{layer}.weight"}
        shapes = [
            {key: len(tensors[key]) for key in keys & set(tensors)}
            for tensors in (file_tensors, _expected_tensors(expected, own))
        ]
        if shapes[0] != shapes[1]:
            file_tensors, expected = _drop_keys(file_tensors, keys), _drop_keys(expected, keys)

    file_tensors = _drop_keys(
        file_tensors,
        _replaced_gate_keys(network, variant, file_tensors, _expected_tensors(expected, own), prefix, source),
    )
    slots = tuple(f"{name}." for name in network.added_attention)
    in_slots = {key for key, ours in expected.items() if ours.startswith(slots)}
    network.has_untrained_slots = bool(slots) and in_slots.isdisjoint(file_tensors)
    if network.has_untrained_slots:
        expected = _drop_keys(expected, in_slots)
    file_tensors = _sum_rgb_weights(network, file_tensors, _expected_tensors(expected, own))
    _check_keys(file_tensors, _expected_tensors(expected, own), source)
    network.load_state_dict({expected[key]: tensor for key, tensor in file_tensors.items()}, strict=False)
    if network.has_untrained_slots:
        _start_as_identity(network)
    return network.has_untrained_slots or has_doubled_gates


def _drop_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but a BN's count of batches: older files lack it, and nothing here reads it."""
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _start_as_identity(network: Network) -> None:
    for slot in network.added_attention.values():
        slot.start_as_identity()


def _published_name(key: str, names: Mapping[str, str]) -> str:
    """`backbone.layer1.0.conv1.weight` -> `layer1.0.conv1.weight`, `head.fc.weight` -> `classifier.weight`."""
    part, _, rest = key.partition(".")
    layer, _, kind = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}" if part == "head" else rest


def rename_key(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    """The key with each pattern replaced, in order."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _drop_keys(keys: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in dropped}


def _expected_tensors(expected: dict[str, str], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors under the names that the file should have."""
    return {key: own[ours] for key, ours in expected.items()}


def _match_heads(
    given: dict[str, Tensor],
    expected: dict[str, str],
    own: dict[str, Tensor],
    variant: Variant,
    published_head: bool,
    saved: bool,
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Both sides as they are, and the class layer; or without their heads, where these differ in more than classes."""
    own_keys = {key for key, name in expected.items() if name.startswith("head.")}
    if saved:
        file_keys, last = {key for key in given if key.startswith("head.")}, "head.fc"
        has_same_head = _head_shapes(file_keys, given) == _head_shapes(own_keys, _expected_tensors(expected, own))
    else:
        file_keys = {key for key in given if key.rpartition(".")[0] in variant.head_names.values()}
        last = variant.head_names.get("fc", "")
        has_same_head = published_head and bool(last)
    if has_same_head:
        return given, expected, [last]
    return _drop_keys(given, file_keys), _drop_keys(expected, own_keys), []


def _head_shapes(keys: set[str], tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes of a head's tensors, however many classes it has."""
    return {k: tensors[k].shape[1:] if k.startswith("head.fc.") else tensors[k].shape for k in keys}


def _replaced_gate_keys(
    network: Network,
    variant: Variant,
    given: dict[str, Tensor],
    own: dict[str, Tensor],
    prefix: str,
    source: str,
) -> set[str]:
    """The given keys of the published blocks' own gates, where the network has others or none; says so."""
    if variant.gate is None or any(isinstance(m, Attention) and m.is_pretrained for m in network.modules()):
        return set()
    with torch.device("meta"):
        layers = variant.make_backbone(channels=network.spec["channels"], gate=mark_pretrained(variant.gate))
    gates = [name for name, module in layers.named_modules() if isinstance(module, Attention) and module.is_pretrained]
    inside = tuple(f"{prefix}{name}." for name in gates)
    file_shapes, own_shapes = (
        {k: t.shape for k, t in tensors.items() if k.startswith(inside)} for tensors in (given, own)
    )
    if not file_shapes or (
        file_shapes == own_shapes and source != "imagenet"
    ):  # a file of this very network, saved after training
        return set()
    weights = sum(given[key].numel() for key in file_shapes)
    print(f"fieldmark: {len(gates)} gates of the published network left out, with {weights:,} weights", file=sys.stderr)
    return set(file_shapes)


def _sum_rgb_weights(network: Network, given: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """First-layer weights of colour photos, summed for a network of one channel: as if it saw that one thrice."""
    if network.spec["channels"] != 1:
        return given
    rgb_tensors = (
        (key, given[key]) for key in own if key in given and given[key].ndim == 4 and given[key].shape[1] == 3
    )
    first = next(((key, tensor) for key, tensor in rgb_tensors if own[key].shape[1:2] == (1,)), None)
    return given | {first[0]: first[1].sum(1, keepdim=True)} if first else given


def _check_keys(given: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    missing = [f"-{key}" for key in expected if key not in given]
    surplus = [f"+{key}" for key in given if key not in expected]
    reshaped = [
        f"~{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if missing or surplus or reshaped:
        differences = [
            " ".join(keys[:MAX_LISTED_KEYS])
            + (f" and {len(keys) - MAX_LISTED_KEYS} more" if len(keys) > MAX_LISTED_KEYS else "")
            for keys in (missing, surplus, reshaped)
            if keys
        ]
        raise FieldmarkError(
            f"{source} does not fit this network: {'; '.join(differences)} "
            "(- missing in the weights, + not in the network, "
            "~ another shape): give the weights of the same network, attention and channels"
        )
