"""`timm:NAME` -> a Variant around a timm network: images (n, channels, h, w) -> one feature map (n, c, h', w').

The network is one layer that ends one stage: attention can be put behind it (`after=-1:se`), not inside its blocks.
The patch tokens of transformers become a map, without class and register tokens; channels-last maps are transposed. If
timm's head starts with a layer norm of the pooled features, that norm is applied to every position of the map.
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import download
from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.heads import LinearHead
from fieldmark.models.hooks import forward_hooks
from fieldmark.models.zoo import Variant

PREFIX = "timm:"


class TimmFeatures(nn.Module):
    """A timm network without its head, then `norm` of the `width` channels at each position."""

    def __init__(self, model: Any, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.norm = norm
        self.channels = width

    def forward(self, x: Tensor) -> Tensor:
        y = _to_nhwc(self.model, self.channels, self.model.forward_features(x), x)
        return self.norm(y).permute(0, 3, 1, 2)  # (n, c, h', w')


@dataclass(frozen=True)
class TimmLayout:
    """Layout of a timm network.

    Attributes:
        channels: channels of the feature map.
        head_layers: names of the head's layers with parameters.
        kept_norm: the one of them that stays, a layer norm; None for none.
    """

    channels: int
    head_layers: tuple[str, ...]
    kept_norm: str | None


def is_timm_name(name: str) -> bool:
    """Whether the name is `timm:NAME`."""
    return name.startswith(PREFIX)


def make_variant(name: str) -> Variant:
    """The variant of `timm:NAME`: timm's features with a LinearHead.

    Raises:
        FieldmarkError: timm is not installed, it has no such network, or the network has no spatial feature map.
    """
    layout = _inspect_layout(name)
    left_out = {f"timm's {layer}": f"timm.model.{layer}" for layer in layout.head_layers if layer != layout.kept_norm}
    return Variant(
        partial(_make_backbone, name),
        LinearHead,
        f"as {name.removeprefix(PREFIX)} in timm",
        frozen_until=None,
        head_names=left_out,
    )


def key_renames(name: str) -> tuple[tuple[str, str], ...]:
    """Patterns and replacements, from timm's names to the network's."""
    layout = _inspect_layout(name)
    norm = ((f"^{re.escape(layout.kept_norm)}\\.", "timm.norm."),) if layout.kept_norm else ()
    return (*norm, (r"^(?!timm\.)", "timm.model."))


def pretrained_config(name: str) -> Any:
    """timm's configuration of the network: source and preprocessing of its weights."""
    timm, model_name = download.import_timm(), name.removeprefix(PREFIX)
    try:
        return timm.get_pretrained_cfg(model_name, allow_unregistered=False)
    except RuntimeError as error:
        architecture = model_name.partition(".")[0]
        candidates = timm.list_pretrained(f"{architecture}.*") or timm.list_models()
        close = ", ".join(get_close_matches(model_name, candidates, 3)) or "one of timm.list_models()"
        raise FieldmarkError(f"timm has no network {model_name!r}: did you mean {close}?") from error


def fetch_weights(name: str) -> dict[str, Tensor]:
    """The published weights, downloaded by us and read by timm, which converts old formats.

    timm itself would retry for minutes without a network.
    """
    source = pretrained_config(name)
    if source.hf_hub_id:
        hub_file = (source.hf_hub_filename or download.HUB_FILE).replace("pytorch_model.bin", "model.safetensors")
        overlay = {"file": str(download.download_from_hub(source.hf_hub_id, hub_file)), "custom_load": False}
    elif source.url:
        overlay = {"file": str(download.download_url(source.url))}
    else:
        raise download.no_weights_error(name)
    with download.download_errors(name, "pass a file by --weights FILE"):
        return _create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def _create_model(name: str, **settings: Any) -> Any:
    """Create a timm network; one with a fixed input size accepts other sizes if timm supports that."""
    create = partial(download.import_timm().create_model, name.removeprefix(PREFIX), **settings)
    with warnings.catch_warnings(action="ignore"):
        if pretrained_config(name).fixed_input_size:
            try:
                return create(dynamic_img_size=True)
            except TypeError:  # no such argument
                pass
        return create()


def _make_backbone(name: str, *, channels: int, attention: Callable[..., nn.Module] | None = None) -> Backbone:
    if attention not in (None, Attention):
        raise FieldmarkError(f"{name} takes no attention inside its blocks: put it behind the last by after=-1:se")
    layout, model = _inspect_layout(name), _create_model(name, in_chans=channels)
    kept_norm = model.get_submodule(layout.kept_norm) if layout.kept_norm else None
    norm = nn.LayerNorm(layout.channels, kept_norm.eps) if kept_norm is not None else nn.Identity()
    for layer in reversed(layout.head_layers):  # nested layers first
        model.set_submodule(layer, nn.Identity())
    return Backbone(OrderedDict(timm=mark_stage_end(TimmFeatures(model, layout.channels, norm), layout.channels)))


@cache
def _inspect_layout(name: str) -> TimmLayout:
    """Determine the layout by running the network on the meta device, which takes no memory."""
    height, width = pretrained_config(name).input_size[1:]
    with torch.device("meta"), torch.no_grad():
        model, images = _create_model(name).eval(), torch.empty(2, 3, height, width)
        try:
            features = model.forward_features(images)
            if _to_nhwc(model, model.num_features, features, images).shape[3] != model.num_features:
                raise ValueError("several concatenated maps")
            head = _layers_run(model, lambda: model.forward_head(features))
        except Exception as error:  # networks without such methods or outputs raise all kinds
            raise FieldmarkError(f"{name} has no single spatial feature map; choose another network") from error
    first = model.get_submodule(head[0]) if head else None
    norm = isinstance(first, nn.LayerNorm) and first.normalized_shape == (model.num_features,)
    return TimmLayout(model.num_features, tuple(head), head[0] if norm else None)


def _to_nhwc(model: Any, width: int, features: Tensor, images: Tensor) -> Tensor:
    """The output of `forward_features` -> (n, h', w', c)."""
    if features.ndim == 3:
        patches = features[:, getattr(model, "num_prefix_tokens", 0) :]
        h, w = images.shape[2:]
        return patches.unflatten(1, (round((patches.shape[1] * h / w) ** 0.5), -1))
    return features.permute(0, 2, 3, 1) if features.shape[1] == width else features


def _layers_run(model: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """Names of the layers with their own parameters that run, in order, then of those inside them that do not."""
    names = {module: name for name, module in model.named_modules() if next(module.parameters(False), None) is not None}
    ran: dict[str, None] = {}
    with forward_hooks(names, before=lambda module, _: ran.update({names[module]: None})):
        run()
    inside = [name for name in names.values() if name.startswith(tuple(f"{other}." for other in ran))]
    return list(dict.fromkeys([*ran, *inside]))
