"""Network name -> Variant: the one table of networks, a row each with its paper (weights: weights.py)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from fieldmark.network.attention import Attention
from fieldmark.network.backbone import Auxiliary, Backbone
from fieldmark.network.heads import Head, Linear
from fieldmark.network.zoo.efficientnet import efficientnet_lite
from fieldmark.network.zoo.resnet import BasicBlock, Bottleneck, resnet

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A network of the zoo.

    make: `make(*, channels, attention)` is the backbone; where the row has a `gate`, `gate=` takes its constructor too.
    head: `(channels, classes)` is the published head.
    paper: where the network is described.
    frozen: the layer up to which fine-tuning keeps the backbone frozen.
    names: the head's layers -> their published names.
    gate: the attention that the paper itself puts into the blocks.
    auxiliary: layer -> published name and constructor `(classes)` of the auxiliary head on its map.
    size: pixels of the paper's input, where no published weights say it.
    """

    make: Callable[..., Backbone]
    head: Callable[[int, int], Head]
    paper: str
    frozen: str | None
    names: Mapping[str, str]
    gate: Callable[..., Attention] | None = None
    auxiliary: Mapping[str, tuple[str, Callable[[int], Auxiliary]]] = field(default_factory=dict)
    size: int = 224


_EFFICIENTNET = (
    "Tan & Le 2019, EfficientNet; Lite form: Liu 2020, Higher accuracy on vision models with EfficientNet-Lite"
)
_RESNET = "He et al. 2016, Deep Residual Learning for Image Recognition"
_RESNEXT = "Xie et al. 2017, Aggregated Residual Transformations for Deep Neural Networks"

_lite = partial(Variant, names={"fc": "classifier"}, frozen="blocks.3", paper=_EFFICIENTNET)
_resnet = partial(Variant, head=Linear, names={"fc": "fc"}, frozen="layer2", paper=_RESNET)
_resnext = partial(_resnet, paper=_RESNEXT)

VARIANTS: dict[str, Variant] = {
    "efficientnet_lite0": _lite(partial(efficientnet_lite, width=1.0, depth=1.0), partial(Linear, dropout=0.2)),
    "efficientnet_lite1": _lite(partial(efficientnet_lite, width=1.0, depth=1.1), partial(Linear, dropout=0.2)),
    "efficientnet_lite2": _lite(partial(efficientnet_lite, width=1.1, depth=1.2), partial(Linear, dropout=0.3)),
    "resnet18": _resnet(partial(resnet, BasicBlock, (2, 2, 2, 2))),
    "resnet34": _resnet(partial(resnet, BasicBlock, (3, 4, 6, 3))),
    "resnet50": _resnet(partial(resnet, Bottleneck, (3, 4, 6, 3))),
    "resnet101": _resnet(partial(resnet, Bottleneck, (3, 4, 23, 3))),
    "resnet152": _resnet(partial(resnet, Bottleneck, (3, 8, 36, 3))),
    "resnext50_32x4d": _resnext(partial(resnet, Bottleneck, (3, 4, 6, 3), groups=32, group_width=4)),
    "resnext101_32x4d": _resnext(partial(resnet, Bottleneck, (3, 4, 23, 3), groups=32, group_width=4)),
    "resnext101_32x8d": _resnext(partial(resnet, Bottleneck, (3, 4, 23, 3), groups=32, group_width=8)),
    "resnext101_64x4d": _resnext(partial(resnet, Bottleneck, (3, 4, 23, 3), groups=64, group_width=4)),
}
