"""What every download from the hub needs."""

from typing import Any


def hidden_progress_bar() -> type:
    """The hub's progress bar, which draws nothing: for `tqdm_class` of its downloads. Needs huggingface_hub."""
    from huggingface_hub.utils import tqdm

    class HiddenProgressBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})

    return HiddenProgressBar
