"""Photos -> findings, a run, several runs side by side."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark.cli.options import CHECK_OUT_HELP, JsonOption, PhotosArgument
from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import sanitize_for_terminal
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="Settings by a name of docs/recipes.md, or of a YAML file; options win."
    ),
]


def _make_recipe(name: str | None, settings: dict[str, Any]) -> Recipe:
    """The recipe of that name or file, with what was said beside it."""
    overrides = {field: value for field, value in settings.items() if value is not None}
    return recipes.read_recipe(name).replace(**overrides) if name else Recipe(**overrides)


def look(
    photos: PhotosArgument,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for the page.")],
    count: Annotated[int, typer.Option("--count", min=1, max=200, help="So many photos on it.")] = 12,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Count the photos of each class and show some: as they are judged, and as training varies them."""
    from fieldmark.core.progress import Reporter
    from fieldmark.pipeline.preview import preview as show
    from fieldmark.report.preview_page import summary_lines

    reporter = Reporter()
    io.require_new(Path(out))
    result = show(photos, _make_recipe(recipe, settings), count, Path(out), reporter)
    for warning in [] if as_json else result.warnings:
        reporter.warning(warning)
    output = [*summary_lines(result), *(f"Written: {file}" for file in result.files)]
    print(io.to_json(result.to_dict()) if as_json else "\n".join(map(sanitize_for_terminal, output)))
    raise typer.Exit(1 if result.has_errors else 0)


def check(
    photos: PhotosArgument,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help=CHECK_OUT_HELP)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not look for wrong labels, which takes longest.")] = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Audit a dataset before training; changes no file. Exit code 1 if there are issues."""
    from fieldmark.audit.check import check as run_check
    from fieldmark.core.progress import Reporter
    from fieldmark.report.check_page import summary_lines, write_check

    folder, reporter = Path(out) if out else None, Reporter()
    if folder:
        io.require_new(folder)
    recipe = _make_recipe(None, settings)
    result = run_check(photos, reporter, recipe, quick=quick)
    files = write_check(result, folder, recipe.lang) if folder else []
    for warning in [] if as_json else result.report.warnings:
        reporter.warning(warning)
    output = [*summary_lines(result.report), *(f"Written: {file}" for file in files)]
    print(io.to_json(result.report.to_dict()) if as_json else "\n".join(map(sanitize_for_terminal, output)))
    raise typer.Exit(1 if result.report.has_issues else 0)


def pack(
    photos: PhotosArgument,
    shards: Annotated[str, typer.Option("--shards", metavar="DIR", help="New folder for the shards.")],
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="MiB of a shard, about.")] = 256,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Pack photos into WebDataset shards, for many machines. Exit code 1 when one could not be read."""
    from fieldmark.core.progress import Reporter
    from fieldmark.data.pack import BYTES_PER_MIB, write_shards

    reporter = Reporter()
    result = write_shards(photos, Path(shards), reporter, _make_recipe(None, settings), shard_mb)
    for warning in [] if as_json else result.warnings:
        reporter.warning(warning)
    summary = f"{result.n_images:,} photos, {result.n_bytes / BYTES_PER_MIB:,.0f} MiB in {len(result.files) - 1} shards"
    print(io.to_json(result.to_dict()) if as_json else sanitize_for_terminal(f"{summary}: {shards}"))
    raise typer.Exit(1 if result.unreadable else 0)


def _train_and_print(photos: str, out: str, resume: bool, recipe: Recipe | None, as_json: bool) -> None:
    from fieldmark.pipeline.train import train
    from fieldmark.report import text

    run = train(
        photos,
        recipe,
        out=out,
        resume=resume,
        started=runtime.PROCESS_START,
        command=shlex.join(["fieldmark", *sys.argv[1:]]),
    )
    if as_json:
        print(io.to_json(run.metrics))
        return
    print(f"Read:  {run.folder / 'report.html'}")
    print(f"Use:   fieldmark predict {shlex.quote(str(Path(run.metrics['bundle']).parent))} PHOTO")
    print(text.summarize(run.metrics))


def train(
    photos: PhotosArgument,
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for all that the run leaves.")],
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Train a classifier on a folder of photos: audit, split, two phases, test, report."""
    _train_and_print(photos, out, resume, _make_recipe(recipe, settings), as_json)


def compare(
    inputs: Annotated[
        list[str], typer.Argument(metavar="PHOTOS|RUN...", help="Photos to train on, or several finished runs.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the runs and the comparison.")],
    network: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="SPEC", help="A network, as efficientnet_lite0+after=-1:mask; repeat it."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Train each with so many seeds, splits included.")] = 3,
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted comparison.")] = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Several networks under one routine, on the same photos: is the difference real, and what does it cost?"""
    from fieldmark.core.i18n import get_language
    from fieldmark.core.progress import Reporter
    from fieldmark.pipeline import compare as comparing
    from fieldmark.report import compare_page

    reporter = Reporter()
    if Path(out).exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")
    if len(network or inputs) < 2:
        raise FieldmarkError("compare needs two networks or two runs: repeat --network, or name the runs")
    base_recipe = _make_recipe(recipe, settings)
    if network:
        if len(inputs) > 1:
            raise FieldmarkError("compare trains on one set of photos: give one folder, or finished runs alone")
        folders = comparing.train_networks(inputs[0], network, seeds, base_recipe, Path(out), reporter)
    else:
        folders = [Path(run) for run in inputs]
    comparison = comparing.compare_runs([comparing.load_run(folder) for folder in folders])
    for file in compare_page.write_compare_page(comparison, Path(out), get_language(base_recipe.lang)):
        reporter.info(f"written: {file}")
    print(io.to_json(comparison.to_dict()) if as_json else "\n".join(compare_page.describe_differences(comparison)))


def search(
    photos: PhotosArgument,
    trials: Annotated[int, typer.Option("--trials", min=1, help="So many trials in all.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the trials, the best recipe, its run.")],
    search_space: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="FIELD=...", help="A setting and its values: LOW..HIGH or A,B,C; repeat it."),
    ] = None,
    full_training: Annotated[
        bool, typer.Option("--whole", help="Train both phases in each trial: minutes, not seconds.")
    ] = False,
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search, or help one that runs.")] = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Find better settings: trials on features computed once, judged by validation photos; the best is tested once."""
    from fieldmark.core.i18n import get_language
    from fieldmark.core.progress import Reporter
    from fieldmark.pipeline.search import exclusive_access
    from fieldmark.pipeline.search import search as searching
    from fieldmark.report import search_page

    reporter = Reporter()
    if Path(out).exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")
    base_recipe = _make_recipe(recipe, settings)
    result = searching(
        photos, trials, base_recipe, Path(out), reporter, search_space or (), full_training=full_training
    )
    with exclusive_access(Path(out)):
        files = search_page.write_search_page(result, Path(out), get_language(base_recipe.lang))
    for file in files:
        reporter.info(f"written: {file}")
    print(io.to_json(result.to_dict()) if as_json else "\n".join(search_page.describe_search(result)))


def demo(
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for the run.")] = "runs/demo",
    budget: Annotated[str, typer.Option("--budget", help="Time for all of it.")] = "3m",
    as_json: JsonOption = False,
) -> None:
    """The main job on real photos that a pip install brings: 2,624 solar cells, functional or defective."""
    from fieldmark.pipeline.demo import copy_solar_cells

    folder = Path(out).resolve()
    photos = copy_solar_cells(folder.with_name(folder.name + "-photos"))
    # Accuracy on 393 photos with doubtful labels picks a lucky epoch: the loss is the steadier guide.
    _train_and_print(str(photos), out, folder.exists(), Recipe(budget=budget, monitor="loss"), as_json)
