"""Images (n, channels, h, w) -> logits (n, classes): a backbone with a head, their specification and preprocessing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fieldmark.models.attention import Attention, is_added
from fieldmark.models.backbone import Backbone
from fieldmark.models.heads import Head


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: resize the shorter side to size / crop, take the central crop.

    Attributes:
        size: side of the central crop in pixels.
        crop: crop ratio, the share of the resized shorter side that the crop covers.
        mean: mean of each channel in pixel units (0..255); the input is (pixel - mean) / std.
        std: standard deviation of each channel in pixel units.
        interpolation: "bicubic" or "bilinear".
    """

    size: int
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclass(frozen=True)
class NetworkSpec:
    """The arguments of `build` that define an architecture, as bundle.json and metrics.json hold them.

    Attributes:
        backbone: name of the backbone, a key of VARIANTS or `timm:NAME`.
        attention: attention inside every block, such as `se(ratio=8)`; None for the paper's own.
        after: attention after stages, such as `-1:mask`.
        head: head, such as `bilinear(reduced=64)`; None for the published one.
        classes: number of classes.
        channels: input channels.
        aux: whether the network has the paper's auxiliary heads.
        pad: zero padding on each side of the input, in pixels.
        inserted: whether the added attention has the form that starts as the identity.
        form: the library whose form of the architecture this is, a key of `Variant.forms`; None for the published one.
    """

    backbone: str
    attention: str | None
    after: str | None
    head: str | None
    classes: int
    channels: int
    aux: bool
    pad: int
    inserted: bool = False
    form: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NetworkSpec":
        """The inverse of `to_dict`; TypeError for missing or unknown keys."""
        return cls(**values)


class Network(nn.Module):
    """A backbone with a head.

    Attributes:
        preprocessing: how an image becomes the input.
        frozen_until: dotted name of the backbone's layer up to which fine-tuning keeps it frozen; None trains all.
        spec: what `rebuild` makes the same architecture from.
        has_untrained_slots: whether attention was inserted into loaded weights and has not been trained since.
    """

    has_untrained_slots = False

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        preprocessing: Preprocessing,
        frozen_until: str | None,
        spec: NetworkSpec,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.preprocessing = preprocessing
        self.frozen_until = frozen_until
        self.spec = spec

    @property
    def added_attention(self) -> dict[str, Attention]:
        """Dotted name -> attention module that the published network does not have."""
        return {name: module for name, module in self.named_modules() if is_added(module)}

    @property
    def freeze_boundary(self) -> str | None:
        """Name of the last stage end up to which fine-tuning can freeze the backbone; None if it must train all.

        This is `frozen_until`, or the last stage end before the first added attention, which has to be trained.
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

    def start_attention_as_identity(self) -> None:
        """Make every added attention module the identity."""
        for module in self.added_attention.values():
            module.start_as_identity()

    def features(self, x: Tensor) -> Tensor:
        """Images (n, channels, h, w) -> what the head reads (n, c, h', w'): the last map, or moments of all stages."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
