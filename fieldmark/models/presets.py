"""`--quality` -> the name of a backbone whose weights are available."""

from collections.abc import Callable

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import published

PIP_BACKBONES = {"fast": "efficientnet_lite0", "good": "efficientnet_lite2"}
"""Backbones whose weights are installed with pip."""
BEST_BACKBONES = (
    "timm:convnextv2_large.fcmae_ft_in22k_in1k",
    "timm:convnextv2_base.fcmae_ft_in22k_in1k",
    "timm:convnextv2_tiny.fcmae_ft_in22k_in1k",
)
"""ConvNeXt V2 at 224 pixels, with 87.3, 86.8 and 83.9 % top-1 accuracy on ImageNet (Woo et al. 2023, table 9)."""


def choose_backbone(quality: str, report: Callable[[str], object]) -> str:
    """The backbone for `fast`, `good` or `best`.

    For `best` it is the first of BEST_BACKBONES whose weights can be downloaded. If none can, it is that of `good`,
    and `report` is called with the reason.
    """
    if quality in PIP_BACKBONES:
        return PIP_BACKBONES[quality]
    reason = ""
    for name in BEST_BACKBONES:
        try:
            if row := published.find_weights(name):
                row.fetch()
        except FieldmarkError as error:
            reason = str(error)
            continue
        return name
    report(f"--quality best falls back to {PIP_BACKBONES['good']}: {reason}")
    return PIP_BACKBONES["good"]
