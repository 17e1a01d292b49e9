"""Names or constructors -> a Network: backbone, attention, head, and published weights if requested."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import download, published, spec
from fieldmark.models.attention import Attention, Replace, mark_pretrained
from fieldmark.models.backbone import Backbone
from fieldmark.models.conversion import FileWeights, read_file
from fieldmark.models.heads import Head
from fieldmark.models.network import Network, NetworkSpec, Preprocessing
from fieldmark.models.stages import MultiStageBackbone
from fieldmark.models.weights import load_weights
from fieldmark.models.zoo import VARIANTS, Variant, by_timm

LOGGER = logging.getLogger("fieldmark")

AttentionConstructor = Callable[..., Attention] | Replace
HeadConstructor = Callable[[Any, int], Head]
StageAttention = Mapping[int, str | Callable[..., Attention]]


def build(
    backbone: str,
    *,
    attention: str | AttentionConstructor | None = None,
    after: str | StageAttention | None = None,
    head: str | HeadConstructor | None = None,
    classes: int = 1000,
    weights: str | Path | None = None,
    channels: int = 3,
    aux: bool = False,
    pad: int = 0,
    num_classes: int | None = None,
    pretrained: bool | None = None,
    in_chans: int | None = None,
) -> Network:
    """Build a network of the zoo, in training mode.

    Args:
        backbone: a name of VARIANTS or `timm:NAME`; may contain the other options, as in
            `resnet50+after=-1:mask+head=bilinear(reduced=64)`.
        attention: the attention inside every block: a constructor or text such as `se(ratio=8)`. None is the paper's
            own, "none" removes it, a name adds attention behind it, `replace(se)` replaces it.
        after: attention after stages (-1 is the last): a mapping or text such as `-1:mask,-2:se`.
        head: a constructor or text; None is the published head.
        classes: number of classes.
        weights: None (random initialization), "imagenet", or a file: .safetensors or .pth under the names of
            torchvision or timm, .h5 or .keras of keras.applications. The network then has the form and the
            preprocessing of that library. Added attention that the weights do not contain starts as the identity.
        channels: input channels, 3 for RGB.
        aux: build the auxiliary heads of the paper.
        pad: pixels of zero padding on each side of the input, which class evidence then covers too.
        num_classes: timm's word for `classes`.
        pretrained: timm's word for `weights="imagenet"`.
        in_chans: timm's word for `channels`.

    Raises:
        FieldmarkError: unknown names, weights that do not fit, or weights that cannot be downloaded.

    >>> build("efficientnet_lite0", after="-1:se(ratio=8)", classes=6).head
    LinearHead(
      (dropout): Dropout(p=0.2, inplace=False)
      (hidden): Sequential()
      (fc): Linear(in_features=1280, out_features=6, bias=True)
    )
    """
    classes = _either("num_classes", num_classes, "classes", classes, 1000)
    channels = _either("in_chans", in_chans, "channels", channels, 3)
    weights = _either("pretrained", "imagenet" if pretrained else None, "weights", weights, None)
    for name, number in (("classes", classes), ("channels", channels)):
        if number < 1:
            raise FieldmarkError(f"{name}={number}: must be at least 1")
    parts = _parse_parts(backbone, {"attention": attention, "after": after, "head": head, "aux": aux or None})
    backbone = parts.backbone
    variant = by_timm.make_variant(backbone) if by_timm.is_timm_name(backbone) else _find_variant(backbone)
    layers = _build_backbone(parts, variant, classes, channels)
    if pad:
        layers = Backbone(OrderedDict([("pad", nn.ZeroPad2d(pad)), *layers.named_children()]))
    layers, head_module = _build_head(layers, parts.head or variant.head, classes)
    if not isinstance(head_module, Head):
        raise FieldmarkError(f"head={parts.head}: must return a fieldmark.models.Head")
    row = published.find_weights(backbone)
    network_spec = NetworkSpec(
        backbone,
        spec.format_constructor(parts.attention) if parts.attention else None,
        spec.format_after(parts.after) if parts.after else None,
        spec.format_constructor(parts.head) if parts.head else None,
        classes,
        channels,
        parts.aux,
        pad,
    )
    preprocessing = row.preprocessing if row else replace(published.IMAGENET_PREPROCESSING, size=variant.size)
    preprocessing = _fit_channels(preprocessing, channels)
    network = Network(layers, head_module, preprocessing, variant.frozen_until, network_spec)
    if weights is not None:
        _load(network, variant, row, weights, has_published_head=parts.head is None)
    return network


def rebuild(network_spec: NetworkSpec | Mapping[str, Any]) -> Network:
    """The architecture of a specification, its attention in the same form, with random weights."""
    values = network_spec.to_dict() if isinstance(network_spec, NetworkSpec) else dict(network_spec)
    is_inserted, form = values.pop("inserted"), values.pop("form", None)
    network = build(**values)
    _apply_form(network, form)
    if is_inserted:
        network.start_attention_as_identity()
        network.spec = replace(network.spec, inserted=True)
    return network


def _either(timm_word: str, timm_value: Any, word: str, value: Any, default: Any) -> Any:
    """The argument under whichever of its two names it was given."""
    if timm_value is None:
        return value
    if value not in (default, timm_value):
        raise FieldmarkError(f"{timm_word}= and {word}= are two words for one argument: give one of them")
    return timm_value


class _Parts(NamedTuple):
    """The parsed arguments of `build`."""

    backbone: str
    attention: AttentionConstructor | None
    after: dict[int, Callable[..., Attention]]
    head: HeadConstructor | None
    aux: bool


def _parse_parts(text: str, arguments: dict[str, Any]) -> _Parts:
    options = spec.parse_network(text)
    backbone = options.pop("backbone")
    for key, value in options.items():
        if arguments[key] is not None:
            raise FieldmarkError(f"{key} is set twice: in the network string and as an argument")
        arguments[key] = value
    attention, head = arguments["attention"], arguments["head"]
    attention = spec.parse_attention(attention) if isinstance(attention, str) else attention
    head = spec.parse_head(head) if isinstance(head, str) else head
    for name, value in (("attention", attention), ("head", head)):
        if isinstance(value, nn.Module):
            raise FieldmarkError(f"{name}={value}: pass a class or functools.partial, not a module instance")
    aux = spec.parse_bool(arguments["aux"], "aux")
    return _Parts(backbone, attention, _parse_stage_attention(arguments["after"]), head, aux)


def _parse_stage_attention(after: str | StageAttention | None) -> dict[int, Callable[..., Attention]]:
    if isinstance(after, str):
        return spec.parse_after(after)
    if not isinstance(after, Mapping | None):
        raise FieldmarkError(f"after={after!r}: pass {{STAGE: ATTENTION}}, such as {{-1: Mask}}")
    items = (after or {}).items()
    for stage, make in items:
        if type(stage) is not int or not (isinstance(make, str) or callable(make)):
            raise FieldmarkError(f"after={{{stage!r}: {make!r}}}: pass {{STAGE: ATTENTION}}, such as {{-1: Mask}}")
    return {stage: spec.parse_gate(make) if isinstance(make, str) else make for stage, make in items}


def _find_variant(name: str) -> Variant:
    return spec.lookup(name, VARIANTS, "network")


def _build_backbone(parts: _Parts, variant: Variant, classes: int, channels: int) -> Backbone:
    gates = _block_attention_arguments(parts.backbone, variant, parts.attention)
    layers = variant.make_backbone(channels=channels, **gates)
    if parts.aux and not variant.auxiliary:
        raise FieldmarkError(f"{parts.backbone} has no auxiliary heads in its paper: leave aux out")
    for layer, (name, make) in variant.auxiliary.items() if parts.aux else ():
        layers.add_auxiliary_head(layer, name, make(classes))
    layers.insert_attention(parts.after)
    return layers


def _build_head(layers: Backbone, make: HeadConstructor, classes: int) -> tuple[Backbone, Head]:
    """The head, and the backbone in the form that it reads."""
    channels = tuple(layers.stages.values())
    if getattr(make.func if isinstance(make, partial) else make, "reads_stages", False):
        return MultiStageBackbone(OrderedDict(layers.named_children())), make(channels, classes)
    return layers, make(channels[-1], classes)


def _block_attention_arguments(
    name: str, variant: Variant, make: AttentionConstructor | None
) -> dict[str, Callable[..., Attention]]:
    """The constructors of the attention inside blocks: `gate` for the paper's own, `attention` for what is added."""
    if variant.gate is None:
        if isinstance(make, Replace):
            raise FieldmarkError(f"{name} has no attention of its own to replace: write only the attention's name")
        return {} if make is None else {"attention": make}
    if isinstance(make, Replace):
        return {"gate": make.constructor}
    if make is Attention:
        return {"gate": Attention}
    return {"gate": mark_pretrained(variant.gate)} | ({} if make is None else {"attention": make})


def _fit_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """The preprocessing of so many channels: without RGB, every channel gets the mean of the three."""
    if channels == len(preprocessing.mean):
        return preprocessing
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=(mean,) * channels, std=(std,) * channels)


def _load(
    network: Network,
    variant: Variant,
    row: published.PublishedWeights | None,
    weights: str | Path,
    *,
    has_published_head: bool,
) -> None:
    loaded = _read(network.spec.backbone, row, weights)
    _apply_form(network, loaded.form)
    if loaded.preprocessing:
        network.preprocessing = _fit_channels(loaded.preprocessing, network.spec.channels)
    report = load_weights(
        network,
        loaded.state,
        variant,
        published_head=has_published_head,
        source=str(weights),
        renames=row.renames if row else (),
    )
    network.has_untrained_slots = report.untrained
    network.spec = replace(network.spec, inserted=report.inserted)
    if loaded.note:
        LOGGER.warning(loaded.note)
    if report.dropped_gates:
        LOGGER.warning(
            "discarded %s weights of %d pretrained attention gates, which were replaced or removed",
            f"{report.dropped_weights:,}",
            report.dropped_gates,
        )


def _apply_form(network: Network, form: str | None) -> None:
    """Give a network of the published form that of another library."""
    if form is not None:
        spec.lookup(form, _find_variant(network.spec.backbone).forms, "form")(network.backbone)
        network.spec = replace(network.spec, form=form)


def _read(backbone: str, row: published.PublishedWeights | None, weights: str | Path) -> FileWeights:
    if weights != "imagenet":
        return read_file(Path(weights), backbone, row)
    if row is None:
        raise download.no_weights_error(backbone)
    return FileWeights(row.convert(row.fetch()))
