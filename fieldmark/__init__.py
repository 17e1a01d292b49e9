"""Fieldmark: from a folder of labelled photos to a classifier you can trust, and can read.

>>> import fieldmark
>>> run = fieldmark.train("photos", out="run")  # doctest: +SKIP
>>> fieldmark.load("run").predict("photo.jpg")[0].label  # doctest: +SKIP
'glass'
"""

import os as _os
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldmark.inference.classifier import Classifier as load
    from fieldmark.models import build as build
    from fieldmark.pipeline.train import train as train
    from fieldmark.recipes.recipe import Recipe as Recipe

# Before anything imports torch: threads that wait must sleep. Spinning ones take the cores from the threads they wait
# for as soon as anything else runs on the machine: a training step then takes half as long again, or far longer
# (docs/performance.md; it costs 8 % on an idle machine). A setting of the user's own wins.
_os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = ["Recipe", "build", "load", "train"]

__version__ = _version("fieldmark")

_LAZY_IMPORTS = {
    "Recipe": ("fieldmark.recipes.recipe", "Recipe"),
    "build": ("fieldmark.models", "build"),
    "load": ("fieldmark.inference.classifier", "Classifier"),
    "train": ("fieldmark.pipeline.train", "train"),
}


def __getattr__(name: str) -> Any:
    """Import late: `import fieldmark` and prediction need no torch."""
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'fieldmark' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY_IMPORTS[name]
    return getattr(import_module(module), attribute)
