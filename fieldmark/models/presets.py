"""`--quality` -> the name of a backbone whose weights can be had here and now."""

from collections.abc import Callable

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import published

PIP_BACKBONES = {"fast": "efficientnet_lite0", "good": "efficientnet_lite2"}
"""Their weights come with the install."""
BEST_BACKBONES = (
    "timm:convnextv2_large.fcmae_ft_in22k_in1k",
    "timm:convnextv2_base.fcmae_ft_in22k_in1k",
    "timm:convnextv2_tiny.fcmae_ft_in22k_in1k",
)
"""Convolutional, judged at 224 pixels, by their authors' top-1: 87.3, 86.8 and 83.9 % (Woo et al. 2023, table 9)."""


def choose_backbone(quality: str, report: Callable[[str], object]) -> str:
    """The network for this quality; for `best` the first whose weights can be fetched, else the installed good one."""
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
