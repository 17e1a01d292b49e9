"""Fieldmark: from a folder of labelled photos to a classifier you can trust, and can read.

>>> import fieldmark
>>> run = fieldmark.train("photos", out="run")  # doctest: +SKIP
>>> fieldmark.load("run").predict("photo.jpg")[0]["label"]  # doctest: +SKIP
'glass'
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldmark.network import build as build
    from fieldmark.predict import Classifier as load
    from fieldmark.recipe import Recipe as Recipe
    from fieldmark.run import train as train

__all__ = ["Recipe", "build", "load", "train"]

__version__ = _version("fieldmark")

_HOMES = {
    "Recipe": ("fieldmark.recipe", "Recipe"),
    "build": ("fieldmark.network", "build"),
    "load": ("fieldmark.predict", "Classifier"),
    "train": ("fieldmark.run", "train"),
}


def __getattr__(name: str) -> Any:
    """Import late: `import fieldmark` and prediction need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fieldmark' has no attribute {name!r}")
    from importlib import import_module

    module, thing = _HOMES[name]
    return getattr(import_module(module), thing)
