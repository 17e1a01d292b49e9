"""`timm:NAME` -> a Variant around a network of timm: photos (n, channels, h, w) -> one map (n, c, h', w').

The network is one layer that ends one stage: attention stands behind it (`after=-1:se`), never inside its blocks.
Transformers give their patch tokens as a map, without class and register tokens; a map with channels last is turned;
where timm's head starts with a layer norm on the pooled features, that norm stands on every position of the map.
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
from torch.nn.modules.module import register_module_forward_pre_hook

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import download
from fieldmark.models.attention import Attention
from fieldmark.models.backbone import Backbone, mark_stage_end
from fieldmark.models.heads import LinearHead
from fieldmark.models.zoo import Variant

PREFIX = "timm:"


class TimmFeatures(nn.Module):
    """A network of timm without its head, then `norm` on the channels (`width` of them) of each position."""

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
    """What a network of timm turned out to be: the width of its map, the layers of its head that have parameters.

    `norm` is the one of them that the trunk keeps.
    """

    channels: int
    head_layers: tuple[str, ...]
    kept_norm: str | None


def is_timm_name(name: str) -> bool:
    """Whether the name means a network of timm."""
    return name.startswith(PREFIX)


def make_variant(name: str) -> Variant:
    """The row of `timm:NAME`. timm brings the features; the head, a class layer on their average, is always ours.

    Raises FieldmarkError where timm is missing, or knows no such network, or the network has no map.
    """
    form = _inspect_layout(name)
    left_out = {f"timm's {layer}": f"timm.model.{layer}" for layer in form.head_layers if layer != form.kept_norm}
    return Variant(
        partial(_make_backbone, name),
        LinearHead,
        f"as {name.removeprefix(PREFIX)} in timm",
        frozen_until=None,
        head_names=left_out,
    )


def key_renames(name: str) -> tuple[tuple[str, str], ...]:
    """timm's names -> the network's."""
    form = _inspect_layout(name)
    norm = ((f"^{re.escape(form.kept_norm)}\\.", "timm.norm."),) if form.kept_norm else ()
    return (*norm, (r"^(?!timm\.)", "timm.model."))


def pretrained_config(name: str) -> Any:
    """timm's own record of the network: where its weights lie and what they expect."""
    timm, model_name = download.import_timm(), name.removeprefix(PREFIX)
    try:
        return timm.get_pretrained_cfg(model_name, allow_unregistered=False)
    except RuntimeError as error:
        architecture = model_name.partition(".")[0]
        candidates = timm.list_pretrained(f"{architecture}.*") or timm.list_models()
        close = ", ".join(get_close_matches(model_name, candidates, 3)) or "one that timm.list_models() names"
        raise FieldmarkError(f"timm has no network {model_name!r}: did you mean {close}?") from error


def fetch_weights(name: str) -> dict[str, Tensor]:
    """The published weights, by timm's own loading."""
    source = pretrained_config(name)
    if source.hf_hub_id:
        # First, since timm by itself would try for minutes before it says that there is no network.
        file = (source.hf_hub_filename or download.HUB_FILE).replace("pytorch_model.bin", "model.safetensors")
        download.download_from_hub(source.hf_hub_id, file)
    elif source.url:
        download.download_url(source.url)
    else:
        raise FieldmarkError(f"no published weights of {name} are known: give a file by --weights FILE, or none")
    with download.download_errors(name, "give a file by --weights FILE"):
        return _create_model(name, pretrained=True).state_dict()


def _create_model(name: str, **settings: Any) -> Any:
    """timm's network; one that is made for one size takes others too, where timm knows how."""
    create = partial(download.import_timm().create_model, name.removeprefix(PREFIX), **settings)
    with warnings.catch_warnings(action="ignore"):
        if pretrained_config(name).fixed_input_size:
            try:
                return create(dynamic_img_size=True)
            except TypeError:  # has no such setting
                pass
        return create()


def _make_backbone(name: str, *, channels: int, attention: Callable[..., nn.Module] | None = None) -> Backbone:
    if attention not in (None, Attention):
        raise FieldmarkError(f"{name} takes no attention inside its blocks: put it behind the last, as after=-1:se")
    form, model = _inspect_layout(name), _create_model(name, in_chans=channels)
    norm = nn.LayerNorm(form.channels, model.get_submodule(form.kept_norm).eps) if form.kept_norm else nn.Identity()
    for layer in reversed(form.head_layers):  # what is inside another layer first
        model.set_submodule(layer, nn.Identity())
    return Backbone(OrderedDict(timm=mark_stage_end(TimmFeatures(model, form.channels, norm), form.channels)))


@cache
def _inspect_layout(name: str) -> TimmLayout:
    """Found by running the network on the meta device, which takes no memory."""
    height, width = pretrained_config(name).input_size[1:]
    with torch.device("meta"), torch.no_grad():
        model, photos = _create_model(name).eval(), torch.empty(2, 3, height, width)
        try:
            features = model.forward_features(photos)
            if _to_nhwc(model, model.num_features, features, photos).shape[3] != model.num_features:
                raise ValueError("several maps, one behind the other")
            head = _layers_run(model, lambda: model.forward_head(features))
        except Exception as error:  # whatever a network says that is not made so
            raise FieldmarkError(f"{name} gives no single map of features: take another network") from error
    first = model.get_submodule(head[0]) if head else None
    norm = isinstance(first, nn.LayerNorm) and first.normalized_shape == (model.num_features,)
    return TimmLayout(model.num_features, tuple(head), head[0] if norm else None)


def _to_nhwc(model: Any, width: int, features: Tensor, photos: Tensor) -> Tensor:
    """What `forward_features` gives -> (n, h', w', c)."""
    if features.ndim == 3:
        patches = features[:, getattr(model, "num_prefix_tokens", 0) :]
        h, w = photos.shape[2:]
        return patches.unflatten(1, (round((patches.shape[1] * h / w) ** 0.5), -1))
    return features.permute(0, 2, 3, 1) if features.shape[1] == width else features


def _layers_run(model: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """The layers with parameters of their own that run, in order, then those inside them that do not."""
    names = {module: name for name, module in model.named_modules() if next(module.parameters(False), None) is not None}
    called = {}
    hook = register_module_forward_pre_hook(lambda module, _: called.update({module: None}))
    try:
        run()
    finally:
        hook.remove()
    ran = [names[module] for module in called if module in names]
    inside = [name for name in names.values() if name.startswith(tuple(f"{other}." for other in ran))]
    return list(dict.fromkeys(ran + inside))
