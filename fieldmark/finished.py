"""RUN folder -> the photos that a finished training was made of, where they still are."""

import json
from pathlib import Path

from fieldmark.errors import FieldmarkError
from fieldmark.photos.catalog import Catalog
from fieldmark.photos.inputs import read


def source_of(run: Path) -> Path:
    """What the run was trained on: a folder, an archive, a manifest.

    Raises FieldmarkError where the run does not say.
    """
    try:
        return Path(json.loads((run / "audit.json").read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldmarkError(f"{run} is no whole run ({error}): name the photos as well") from None


def catalog_of(run: Path) -> Catalog:
    """The photos in it; FieldmarkError where they are gone, too."""
    return read(source_of(run), least=1)
