"""Photos (n, channels, h, w) -> features (n, c, h', w') -> logits (n, classes): Backbone, Network, Preprocessing."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models.attention import Attention
from fieldmark.models.heads import Head


def mark_stage_end(layer: nn.Module, channels: int) -> nn.Module:
    """Mark the layer as the end of a stage whose map has so many channels, and give it back."""
    layer.stage_channels = channels  # type: ignore[assignment]  # an int, which nn.Module stores as it is
    return layer


class Backbone(nn.Sequential):
    """An ordered sequence of named layers under their published names; a slice of it is a Backbone too.

    The layers that end a stage are marked by `ends_stage`, also inside nested nn.Sequentials.
    """

    @property
    def stages(self) -> dict[str, int]:
        """Dotted name of the layer that ends each stage -> channels of its map, in order."""
        return dict(_iter_stages(self, ""))

    def split_after(self, name: str) -> tuple["Backbone", "Backbone"]:
        """Cut right after the layer of that dotted name: two backbones that share this one's modules.

        `split("blocks.3")` cuts before a slot that stands after the layer, `split("blocks.after_3")` behind it. What is
        cut behind a stage or a slot leaves its input as it is; elsewhere a layer may write into it.
        """
        first, rest = _split_sequential(self, name.split("."), name)
        return first, rest  # type: ignore[return-value]  # parts of a Backbone are Backbones

    def add_auxiliary_head(self, layer: str, name: str, auxiliary: "AuxiliaryHead") -> None:
        """Hang an auxiliary head on the map behind a layer, under its published name."""
        parent, _, child = layer.rpartition(".")
        _insert_after(self.get_submodule(parent), child, name, auxiliary)

    def insert_attention(self, after: Mapping[int, Callable[..., Attention]]) -> None:
        """Put attention slots after stages: stage number (as in a list, -1 the last) -> `(channels) -> module`.

        The slot after `blocks.3` is called `blocks.after_3`.
        """
        stages = list(self.stages.items())
        places = [number % len(stages) if -len(stages) <= number < len(stages) else None for number in after]
        if None in places or len(set(places)) < len(places):
            numbers = ", ".join(map(str, after))
            count = len(stages)
            raise FieldmarkError(f"after={numbers}: name each stage once, 0 to {count - 1} (or -{count} to -1)")
        for number, make in after.items():
            name, channels = stages[number]
            parent, _, child = name.rpartition(".")
            _insert_after(self.get_submodule(parent), child, f"after_{child}", make(channels))


class AuxiliaryHead(nn.Module):
    """A head on a map in the middle, which helps to train what lies before it; it lets the map through unchanged.

    In training `logits` (n, classes) are those of the last batch, and the loss grows by `weight` times theirs; in eval
    mode nothing is computed. A network's own writes `classify`, and names its class layer `last`.
    """

    loss_weight = 0.3
    logits: Tensor

    @property
    def classifier(self) -> nn.Linear:
        """The class layer."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Features (n, c, h, w) -> logits (n, classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.logits = self.classify(x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: not the logits, which hang on the graph of the last batch."""
        return {key: value for key, value in self.__dict__.items() if key != "logits"}


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input: the short side is resized to size / crop, the centre size x size taken.

    `size` in pixels; `mean` and `std` per channel in pixel units (0..255), input = (pixel - mean) / std;
    `interpolation` is "bicubic" or "bilinear".
    """

    size: int
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class Network(nn.Module):
    """A backbone with a head.

    `frozen` is the dotted name of the backbone's layer up to which fine-tuning keeps it frozen (None: it trains all);
    `spec` are the words that `rebuild` makes the same architecture from. `fresh` says that the slots were put into
    loaded weights and have seen no photo yet.
    """

    has_untrained_slots = False

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        preprocessing: Preprocessing,
        frozen_until: str | None,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.preprocessing = preprocessing
        self.frozen_until = frozen_until
        self.spec = spec

    @property
    def added_attention(self) -> dict[str, Attention]:
        """The attention modules that were added to the published network, by dotted name."""
        return {name: module for name, module in self.named_modules() if is_added(module)}

    @property
    def freeze_boundary(self) -> str | None:
        """The last stage end up to which fine-tuning can keep the backbone frozen; None where nothing can be.

        That is `frozen`, or the last one before the first added attention: what is added must train.
        """
        boundary = None
        for name in self.backbone.stages if self.frozen_until else ():
            before, _ = self.backbone.split_after(name)
            if any(map(is_added, before.modules())):
                return boundary
            boundary = name
            if name == self.frozen_until:
                return boundary
        return boundary

    def features(self, x: Tensor) -> Tensor:
        """Photos (n, channels, h, w) -> the last map (n, c, h', w')."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def is_added(module: nn.Module) -> TypeGuard[Attention]:
    """Whether the module is attention that the published network does not have."""
    return isinstance(module, Attention) and type(module) is not Attention and not module.is_pretrained


def _iter_stages(layers: nn.Sequential, prefix: str) -> Iterator[tuple[str, int]]:
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _iter_stages(layer, f"{prefix}{name}.")
        if hasattr(layer, "stage_channels"):
            yield prefix + name, layer.stage_channels  # type: ignore[misc]


def _split_sequential(layers: nn.Sequential, path: list[str], name: str) -> tuple[nn.Sequential, nn.Sequential]:
    children = list(layers.named_children())
    names = [child for child, _ in children]
    if path[0] not in names:
        raise FieldmarkError(f"no layer {name!r} to split after: there are {', '.join(names)}")
    k = names.index(path[0]) + 1
    head, tail = children[:k], children[k:]
    if len(path) > 1:
        nested = children[k - 1][1]
        if not isinstance(nested, nn.Sequential):
            raise FieldmarkError(f"no layer {name!r} to split after: {path[0]} is one layer")
        first, rest = _split_sequential(nested, path[1:], name)
        head = [*children[: k - 1], (path[0], first)]
        tail = [(path[0], rest), *tail] if len(rest) else tail
        if hasattr(nested, "stage_channels"):
            mark_stage_end(rest if len(rest) else first, nested.stage_channels)  # type: ignore[arg-type]
    # Parts keep the mode: a new container would say that it trains, whatever its layers do.
    parts = (type(layers)(OrderedDict(part)) for part in (head, tail))
    first, rest = (_set_training_flag(part, layers.training) for part in parts)
    return first, rest


def _set_training_flag(layers: nn.Sequential, training: bool) -> nn.Sequential:
    layers.training = training
    return layers


def _insert_after(parent: nn.Module, child: str, name: str, module: nn.Module) -> None:
    children = list(parent.named_children())
    tail = children[[n for n, _ in children].index(child) + 1 :]
    for after, _ in tail:
        delattr(parent, after)
    for after, layer in [(name, module), *tail]:
        parent.add_module(after, layer)
