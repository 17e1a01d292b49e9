"""Words or constructors -> a Network: backbone x attention x head, with published weights where asked."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import download, published, spec
from fieldmark.models.attention import Attention, Gate, Replace, brought
from fieldmark.models.backbone import Auxiliary, Backbone, Network, Preprocessing, is_added
from fieldmark.models.bilinear import Bilinear, SelfProduct
from fieldmark.models.gates import CBAM, ECA, ELA, GCT, SE, Coordinate, Mask
from fieldmark.models.heads import AttentionPool, Classic, GeM, Head, Linear
from fieldmark.models.weights import load
from fieldmark.models.zoo import VARIANTS, Variant, by_timm

__all__ = [
    "CBAM",
    "ECA",
    "ELA",
    "GCT",
    "SE",
    "VARIANTS",
    "Attention",
    "AttentionPool",
    "Auxiliary",
    "Backbone",
    "Bilinear",
    "Classic",
    "Coordinate",
    "Gate",
    "GeM",
    "Head",
    "Linear",
    "Mask",
    "Network",
    "Preprocessing",
    "Replace",
    "SelfProduct",
    "build",
    "is_added",
    "rebuild",
]

MakeAttention = Callable[..., Attention] | Replace
MakeHead = Callable[[int, int], Head]


def build(
    backbone: str,
    *,
    attention: str | MakeAttention | None = None,
    after: str | Mapping[int, str | Callable[..., Attention]] | None = None,
    head: str | MakeHead | None = None,
    classes: int = 1000,
    weights: str | Path | None = None,
    channels: int = 3,
    aux: bool = False,
    pad: int = 0,
) -> Network:
    """Build a network of the zoo, in training mode as torch does.

    `attention` is the gate inside every block and `after` those after stages (-1 the last): words such as
    `se(ratio=8)` and `-1:mask,-2:se`, or constructors. None is the paper's own, "none" no attention; a name adds its
    gate behind the paper's, `replace(se)` takes their place. `head=None` is the published head. `weights` is None
    (random), "imagenet", or a .safetensors or .pth file under the published names; attention that they do not bring
    starts as the identity. `channels` is the input's (3: RGB). `aux` builds the auxiliary heads of the paper. `pad`
    puts so many zeros around the input, on each side; evidence then covers them too. The backbone's word may carry the
    others: `resnet50+after=-1:mask+head=bilinear(reduced=64)`.

    Raises FieldmarkError for unknown words, for weights that do not fit, and where weights cannot be had.

    >>> build("efficientnet_lite0", after="-1:se(ratio=8)", classes=6).head
    Linear(
      (dropout): Dropout(p=0.2, inplace=False)
      (hidden): Sequential()
      (fc): Linear(in_features=1280, out_features=6, bias=True)
    )
    """
    words = spec.parse_network(backbone)
    backbone = words.pop("backbone")
    arguments: dict[str, Any] = {"attention": attention, "after": after, "head": head, "aux": aux or None}
    for key, word in words.items():
        if arguments[key] is not None:
            raise FieldmarkError(f"{key} is given twice: in the network's words and beside them")
        arguments[key] = word
    timms = by_timm.is_one(backbone)
    variant = by_timm.variant(backbone) if timms else spec.known(backbone, VARIANTS, "network")
    for name, number in (("classes", classes), ("channels", channels)):
        if number < 1:
            raise FieldmarkError(f"{name}={number}: a network has at least one")

    attention, head = arguments["attention"], arguments["head"]
    make_attention = spec.parse_attention(attention) if isinstance(attention, str) else attention
    make_head = spec.parse_head(head) if isinstance(head, str) else head
    for given, what in ((make_attention, "attention"), (make_head, "head")):
        if isinstance(given, nn.Module):
            raise FieldmarkError(f"{what}={given}: give its class, or a partial of it; every place makes its own")
    aux, slots = spec.parse_switch(arguments["aux"], "aux"), _slots(arguments["after"])
    layers = variant.make(channels=channels, **_inside(backbone, variant, make_attention))
    width = list(layers.stages.values())[-1]
    if aux and not variant.auxiliary:
        raise FieldmarkError(f"{backbone} has no auxiliary heads in its paper: leave aux out")
    for layer, (name, make) in variant.auxiliary.items() if aux else ():
        layers.tap(layer, name, make(classes))
    layers.insert(slots)
    if pad:
        layers = Backbone(OrderedDict([("pad", nn.ZeroPad2d(pad)), *layers.named_children()]))
    made_head = (make_head or variant.head)(width, classes)
    if not isinstance(made_head, Head):
        raise FieldmarkError(f"head={make_head}: makes no fieldmark.models.Head, which knows its evidence")
    network = Network(
        layers,
        made_head,
        _preprocessing(backbone, variant, channels),
        variant.frozen,
        {
            "backbone": backbone,
            "attention": spec.spell(make_attention) if make_attention else None,
            "after": spec.spell_after(slots) if slots else None,
            "head": spec.spell(make_head) if make_head else None,
            "classes": classes,
            "channels": channels,
            "aux": aux,
            "pad": pad,
            "inserted": False,
        },
    )
    if weights is not None:
        row = published.find(backbone)
        network.spec["inserted"] = load(
            network,
            _fetch(backbone, row, weights),
            variant,
            published_head=make_head is None,
            source=str(weights),
            renames=row.renames if row else (),
        )
    return network


def rebuild(words: Mapping[str, Any]) -> Network:
    """The architecture of a network's `spec`, its gates in the same form, with no weights loaded."""
    arguments = {key: word for key, word in words.items() if key != "inserted"}
    network = build(**arguments)
    if words["inserted"]:
        for slot in network.slots.values():
            slot.start_as_identity()
        network.spec["inserted"] = True
    return network


def _inside(name: str, variant: Variant, make: MakeAttention | None) -> dict[str, Callable[..., Attention]]:
    """Which constructors the family gets for the gates inside its blocks: the paper's `gate`, the added `attention`."""
    if variant.gate is None:
        if isinstance(make, Replace):
            raise FieldmarkError(f"{name} has no attention of its own to replace: write the attention's name alone")
        return {} if make is None else {"attention": make}
    if isinstance(make, Replace):
        return {"gate": make.make}
    if make is Attention:
        return {"gate": Attention}
    return {"gate": brought(variant.gate)} | ({} if make is None else {"attention": make})


def _slots(after: str | Mapping[int, str | Callable[..., Attention]] | None) -> dict[int, Callable[..., Attention]]:
    if isinstance(after, str):
        return spec.parse_after(after)
    if not isinstance(after, Mapping | None):
        raise FieldmarkError(f"after={after!r}: write {{STAGE: ATTENTION}}, as in {{-1: Mask}}")
    for stage, make in (after or {}).items():
        if type(stage) is not int or not (isinstance(make, str) or callable(make)):
            raise FieldmarkError(f"after={{{stage!r}: {make!r}}}: write STAGE: ATTENTION, as in {{-1: Mask}}")
    makers = (after or {}).items()
    return {stage: spec.parse_gate(make) if isinstance(make, str) else make for stage, make in makers}


def _preprocessing(backbone: str, variant: Variant, channels: int) -> Preprocessing:
    row = published.find(backbone)
    preprocessing = row.preprocessing if row else replace(published.IMAGENET, size=variant.size)
    if channels == len(preprocessing.mean):
        return preprocessing
    # Without a colour to tell which channel is which, each gets the mean of the three.
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=(mean,) * channels, std=(std,) * channels)


def _fetch(backbone: str, row: published.Published | None, weights: str | Path) -> dict[str, Tensor]:
    if weights != "imagenet":
        state = download.read(Path(weights))
        return row.convert(state) if row else state
    if row is None:
        raise FieldmarkError(f"no published weights of {backbone} are known: give a file by --weights FILE, or none")
    return row.convert(row.fetch())
