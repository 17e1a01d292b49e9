"""Images (n, channels, h, w) -> features (n, c, h', w'): an ordered sequence of named layers that knows its stages."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from torch import nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.attention import Attention
from fieldmark.models.heads import AuxiliaryHead


def mark_stage_end(layer: nn.Module, channels: int) -> nn.Module:
    """Mark the layer as the end of a stage with that number of channels, and return it."""
    layer.stage_channels = channels  # type: ignore[assignment]  # an int, which nn.Module stores as it is
    return layer


class Backbone(nn.Sequential):
    """A sequence of layers under their published names; a slice of it is a Backbone too.

    `mark_stage_end` marks the layers that end a stage, also inside nested nn.Sequentials.
    """

    @classmethod
    def of(cls, layers: "Backbone") -> Self:
        """A backbone of this class with the same layers, in the same mode."""
        backbone = cls(OrderedDict(layers.named_children()))
        backbone.training = layers.training
        return backbone

    @property
    def stages(self) -> dict[str, int]:
        """Dotted name of the layer that ends each stage -> its output channels, in order."""
        return {
            name: layer.stage_channels  # type: ignore[misc]  # set by mark_stage_end
            for name, layer in _iter_children(self)
            if hasattr(layer, "stage_channels")
        }

    def iter_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Dotted names and layers in the order they run, those inside nested nn.Sequentials one by one."""
        return ((name, layer) for name, layer in _iter_children(self) if not isinstance(layer, nn.Sequential))

    def split_after(self, name: str) -> tuple["Backbone", "Backbone"]:
        """Split after the layer with that dotted name into two backbones that share this one's modules.

        `split_after("blocks.3")` splits before a slot that follows the layer, `split_after("blocks.after_3")` behind
        it. The second part may modify its input in place, unless the split follows a stage or a slot.

        Raises:
            FieldmarkError: there is no such layer.
        """
        first, rest = _split_sequential(self, name.split("."), name)
        return first, rest  # type: ignore[return-value]  # parts of a Backbone are Backbones

    def add_auxiliary_head(self, layer: str, name: str, auxiliary: AuxiliaryHead) -> None:
        """Insert an auxiliary head behind a layer, under its published name."""
        parent, _, child = layer.rpartition(".")
        _insert_after(self.get_submodule(parent), child, name, auxiliary)

    def insert_attention(self, after: Mapping[int, Callable[..., Attention]]) -> None:
        """Insert attention slots after stages. The slot after `blocks.3` is named `blocks.after_3`.

        Args:
            after: stage index, as in a list (-1 is the last) -> constructor `(channels) -> module`.

        Raises:
            FieldmarkError: a stage does not exist or is given twice.
        """
        stages = list(self.stages.items())
        indices = [number % len(stages) if -len(stages) <= number < len(stages) else None for number in after]
        if None in indices or len(set(indices)) < len(indices):
            numbers = ", ".join(map(str, after))
            count = len(stages)
            raise FieldmarkError(f"after={numbers}: name each stage once, 0 to {count - 1} (or -{count} to -1)")
        for number, make in after.items():
            name, channels = stages[number]
            parent, _, child = name.rpartition(".")
            _insert_after(self.get_submodule(parent), child, f"after_{child}", make(channels))


def _iter_children(layers: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Children by dotted name in the order they run; an nn.Sequential follows its own children."""
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _iter_children(layer, f"{prefix}{name}.")
        yield prefix + name, layer


def _split_sequential(layers: nn.Sequential, path: list[str], name: str) -> tuple[nn.Sequential, nn.Sequential]:
    children = list(layers.named_children())
    names = [child for child, _ in children]
    if path[0] not in names:
        raise FieldmarkError(f"no layer {name!r} to split after: choose from {', '.join(names)}")
    k = names.index(path[0]) + 1
    head, tail = children[:k], children[k:]
    if len(path) > 1:
        nested = children[k - 1][1]
        if not isinstance(nested, nn.Sequential):
            raise FieldmarkError(f"no layer {name!r} to split after: {path[0]} is a single layer")
        first, rest = _split_sequential(nested, path[1:], name)
        head = [*children[: k - 1], (path[0], first)]
        tail = [(path[0], rest), *tail] if len(rest) else tail
        if hasattr(nested, "stage_channels"):
            mark_stage_end(rest if len(rest) else first, nested.stage_channels)  # type: ignore[arg-type]
    first, rest = (type(layers)(OrderedDict(part)) for part in (head, tail))
    first.training = rest.training = layers.training  # a new container is in training mode, whatever its layers are
    return first, rest


def _insert_after(parent: nn.Module, child: str, name: str, module: nn.Module) -> None:
    children = list(parent.named_children())
    tail = children[[n for n, _ in children].index(child) + 1 :]
    for after, _ in tail:
        delattr(parent, after)
    for after, layer in [(name, module), *tail]:
        parent.add_module(after, layer)
