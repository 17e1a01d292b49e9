"""The functions of `import fieldmark`: what the command line does, for Python values, with errors in Python's words."""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import LOGGER, Reporter, log_to_stderr
from fieldmark.data import in_memory
from fieldmark.inference import hub
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.inputs import ImageInput
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from fieldmark.evaluation.evaluate import Evaluation
    from fieldmark.explanation.explain import ExplainedImage
    from fieldmark.exporters.export_run import ExportReport
    from fieldmark.pipeline.check_report import CheckReport
    from fieldmark.pipeline.run import Run
    from fieldmark.pipeline.teach import Teaching
    from fieldmark.report.results import Comparison, SearchResult

P = ParamSpec("P")
T = TypeVar("T")
RunLike = Any
"""A `Run`, a `Classifier`, or the path of a run or a bundle."""
ARGUMENT_NAMES = {
    "vary": "space",
    "whole": "full_training",
    "network": "networks",
    "class": "target",
}
"""Options of the command line whose argument in Python has another name."""
FLAGS = frozenset({"resume", "quick", "tta", "int8", "openvino", "private", "full_training"})
"""Arguments, besides settings of a recipe, that are on or off."""


def speaks_python(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with `batch=` in place of `--batch` in the messages of its errors."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except FieldmarkError as error:
            message = _in_python_words(str(error))
            if message == str(error):
                raise
            raise type(error)(message) from error.__cause__

    return wrapped


def _in_python_words(message: str) -> str:
    """`--batch 8` -> `batch=8`, `--image-size is 7` -> `image_size= is 7`, `--no-exact` -> `exact=False`."""

    def argument(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        if name.startswith("no_"):
            return f"{name[3:]}=False"
        name = ARGUMENT_NAMES.get(name, name)
        is_flag = name in FLAGS or (name in Recipe.model_fields and recipes.value_type(name) is bool)
        return f"{name}=True" if is_flag else f"{name}="

    return re.sub(r"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])(?: (?=[\d'\"]))?", argument, message)


@speaks_python
def check(data: Any, *, quick: bool = False, progress: bool = True, **recipe_fields: Any) -> "CheckReport":
    """Audit a dataset before training: unreadable images, duplicates, leaks, outliers, likely label errors.

    Args:
        data: a folder, an archive or a manifest, a DataFrame with the columns `path`, `label` and perhaps `split` and
            `group`, or a dataset of (PIL image, label). Nothing of it is changed.
        quick: leave out the search for label errors, for which a network embeds every image.
        progress: show progress and warnings.
        recipe_fields: `group_by`, `split_file`, `apply`, `crop_boxes`, `lang`.

    Raises:
        FieldmarkError: the data cannot be read.
    """
    from fieldmark.audit.check import check as run_check
    from fieldmark.pipeline.check_report import CheckReport

    source, folder = _source_of(data)
    recipe = Recipe(**recipe_fields)
    with _reporter(progress) as reporter:
        result = run_check(source, reporter, recipe, quick=quick)
    return CheckReport(result, recipe.lang, folder)


@speaks_python
def train(
    data: Any,
    recipe: Recipe | str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
    progress: bool = True,
    **recipe_fields: Any,
) -> "Run":
    """Train a classifier: audit, split, linear probe, fine-tuning, test, report.

    Args:
        data: as for `check`. What is no path is written as a manifest (a dataset with its images) into a folder beside
            `out`, to which the run refers.
        recipe: a `Recipe`, the name of one that comes with Fieldmark, or a YAML file.
        out: the run's folder, which must not exist unless `resume`; by default a new folder in `runs/`.
        resume: continue an interrupted run; without a checkpoint it starts anew. A finished one is returned as it is,
            also if `StopTraining` of a callback has ended it early.
        callbacks: objects with methods of `Callback`.
        progress: show progress and warnings.
        recipe_fields: settings that override the recipe's, as `backbone="resnet50"`, `epochs=5`.

    Raises:
        FieldmarkError: anything that can be corrected: unreadable data, settings that contradict each other.
    """
    from fieldmark.pipeline.train import default_run_dir
    from fieldmark.pipeline.train import train as run_training

    settings, folder = _recipe_of(recipe, recipe_fields), None if out is None else Path(out)
    if not in_memory.is_on_disk(data):
        folder = folder or default_run_dir(Path(type(data).__name__.lower()))
        data = in_memory.write_manifest(data, folder.with_name(f"{folder.name}-data"))
    with log_to_stderr(_shows(progress)):
        return run_training(data, settings, out=folder, resume=resume, callbacks=tuple(callbacks), quiet=not progress)


@speaks_python
def evaluate(
    model: RunLike,
    data: Any = None,
    *,
    tta: bool = False,
    positive: str | None = None,
    moved_to: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> "Evaluation":
    """Metrics of a classifier on its own test split, or on other data (classes are matched by name).

    Args:
        model: a `Run`, a `Classifier`, or the path of a run or a bundle.
        data: as for `check`; by default the run's test split.
        tta: test-time augmentation: average four views of each image.
        positive: the positive one of two classes.
        moved_to: where the run's own images are now, if they were moved.

    Raises:
        FieldmarkError: there is no such run, or no image of its classes that it has not been trained on.
    """
    from fieldmark.evaluation import evaluate as evaluation

    source, _folder = (None, None) if data is None else _source_of(data)
    place = None if moved_to is None else Path(moved_to)
    with _reporter(progress) as reporter:
        return evaluation.evaluate(_path_of(model), source, reporter, tta=tta, positive=positive, moved_to=place)


@speaks_python
def explain(
    model: RunLike,
    images: ImageInput,
    *,
    methods: Sequence[str] = ("evidence",),
    target: str | None = None,
    nearest: int = 4,
    progress: bool = True,
) -> Any:
    """Why images are predicted as they are: an `ExplainedImage` for one image, a list of them for several.

    Args:
        model: as for `evaluate`.
        images: as for `Classifier.predict`.
        methods: evidence, grad_cam, occlusion and others, or all.
        target: the class to explain; by default the predicted one.
        nearest: number of nearest training images.

    Raises:
        FieldmarkError: there is no such run, method or class.
        ValueError: an image cannot be read.
    """
    from fieldmark.core.runtime import torch_settings
    from fieldmark.explanation.explain import Explainer, Unexplained, explain_images
    from fieldmark.inference.inputs import is_single

    explained: list[ExplainedImage] = []
    with torch_settings(), _reporter(progress) as reporter:
        explainer = Explainer(_path_of(model), methods, target, nearest)
        for result in explain_images(explainer, images, reporter):
            if isinstance(result, Unexplained):
                raise ValueError(f"{result.path or 'an image'} cannot be read: {result.error}")
            explained.append(result)
    return explained[0] if is_single(images) and len(explained) == 1 else explained


@speaks_python
def export(
    model: RunLike,
    out: str | os.PathLike[str],
    *,
    int8: bool = False,
    openvino: bool = False,
    data: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> "ExportReport":
    """Export a run to ONNX, verified against the network on images of the run.

    Args:
        model: a finished run; with `data` its bundle will do.
        out: new folder for the files.
        int8: INT8 quantisation as well.
        openvino: files for OpenVINO as well.
        data: where the run's images are now, if they were moved.
    """
    from fieldmark.exporters.export_run import export_run

    with _reporter(progress) as reporter:
        photos = None if data is None else os.fspath(data)
        return export_run(_path_of(model), Path(out), reporter, photos=photos, int8=int8, openvino=openvino)


@speaks_python
def push(model: RunLike, repository: str, *, private: bool = False) -> str:
    """Upload the classifier of a finished run with its model card to the hub, and return its address for `load`.

    Args:
        model: a `Run`, or the path of one.
        repository: as user/name; it is made if there is none.
        private: whether a new repository is private.

    Raises:
        FieldmarkError: the run has not finished, or the hub refuses.
    """
    from fieldmark.exporters.push import push_run

    return push_run(_path_of(model), repository, private=private)


@speaks_python
def compare(
    data: Any,
    networks: Sequence[str] = (),
    *,
    seeds: int = 3,
    recipe: Recipe | str | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    **recipe_fields: Any,
) -> "Comparison":
    """Train networks with the same seeds and splits and compare them; or compare finished runs.

    Args:
        data: as for `check`; or a list of finished runs, without `networks`.
        networks: specifications as `efficientnet_lite0+after=-1:mask`.
        seeds: seeds, and splits, of each network.
        out: folder for the runs and the page; by default a new folder in `runs/`. Finished runs need none.
        recipe, resume, progress, recipe_fields: as for `train`.

    Raises:
        FieldmarkError: fewer than two networks or runs, or runs that cannot be compared.
    """
    from fieldmark.core.i18n import get_language
    from fieldmark.pipeline import compare as comparing
    from fieldmark.report import compare_page

    base = _recipe_of(recipe, recipe_fields)
    with _reporter(progress) as reporter:
        if networks:
            folder, source = _start_runs(data, out, "comparison", resume)
            runs = comparing.train_networks(source, networks, seeds, base, folder, reporter)
        else:
            folder, runs = (None if out is None else Path(out)), [_path_of(run) for run in data]
        if len(networks or runs) < 2:
            raise FieldmarkError("compare needs two networks or two finished runs")
        comparison = comparing.compare_runs([comparing.load_run(Path(run)) for run in runs])
        if folder is not None:
            compare_page.write_compare_page(comparison, folder, get_language(base.lang))
    return comparison


@speaks_python
def search(
    data: Any,
    *,
    trials: int = 20,
    space: Sequence[str] = (),
    full_training: bool = False,
    recipe: Recipe | str | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    **recipe_fields: Any,
) -> "SearchResult":
    """Search hyperparameters on the validation set; the best trial is trained in full and tested once.

    Args:
        data: as for `check`.
        trials: number of trials in all.
        space: hyperparameters and their values, as `lr=0.0001..0.01` or `head=linear,gem`.
        full_training: fine-tune in each trial, not only the linear probe.
        out: folder for the trials and the page; by default a new folder in `runs/`.
        recipe, resume, progress, recipe_fields: as for `train`.
    """
    from fieldmark.core.i18n import get_language
    from fieldmark.pipeline.search import exclusive_access
    from fieldmark.pipeline.search import search as run_search
    from fieldmark.report import search_page

    base = _recipe_of(recipe, recipe_fields)
    folder, source = _start_runs(data, out, "search", resume)
    with _reporter(progress) as reporter:
        result = run_search(source, trials, base, folder, reporter, space, full_training=full_training)
        with exclusive_access(folder):
            search_page.write_search_page(result, folder, get_language(base.lang))
    return result


@speaks_python
def teach(
    data: Any,
    more: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    ignore_labels: bool = False,
    progress: bool = True,
) -> "Teaching":
    """Label images by the questions that teach a classifier most; it learns from each answer.

    Args:
        data: a labelled dataset as for `check`, a folder or an archive of images without labels, or a finished run.
        more: a folder or an archive of further images without labels.
        out: folder of the session, which is continued; by default `runs/teach-NAME`.
        ignore_labels: whether the names of folders are no classes.
        progress: show progress.

    Raises:
        FieldmarkError: the images cannot be read, or the folder belongs to other images.
    """
    from fieldmark.pipeline.run import Run
    from fieldmark.pipeline.teach import open_session

    with _reporter(progress) as reporter:
        source = data.folder if isinstance(data, Run) else data
        if not in_memory.is_on_disk(source):
            raise TypeError("images are labelled where they are: give the path of a folder, an archive or a run")
        return open_session(
            os.fspath(source),
            None if more is None else os.fspath(more),
            out=None if out is None else os.fspath(out),
            ignore_labels=ignore_labels,
            reporter=reporter,
        )


def load_module(model: RunLike) -> "nn.Module":
    """The trained network as a plain torch module in eval mode: normalised images (n, 3, h, w) -> logits (n, classes).

    Its `preprocessing` has `size`, `mean` and `std`.
    """
    from fieldmark.inference.bundle import load_network

    return load_network(_path_of(model))


# ---- arguments


def _path_of(model: RunLike) -> Path:
    from fieldmark.pipeline.run import Run

    if isinstance(model, Run):
        return model.folder
    if isinstance(model, Classifier):
        run = model.file.parent.parent
        return run if (run / "metrics.json").exists() else model.file.parent
    if hub.is_hub_address(model):
        return hub.download_bundle(str(model))
    if isinstance(model, str | os.PathLike):
        return Path(model)
    raise TypeError(f"{type(model).__name__} is not taken: give a Run, a Classifier or the path of a run")


def _source_of(data: Any) -> tuple[Path, object | None]:
    """The path of a dataset, and what holds the temporary folder if it was in memory."""
    if in_memory.is_on_disk(data):
        return Path(data), None
    folder = io.TemporaryFolder()
    return in_memory.write_manifest(data, folder.path), folder


def _recipe_of(recipe: Recipe | str | os.PathLike[str] | None, fields: dict[str, Any]) -> Recipe:
    if recipe is None:
        return Recipe(**fields)
    base = recipe if isinstance(recipe, Recipe) else recipes.read_recipe(os.fspath(recipe))
    return base.replace(**fields)


def _start_runs(data: Any, out: str | os.PathLike[str] | None, default_name: str, resume: bool) -> tuple[Path, str]:
    """The folder of several runs, which must not exist unless `resume`, and the path of the dataset of all of them."""
    from fieldmark.pipeline.train import default_run_dir

    folder = Path(out) if out is not None else default_run_dir(Path(default_name))
    if folder.exists() and not resume:
        raise FieldmarkError(f"{folder} exists: give another out=, or resume=True")
    return folder, os.fspath(data if in_memory.is_on_disk(data) else in_memory.write_manifest(data, folder / "data"))


@contextmanager
def _reporter(progress: bool) -> Iterator[Reporter]:
    with log_to_stderr(_shows(progress)):
        yield Reporter(quiet=not progress)


def _shows(progress: bool) -> bool:
    """Whether messages go to stderr: on request, unless the program has handlers for them."""
    return progress and not LOGGER.hasHandlers()
