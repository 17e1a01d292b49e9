"""Commands that train: train, compare, search, demo."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark.cli.options import (
    SHARED_FIELDS,
    JsonOption,
    PhotosArgument,
    RecipeOption,
    ResumeOption,
    make_recipe,
    recipe_options,
)
from fieldmark.cli.output import print_result
from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.i18n import get_language
from fieldmark.core.progress import Reporter
from fieldmark.recipes.recipe import Recipe

ONE_DEVICE_FIELDS = ("folds", "fold", "devices", "nodes")
"""Fields that comparisons and searches refuse: they train one run after the other."""
COMPARE_FIELDS = tuple(name for name in SHARED_FIELDS if name not in ONE_DEVICE_FIELDS)
SEARCH_FIELDS = tuple(name for name in Recipe.model_fields if name not in (*ONE_DEVICE_FIELDS, "budget"))


@recipe_options()
def train(
    photos: PhotosArgument,
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for the run.")],
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Train a classifier: audit, split, linear probe, fine-tuning, test, report."""
    _train_and_print(photos, out, resume, make_recipe(recipe, settings), as_json)


@recipe_options(*COMPARE_FIELDS)
def compare(
    inputs: Annotated[
        list[str], typer.Argument(metavar="PHOTOS|RUN...", help="Images to train on, or several finished runs.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the runs and the comparison.")],
    network: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="SPEC", help="A network, as efficientnet_lite0+after=-1:mask; repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds (and splits) per network.")] = 3,
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Compare networks on the same splits: is the difference significant, and what does it cost?"""
    from fieldmark.pipeline import compare as comparing
    from fieldmark.report import compare_page

    reporter = Reporter()
    if not resume:
        io.require_new(Path(out), can_resume=True)
    if len(network or inputs) < 2:
        raise FieldmarkError("compare needs two networks or two runs: repeat --network, or name the runs")
    base_recipe = make_recipe(recipe, settings)
    if network:
        if len(inputs) > 1:
            raise FieldmarkError("compare trains on one dataset: give one folder, or only finished runs")
        folders = comparing.train_networks(inputs[0], network, seeds, base_recipe, Path(out), reporter)
    else:
        folders = [Path(run) for run in inputs]
    comparison = comparing.compare_runs([comparing.load_run(folder) for folder in folders])
    for file in compare_page.write_compare_page(comparison, Path(out), get_language(base_recipe.lang)):
        reporter.info(f"written: {file}")
    print_result(comparison.to_dict(), compare_page.describe_differences(comparison), [], as_json)


@recipe_options(*SEARCH_FIELDS)
def search(
    photos: PhotosArgument,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Number of trials in all.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the trials, the best recipe, its run.")],
    search_space: Annotated[
        list[str] | None,
        typer.Option(
            "--vary", metavar="FIELD=...", help="A hyperparameter and its values: LOW..HIGH or A,B,C; repeatable."
        ),
    ] = None,
    full_training: Annotated[
        bool, typer.Option("--whole", help="Fine-tune in each trial (minutes), not only the linear probe (seconds).")
    ] = False,
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a search, or join one that runs.")] = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Search hyperparameters on the validation set; the best trial is trained in full and tested once."""
    from fieldmark.pipeline.search import exclusive_access
    from fieldmark.pipeline.search import search as searching
    from fieldmark.report import search_page

    reporter = Reporter()
    if not resume:
        io.require_new(Path(out), can_resume=True)
    base_recipe = make_recipe(recipe, settings)
    result = searching(
        photos, trials, base_recipe, Path(out), reporter, search_space or (), full_training=full_training
    )
    with exclusive_access(Path(out)):
        files = search_page.write_search_page(result, Path(out), get_language(base_recipe.lang))
    for file in files:
        reporter.info(f"written: {file}")
    print_result(result.to_dict(), search_page.describe_search(result), [], as_json)


def demo(
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for the run.")] = "runs/demo",
    budget: Annotated[str, typer.Option("--budget", help="Time for the whole run.")] = "3m",
    as_json: JsonOption = False,
) -> None:
    """Train on 2,624 photos of solar cells, functional or defective; an interrupted demo is continued."""
    from fieldmark.pipeline.demo import copy_solar_cells

    folder = Path(out).resolve()
    photos = copy_solar_cells(folder.with_name(folder.name + "-photos"))
    Reporter().info(f"2,624 photos of solar cells in {photos}; nothing is downloaded. Training takes about {budget}.")
    # Accuracy on 393 images with doubtful labels selects a lucky epoch: the loss is the steadier guide.
    _train_and_print(str(photos), out, folder.exists(), Recipe(budget=budget, monitor="loss"), as_json)


def _train_and_print(photos: str, out: str, resume: bool, recipe: Recipe, as_json: bool) -> None:
    from fieldmark.pipeline.train import train as run_training
    from fieldmark.report import text

    command = shlex.join(["fieldmark", *sys.argv[1:]])
    run = run_training(photos, recipe, out=out, resume=resume, started=runtime.PROCESS_START, command=command)
    lines = [
        f"Read:  {run.folder / 'report.html'}",
        f"Use:   fieldmark predict {shlex.quote(str(Path(run.metrics['bundle']).parent))} PHOTO",
        text.summarize(run.metrics),
    ]
    print_result(run.metrics, lines, [], as_json)
