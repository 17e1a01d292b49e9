"""RUN folder -> the photos that a finished training was made of, where they still are, and its language."""

import json
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import ENGLISH, Language, get_language
from fieldmark.data.catalog import Catalog
from fieldmark.data.readers import read_catalog
from fieldmark.recipes import recipe as recipes


def read_dataset_path(run: Path) -> Path:
    """What the run was trained on: a folder, an archive, a manifest.

    Raises FieldmarkError where the run does not say.
    """
    try:
        return Path(json.loads((run / "audit.json").read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldmarkError(f"{run} is no whole run ({error}): name the photos as well") from None


def load_catalog(run: Path) -> Catalog:
    """The photos in it; FieldmarkError where they are gone, too."""
    return read_catalog(read_dataset_path(run), min_classes=1)


def resolve_language(run: Path, lang: str | None = None) -> Language:
    """The language `lang`, else that of the run's recipe, else English. Raises FieldmarkError for an unknown one."""
    if lang is not None:
        return get_language(recipes.Recipe(lang=lang).lang)
    try:
        return get_language(recipes.read_recipe(run / "recipe.yaml").lang)
    except (FieldmarkError, OSError):  # a bundle alone, or a later version's recipe
        return ENGLISH
