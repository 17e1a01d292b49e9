"""Words or constructors -> a Network: backbone x attention x head, with published weights where asked."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import download, published, spec
from fieldmark.models.attention import Attention, Gate, Replace, mark_pretrained
from fieldmark.models.backbone import AuxiliaryHead, Backbone, Network, Preprocessing, is_added
from fieldmark.models.bilinear import Bilinear, SelfProduct
from fieldmark.models.gates import CBAM, ECA, ELA, GCT, SE, CoordinateAttention, Mask
from fieldmark.models.heads import AttentionPool, ClassicHead, GeM, Head, LinearHead
from fieldmark.models.weights import load_weights
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
    "AuxiliaryHead",
    "Backbone",
    "Bilinear",
    "ClassicHead",
    "CoordinateAttention",
    "Gate",
    "GeM",
    "Head",
    "LinearHead",
    "Mask",
    "Network",
    "Preprocessing",
    "Replace",
    "SelfProduct",
    "build",
    "is_added",
    "rebuild",
]

AttentionConstructor = Callable[..., Attention] | Replace
HeadConstructor = Callable[[int, int], Head]


def build(
    backbone: str,
    *,
    attention: str | AttentionConstructor | None = None,
    after: str | Mapping[int, str | Callable[..., Attention]] | None = None,
    head: str | HeadConstructor | None = None,
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
    network_options = spec.parse_network(backbone)
    backbone = network_options.pop("backbone")
    arguments: dict[str, Any] = {"attention": attention, "after": after, "head": head, "aux": aux or None}
    for key, word in network_options.items():
        if arguments[key] is not None:
            raise FieldmarkError(f"{key} is given twice: in the network's words and beside them")
        arguments[key] = word
    is_timm_network = by_timm.is_timm_name(backbone)
    variant = by_timm.make_variant(backbone) if is_timm_network else spec.lookup(backbone, VARIANTS, "network")
    for name, number in (("classes", classes), ("channels", channels)):
        if number < 1:
            raise FieldmarkError(f"{name}={number}: a network has at least one")

    attention, head = arguments["attention"], arguments["head"]
    make_attention = spec.parse_attention(attention) if isinstance(attention, str) else attention
    make_head = spec.parse_head(head) if isinstance(head, str) else head
    for argument, argument_name in ((make_attention, "attention"), (make_head, "head")):
        if isinstance(argument, nn.Module):
            raise FieldmarkError(
                f"{argument_name}={argument}: give its class, or a partial of it; every place makes its own"
            )
    aux, slots = spec.parse_bool(arguments["aux"], "aux"), _parse_stage_slots(arguments["after"])
    layers = variant.make_backbone(channels=channels, **_block_attention_arguments(backbone, variant, make_attention))
    width = list(layers.stages.values())[-1]
    if aux and not variant.auxiliary:
        raise FieldmarkError(f"{backbone} has no auxiliary heads in its paper: leave aux out")
    for layer, (name, make) in variant.auxiliary.items() if aux else ():
        layers.add_auxiliary_head(layer, name, make(classes))
    layers.insert_attention(slots)
    if pad:
        layers = Backbone(OrderedDict([("pad", nn.ZeroPad2d(pad)), *layers.named_children()]))
    head_module = (make_head or variant.head)(width, classes)
    if not isinstance(head_module, Head):
        raise FieldmarkError(f"head={make_head}: makes no fieldmark.models.Head, which knows its evidence")
    network = Network(
        layers,
        head_module,
        _resolve_preprocessing(backbone, variant, channels),
        variant.frozen_until,
        {
            "backbone": backbone,
            "attention": spec.format_constructor(make_attention) if make_attention else None,
            "after": spec.format_after(slots) if slots else None,
            "head": spec.format_constructor(make_head) if make_head else None,
            "classes": classes,
            "channels": channels,
            "aux": aux,
            "pad": pad,
            "inserted": False,
        },
    )
    if weights is not None:
        row = published.find_weights(backbone)
        network.spec["inserted"] = load_weights(
            network,
            _load_published_state(backbone, row, weights),
            variant,
            published_head=make_head is None,
            source=str(weights),
            renames=row.renames if row else (),
        )
    return network


def rebuild(network_spec: Mapping[str, Any]) -> Network:
    """The architecture of a network's `spec`, its gates in the same form, with no weights loaded."""
    arguments = {key: word for key, word in network_spec.items() if key != "inserted"}
    network = build(**arguments)
    if network_spec["inserted"]:
        for slot in network.added_attention.values():
            slot.start_as_identity()
        network.spec["inserted"] = True
    return network


def _block_attention_arguments(
    name: str, variant: Variant, make: AttentionConstructor | None
) -> dict[str, Callable[..., Attention]]:
    """Which constructors the family gets for the gates inside its blocks: the paper's `gate`, the added `attention`."""
    if variant.gate is None:
        if isinstance(make, Replace):
            raise FieldmarkError(f"{name} has no attention of its own to replace: write the attention's name alone")
        return {} if make is None else {"attention": make}
    if isinstance(make, Replace):
        return {"gate": make.constructor}
    if make is Attention:
        return {"gate": Attention}
    return {"gate": mark_pretrained(variant.gate)} | ({} if make is None else {"attention": make})


def _parse_stage_slots(
    after: str | Mapping[int, str | Callable[..., Attention]] | None,
) -> dict[int, Callable[..., Attention]]:
    if isinstance(after, str):
        return spec.parse_after(after)
    if not isinstance(after, Mapping | None):
        raise FieldmarkError(f"after={after!r}: write {{STAGE: ATTENTION}}, as in {{-1: Mask}}")
    for stage, make in (after or {}).items():
        if type(stage) is not int or not (isinstance(make, str) or callable(make)):
            raise FieldmarkError(f"after={{{stage!r}: {make!r}}}: write STAGE: ATTENTION, as in {{-1: Mask}}")
    makers = (after or {}).items()
    return {stage: spec.parse_gate(make) if isinstance(make, str) else make for stage, make in makers}


def _resolve_preprocessing(backbone: str, variant: Variant, channels: int) -> Preprocessing:
    row = published.find_weights(backbone)
    preprocessing = row.preprocessing if row else replace(published.IMAGENET_PREPROCESSING, size=variant.size)
    if channels == len(preprocessing.mean):
        return preprocessing
    # Without a colour to tell which channel is which, each gets the mean of the three.
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=(mean,) * channels, std=(std,) * channels)


def _load_published_state(
    backbone: str, row: published.PublishedWeights | None, weights: str | Path
) -> dict[str, Tensor]:
    if weights != "imagenet":
        state = download.read_weights(Path(weights))
        return row.convert(state) if row else state
    if row is None:
        raise FieldmarkError(f"no published weights of {backbone} are known: give a file by --weights FILE, or none")
    return row.convert(row.fetch())
