"""`--quality` -> the name of a backbone whose weights can be had here and now."""

from collections.abc import Callable

from fieldmark.core.errors import FieldmarkError
from fieldmark.models import published

INSTALLED = {"fast": "efficientnet_lite0", "good": "efficientnet_lite2"}
"""Their weights come with the install."""
STRONGEST = (
    "timm:convnextv2_large.fcmae_ft_in22k_in1k",
    "timm:convnextv2_base.fcmae_ft_in22k_in1k",
    "timm:convnextv2_tiny.fcmae_ft_in22k_in1k",
)
"""Convolutional, judged at 224 pixels, by their authors' top-1: 87.3, 86.8 and 83.9 % (Woo et al. 2023, table 9)."""


def backbone(quality: str, say: Callable[[str], object]) -> str:
    """The network for this quality; for `best` the first whose weights can be fetched, else the installed good one."""
    if quality in INSTALLED:
        return INSTALLED[quality]
    why = ""
    for name in STRONGEST:
        try:
            if row := published.find(name):
                row.fetch()
        except FieldmarkError as error:
            why = str(error)
            continue
        return name
    say(f"--quality best falls back to {INSTALLED['good']}: {why}")
    return INSTALLED["good"]
