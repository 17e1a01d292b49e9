"""Fieldmark: train an image classifier from a folder of labelled images, and know how far to trust it.

>>> import fieldmark as fm
>>> fm.check("photos").issues  # doctest: +SKIP
>>> run = fm.train("photos", out="run", budget="3m")  # doctest: +SKIP
>>> run.test.accuracy  # doctest: +SKIP
0.94
>>> fm.load("run").predict("photo.jpg").label  # doctest: +SKIP
'glass'
"""

import os as _os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from fieldmark import sklearn as sklearn
    from fieldmark.core.errors import FieldmarkError as FieldmarkError
    from fieldmark.inference.classifier import Classifier as Classifier
    from fieldmark.inference.classifier import Classifier as load
    from fieldmark.inference.prediction import Prediction as Prediction
    from fieldmark.models import build as build
    from fieldmark.pipeline.api import check as check
    from fieldmark.pipeline.api import compare as compare
    from fieldmark.pipeline.api import evaluate as evaluate
    from fieldmark.pipeline.api import explain as explain
    from fieldmark.pipeline.api import export as export
    from fieldmark.pipeline.api import load_module as load_module
    from fieldmark.pipeline.api import push as push
    from fieldmark.pipeline.api import search as search
    from fieldmark.pipeline.api import teach as teach
    from fieldmark.pipeline.api import train as train
    from fieldmark.pipeline.check_report import CheckReport as CheckReport
    from fieldmark.pipeline.run import Run as Run
    from fieldmark.pipeline.teach import Teaching as Teaching
    from fieldmark.recipes.recipe import Recipe as Recipe
    from fieldmark.training.history import Callback as Callback
    from fieldmark.training.history import StopTraining as StopTraining

# Before anything imports torch: threads that wait must sleep. Spinning ones take the cores from the threads they wait
# for as soon as anything else runs on the machine: a training step then takes half as long again, or far longer
# (docs/lab/network-speed.md; it costs 8 % on an idle machine). A setting of the user's own wins.
_os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = [
    "Callback",
    "CheckReport",
    "Classifier",
    "FieldmarkError",
    "Prediction",
    "Recipe",
    "Run",
    "StopTraining",
    "Teaching",
    "build",
    "check",
    "compare",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_module",
    "push",
    "search",
    "sklearn",
    "teach",
    "train",
]

_API = ("check", "compare", "evaluate", "explain", "export", "load_module", "push", "search", "teach", "train")
_LAZY_IMPORTS = {
    "Callback": ("fieldmark.training.history", "Callback"),
    "CheckReport": ("fieldmark.pipeline.check_report", "CheckReport"),
    "Classifier": ("fieldmark.inference.classifier", "Classifier"),
    "FieldmarkError": ("fieldmark.core.errors", "FieldmarkError"),
    "Prediction": ("fieldmark.inference.prediction", "Prediction"),
    "Recipe": ("fieldmark.recipes.recipe", "Recipe"),
    "Run": ("fieldmark.pipeline.run", "Run"),
    "StopTraining": ("fieldmark.training.history", "StopTraining"),
    "Teaching": ("fieldmark.pipeline.teach", "Teaching"),
    "build": ("fieldmark.models", "build"),
    "load": ("fieldmark.inference.classifier", "Classifier"),
    **{name: ("fieldmark.pipeline.api", name) for name in _API},
}


def __getattr__(name: str) -> Any:
    """Import late: `import fieldmark` and prediction need no torch."""
    if name == "__version__":
        from importlib.metadata import version  # 40 ms

        return version("fieldmark")
    from importlib import import_module

    if name == "sklearn":
        return import_module("fieldmark.sklearn")
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'fieldmark' has no attribute {name!r}")
    module, attribute = _LAZY_IMPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
