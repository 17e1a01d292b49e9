"""Classifiers on the Hugging Face hub, or on the one that HF_ENDPOINT names: `hf://user/name`, `hf://user/name@revision`.

Only ONNX, safetensors, JSON and the model card are taken, from the hub's own cache once they are there.
"""

from pathlib import Path
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.hub import hidden_progress_bar

PREFIX = "hf://"
REQUIRED_FILES = ("bundle.json", "model.onnx")
OPTIONAL_FILES = ("model.safetensors", "known.safetensors", "README.md")
TIMEOUT_SECONDS = 10.0
"""How long a server may take to respond."""


def is_hub_address(model: object) -> bool:
    """Whether this is the address of a classifier on the hub."""
    return isinstance(model, str) and model.startswith(PREFIX)


def download_bundle(address: str) -> Path:
    """The folder with the files of the bundle, in the hub's cache.

    Raises:
        FieldmarkError: the repository or a file of it is missing, or cannot be fetched.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = address.removeprefix(PREFIX).partition("@")
    try:
        first = _download(repository, REQUIRED_FILES[0], revision or None)
        commit = first.parent.name  # so that all files are of one revision, whatever is pushed meanwhile
        for name in (*REQUIRED_FILES[1:], *OPTIONAL_FILES):
            try:
                _download(repository, name, commit)
            except EntryNotFoundError:
                if name in REQUIRED_FILES:
                    raise
    except Exception as error:  # no network, no such repository, no access, a full disk
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        raise FieldmarkError(
            f"{address} cannot be loaded ({reason}): it is written hf://user/name, as `fieldmark push` names it"
        ) from error
    return first.parent


def _download(repository: str, name: str, revision: str | None) -> Path:
    import huggingface_hub as hub

    settings: dict[str, Any] = {"etag_timeout": TIMEOUT_SECONDS, "tqdm_class": hidden_progress_bar()}
    return Path(hub.hf_hub_download(repository, name, revision=revision, **settings))
