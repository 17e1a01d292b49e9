"""A run -> a repository on the hub: the bundle, with the model card as README.md."""

import shutil
import tempfile
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.inference.bundle import find_onnx_file
from fieldmark.inference.hub import OPTIONAL_FILES, PREFIX, REQUIRED_FILES

CARD_PLACEHOLDER = "BUNDLE"
"""What stands in a model card for the place of the classifier."""


def push_run(run: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload the classifier of a finished run, and return the address that `fieldmark.load` takes.

    The repository is made if there is none. The token is that of `hf auth login` or HF_TOKEN. Nothing else of the run
    is uploaded: no images, no predictions.

    Args:
        run: a finished run.
        repository: as user/name.
        private: whether a new repository is private.

    Raises:
        FieldmarkError: the run has not finished, or the hub refuses.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bundle, card = find_onnx_file(run).parent, Path(run) / "card.md"
    if not card.is_file():
        raise FieldmarkError(f"{run} has no card.md: push a finished run")
    address, was_hidden = f"{PREFIX}{repository}", are_progress_bars_disabled()
    with tempfile.TemporaryDirectory(prefix="fieldmark-") as folder:
        for name in (*REQUIRED_FILES, *OPTIONAL_FILES):
            if (bundle / name).is_file():
                shutil.copyfile(bundle / name, Path(folder) / name)
        text = card.read_text(encoding="utf-8").replace(CARD_PLACEHOLDER, address)
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        disable_progress_bars()
        try:
            api = hub.HfApi(library_name="fieldmark")
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a classifier by fieldmark")
        except Exception as error:  # no token, no access, no network, an invalid name
            reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
            raise FieldmarkError(f"{repository} cannot be pushed ({reason}): log in by `hf auth login`") from error
        finally:
            if not was_hidden:
                enable_progress_bars()
    return address
