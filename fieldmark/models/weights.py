"""Named tensors under published or own names -> a network whose every tensor is loaded, strictly."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.attention import Attention, mark_pretrained
from fieldmark.models.network import Network
from fieldmark.models.zoo import Variant

MAX_LISTED_KEYS = 3  # keys of each kind that an error names
DOUBLED_SIGMOID_SUFFIX = ".sigmoid.peak"  # only gates that started as the identity have keys that end so


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        inserted: whether the added attention has the form that starts as the identity.
        untrained: whether it was inserted now, since the weights have none.
        dropped_gates: number of the published network's gates whose weights were dropped.
        dropped_weights: number of weights in those gates.
    """

    inserted: bool
    untrained: bool
    dropped_gates: int = 0
    dropped_weights: int = 0


@dataclass(frozen=True)
class _KeyMatch:
    """The tensors to load and the network's own tensors, both under the names that the file uses.

    Attributes:
        file: the tensors to load.
        own: the network's tensors.
        names: name in the file -> name in the network.
        is_own_format: whether the file uses the network's names, as a bundle does, and not the published ones.
    """

    file: dict[str, Tensor]
    own: dict[str, Tensor]
    names: dict[str, str]
    is_own_format: bool

    @property
    def prefix(self) -> str:
        """What the names of the backbone's tensors start with."""
        return "backbone." if self.is_own_format else ""

    def drop(self, file_keys: Iterable[str] = (), own_keys: Iterable[str] = ()) -> "_KeyMatch":
        """The match without tensors of the file and of the network."""
        dropped_file, dropped_own = set(file_keys), set(own_keys)
        return replace(
            self,
            file={key: tensor for key, tensor in self.file.items() if key not in dropped_file},
            own={key: tensor for key, tensor in self.own.items() if key not in dropped_own},
        )


def load_weights(
    network: Network,
    state: Mapping[str, Tensor],
    variant: Variant,
    *,
    published_head: bool,
    source: str,
    renames: tuple[tuple[str, str], ...] = (),
) -> LoadReport:
    """Load tensors under the published names, or under the network's own as a bundle has them.

    Every key must be present and no other, except for

    - the head, if it is not the published one,
    - class layers with another number of classes, or absent from the file,
    - auxiliary heads that only the file or only the network has,
    - added attention that the file has none of, which then starts as the identity,
    - gates of the published blocks that `Replace` or "none" removed.

    RGB weights fit a network with one input channel.

    Args:
        network: changed in place.
        state: name -> tensor.
        variant: the zoo's row of the network.
        published_head: whether the network has the published head.
        source: what an error calls the weights; "imagenet" for published ones.
        renames: patterns and replacements for keys under other published names.

    Raises:
        FieldmarkError: keys are missing (listed as `-`), surplus (`+`) or of another shape (`~`).
    """
    state = _drop_batch_counts(state)
    has_doubled_gates = any(key.endswith(DOUBLED_SIGMOID_SUFFIX) for key in state)
    if has_doubled_gates:  # saved from a network whose attention had started as the identity
        network.start_attention_as_identity()
    match = _match_names(state, _drop_batch_counts(network.state_dict()), variant, renames)
    match, class_layers = _match_heads(match, variant, published_head)
    match, auxiliary_class_layers = _match_auxiliary_heads(match, network, variant)
    match = _drop_other_classes(match, [*class_layers, *auxiliary_class_layers])
    match, dropped_gates, dropped_weights = _drop_replaced_gates(match, network, variant, source)
    match, untrained = _drop_added_attention(match, network)
    if network.spec.channels == 1:
        match = _sum_rgb_weights(match)
    _check_keys(match, source)
    network.load_state_dict({match.names[key]: tensor for key, tensor in match.file.items()}, strict=False)
    if untrained:
        network.start_attention_as_identity()
    return LoadReport(untrained or has_doubled_gates, untrained, dropped_gates, dropped_weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or .pth file, without running code of the file.

    Raises:
        FieldmarkError: there is no such file, or it is not a state dict.
    """
    if not path.is_file():
        raise FieldmarkError(
            f"weights file not found: {path}. Pass imagenet, none, or a .safetensors, .pth, .h5 or .keras file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a file that is none of theirs
        raise FieldmarkError(
            f"{path} cannot be read safely as weights ({type(error).__name__}): save only the network's state_dict()"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise FieldmarkError(f"{path} is not a state dict: save only the network's state_dict()")
    return state


def is_own_format(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have the network's own names, as a bundle has them."""
    return bool(state) and all(key.startswith(("backbone.", "head.")) for key in state)


def rename_key(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    """Replace each pattern in the key, in order."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _drop_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the batch norms' counts of batches, which older files lack and nothing uses."""
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _match_names(
    state: dict[str, Tensor], own: dict[str, Tensor], variant: Variant, renames: tuple[tuple[str, str], ...]
) -> _KeyMatch:
    if is_own_format(state):
        return _KeyMatch(state, own, {key: key for key in own}, is_own_format=True)
    names = {_published_name(key, variant.head_names): key for key in own}
    if "fc" not in variant.head_names:  # no class layer is published, so the head is not in the file
        names = {key: name for key, name in names.items() if not name.startswith("head.")}
    file = {key if key in names else rename_key(key, renames): tensor for key, tensor in state.items()}
    file = {key: _as_linear(tensor, own.get(names.get(key, ""))) for key, tensor in file.items()}
    return _KeyMatch(file, {key: own[name] for key, name in names.items()}, names, is_own_format=False)


def _as_linear(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A convolution over a whole map as the linear layer that it is (VGG's in timm); other tensors as they are."""
    is_linear = own is not None and own.ndim == 2 and tensor.ndim == 4 and tensor.numel() == own.numel()
    return tensor.flatten(1) if is_linear else tensor


def _published_name(key: str, names: Mapping[str, str]) -> str:
    """`backbone.layer1.0.conv1.weight` -> `layer1.0.conv1.weight`, `head.fc.weight` -> `classifier.weight`."""
    part, _, rest = key.partition(".")
    layer, _, kind = rest.rpartition(".")
    return f"{names.get(layer, layer)}.{kind}" if part == "head" else rest


def _match_heads(match: _KeyMatch, variant: Variant, published_head: bool) -> tuple[_KeyMatch, list[str]]:
    """The match and its class layer; or the match without heads if they differ in more than the classes."""
    own_keys = {key for key in match.own if match.names[key].startswith("head.")}
    if match.is_own_format:
        file_keys, class_layer = {key for key in match.file if key.startswith("head.")}, "head.fc"
        is_same_head = _head_shapes(file_keys, match.file) == _head_shapes(own_keys, match.own)
    else:
        file_keys = {key for key in match.file if key.rpartition(".")[0] in variant.head_names.values()}
        class_layer = variant.head_names.get("fc", "")
        is_same_head = published_head and bool(class_layer)
    return (match, [class_layer]) if is_same_head else (match.drop(file_keys, own_keys), [])


def _head_shapes(keys: set[str], tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes of a head's tensors without the number of classes."""
    return {k: tensors[k].shape[1:] if k.startswith("head.fc.") else tensors[k].shape for k in keys}


def _match_auxiliary_heads(match: _KeyMatch, network: Network, variant: Variant) -> tuple[_KeyMatch, list[str]]:
    """The match without auxiliary heads that only the file or only the network has; class layers of the others."""
    class_layers: list[str] = []
    for name, _ in variant.auxiliary.values():
        prefixed = match.prefix + name
        file_keys, own_keys = (
            [key for key in keys if key.startswith(f"{prefixed}.")] for keys in (match.file, match.own)
        )
        if file_keys and own_keys:
            auxiliary = network.backbone.get_submodule(name)
            class_layers += [
                f"{prefixed}.{child}" for child, m in auxiliary.named_children() if m is auxiliary.classifier
            ]
        else:
            match = match.drop(file_keys, own_keys)
    return match, class_layers


def _drop_other_classes(match: _KeyMatch, class_layers: Iterable[str]) -> _KeyMatch:
    """The match without class layers whose number of classes differs."""
    for layer in class_layers:
        keys = (f"{layer}.bias", f"{layer}.weight")
        file_classes, own_classes = (
            {key: len(tensors[key]) for key in keys if key in tensors} for tensors in (match.file, match.own)
        )
        if file_classes != own_classes:
            match = match.drop(keys, keys)
    return match


def _drop_replaced_gates(
    match: _KeyMatch, network: Network, variant: Variant, source: str
) -> tuple[_KeyMatch, int, int]:
    """The match without the published gates that the network replaced; their number and that of their weights."""
    if variant.gate is None or any(isinstance(m, Attention) and m.is_pretrained for m in network.modules()):
        return match, 0, 0
    with torch.device("meta"):
        published = variant.make_backbone(channels=network.spec.channels, gate=mark_pretrained(variant.gate))
    gates = [name for name, m in published.named_modules() if isinstance(m, Attention) and m.is_pretrained]
    prefixes = tuple(f"{match.prefix}{name}." for name in gates)
    file_shapes, own_shapes = (
        {key: tensor.shape for key, tensor in tensors.items() if key.startswith(prefixes)}
        for tensors in (match.file, match.own)
    )
    is_own_file = file_shapes == own_shapes and source != "imagenet"  # saved after training this very network
    if not file_shapes or is_own_file:
        return match, 0, 0
    return match.drop(file_shapes), len(gates), sum(match.file[key].numel() for key in file_shapes)


def _drop_added_attention(match: _KeyMatch, network: Network) -> tuple[_KeyMatch, bool]:
    """The match without added attention if the file has none of it, and whether that is so."""
    prefixes = tuple(f"{name}." for name in network.added_attention)
    keys = {key for key in match.own if match.names[key].startswith(prefixes)}
    is_untrained = bool(prefixes) and keys.isdisjoint(match.file)
    return (match.drop(own_keys=keys) if is_untrained else match), is_untrained


def _sum_rgb_weights(match: _KeyMatch) -> _KeyMatch:
    """The first layer's RGB weights summed over the channels: the output is that of three equal channels."""
    for key, own in match.own.items():
        tensor = match.file.get(key)
        if tensor is not None and tensor.ndim == 4 and tensor.shape[1] == 3 and own.shape[1:2] == (1,):
            return replace(match, file=match.file | {key: tensor.sum(1, keepdim=True)})
    return match


def _check_keys(match: _KeyMatch, source: str) -> None:
    missing = [f"-{key}" for key in match.own if key not in match.file]
    surplus = [f"+{key}" for key in match.file if key not in match.own]
    reshaped = [
        f"~{key} {tuple(match.file[key].shape)} for {tuple(own.shape)}"
        for key, own in match.own.items()
        if key in match.file and match.file[key].shape != own.shape
    ]
    differences = [
        " ".join(keys[:MAX_LISTED_KEYS])
        + (f" and {len(keys) - MAX_LISTED_KEYS} more" if len(keys) > MAX_LISTED_KEYS else "")
        for keys in (missing, surplus, reshaped)
        if keys
    ]
    if differences:
        raise FieldmarkError(
            f"{source} does not fit this network: {'; '.join(differences)} (- missing in the weights, + not in the "
            "network, ~ another shape). Pass weights of the same network, attention and channels"
        )
