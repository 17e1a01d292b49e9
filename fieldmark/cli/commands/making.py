"""Photos -> findings, a run, several runs side by side."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark.cli.options import OUT, Json, Photos, plain
from fieldmark.core import io, runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.recipes import recipe as recipes
from fieldmark.recipes.recipe import Recipe

Named = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="Settings by a name of docs/recipes.md, or of a YAML file; options win."
    ),
]


def _recipe(name: str | None, settings: dict[str, Any]) -> Recipe:
    """The recipe of that name or file, with what was said beside it."""
    asked = {field: value for field, value in settings.items() if value is not None}
    return dataclasses.replace(recipes.read(name), **asked) if name else Recipe(**asked)


def look(
    photos: Photos,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for the page.")],
    count: Annotated[int, typer.Option("--count", min=1, max=200, help="So many photos on it.")] = 12,
    recipe: Named = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Count the photos of each class and show some: as they are judged, and as training varies them."""
    from fieldmark.audit.check import require_new
    from fieldmark.core.progress import Reporter
    from fieldmark.pipeline.preview import lines
    from fieldmark.pipeline.preview import look as show

    reporter = Reporter()
    require_new(Path(out))
    found = show(photos, _recipe(recipe, settings), count, Path(out), reporter)
    for warning in [] if as_json else found["warnings"]:
        reporter.warn(warning)
    told = [*lines(found), *(f"Written: {file}" for file in found["files"])]
    print(io.text(found) if as_json else "\n".join(map(plain, told)))
    raise typer.Exit(1 if any("error" in photo for photo in found["preview"]) else 0)


def check(
    photos: Photos,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help=OUT)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not look for wrong labels, which takes longest.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Audit photos before anything is trained; changes nothing. Exit code 1 when there is something to see to."""
    from fieldmark.audit import check as checks
    from fieldmark.core.progress import Reporter

    folder, reporter = Path(out) if out else None, Reporter()
    checks.require_new(folder)
    asked = _recipe(None, settings)
    found = checks.check(photos, reporter, asked, quick=quick)
    written = checks.write(found, folder, asked.lang) if folder else []
    for warning in [] if as_json else found.findings["warnings"]:
        reporter.warn(warning)
    told = [*checks.lines(found.findings), *(f"Written: {file}" for file in written)]
    print(io.text(found.findings) if as_json else "\n".join(map(plain, told)))
    raise typer.Exit(1 if found.problems else 0)


def pack(
    photos: Photos,
    shards: Annotated[str, typer.Option("--shards", metavar="DIR", help="New folder for the shards.")],
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="MiB of a shard, about.")] = 256,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Pack photos into WebDataset shards, for many machines. Exit code 1 when one could not be read."""
    from fieldmark.core.progress import Reporter
    from fieldmark.data.pack import MIB
    from fieldmark.data.pack import pack as packing

    reporter = Reporter()
    found = packing(photos, Path(shards), reporter, _recipe(None, settings), shard_mb)
    for warning in [] if as_json else found["warnings"]:
        reporter.warn(warning)
    told = f"{found['photos']:,} photos, {found['bytes'] / MIB:,.0f} MiB in {len(found['files']) - 1} shards"
    print(io.text(found) if as_json else plain(f"{told}: {shards}"))
    raise typer.Exit(1 if found["unreadable"] else 0)


def _train(photos: str, out: str, resume: bool, recipe: Recipe | None, as_json: bool) -> None:
    from fieldmark.pipeline.train import train
    from fieldmark.report import text

    run = train(
        photos,
        recipe,
        out=out,
        resume=resume,
        started=runtime.STARTED,
        command=shlex.join(["fieldmark", *sys.argv[1:]]),
    )
    if as_json:
        print(io.text(run.metrics))
        return
    print(f"Read:  {run.folder / 'report.html'}")
    print(f"Use:   fieldmark predict {shlex.quote(str(Path(run.metrics['bundle']).parent))} PHOTO")
    print(text.summary(run.metrics))


def train(
    photos: Photos,
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for all that the run leaves.")],
    recipe: Named = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a classifier on a folder of photos: audit, split, two phases, test, report."""
    _train(photos, out, resume, _recipe(recipe, settings), as_json)


def compare(
    things: Annotated[
        list[str], typer.Argument(metavar="PHOTOS|RUN...", help="Photos to train on, or several finished runs.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the runs and the comparison.")],
    network: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="SPEC", help="A network, as efficientnet_lite0+after=-1:mask; repeat it."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Train each with so many seeds, splits included.")] = 3,
    recipe: Named = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted comparison.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Several networks under one routine, on the same photos: is the difference real, and what does it cost?"""
    from fieldmark.core.i18n import language
    from fieldmark.core.progress import Reporter
    from fieldmark.pipeline import compare as comparing
    from fieldmark.report import compare_page

    reporter = Reporter()
    if Path(out).exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")
    if len(network or things) < 2:
        raise FieldmarkError("compare needs two networks or two runs: repeat --network, or name the runs")
    chosen = _recipe(recipe, settings)
    if network:
        if len(things) > 1:
            raise FieldmarkError("compare trains on one set of photos: give one folder, or finished runs alone")
        folders = comparing.compare(things[0], network, seeds, chosen, Path(out), reporter)
    else:
        folders = [Path(thing) for thing in things]
    found = comparing.rows([comparing.read(folder) for folder in folders])
    for file in compare_page.write(found, Path(out), language(chosen.lang)):
        reporter.say(f"written: {file}")
    print(io.text({"rows": found}) if as_json else "\n".join(compare_page.sentences(found)))


def search(
    photos: Photos,
    trials: Annotated[int, typer.Option("--trials", min=1, help="So many trials in all.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the trials, the best recipe, its run.")],
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="FIELD=...", help="A setting and its values: LOW..HIGH or A,B,C; repeat it."),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Train both phases in each trial: minutes, not seconds.")
    ] = False,
    recipe: Named = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search, or help one that runs.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Find better settings: trials on features computed once, judged by validation photos; the best is tested once."""
    from fieldmark.core.i18n import language
    from fieldmark.core.progress import Reporter
    from fieldmark.pipeline.search import alone
    from fieldmark.pipeline.search import search as searching
    from fieldmark.report import search_page

    reporter = Reporter()
    if Path(out).exists() and not resume:
        raise FieldmarkError(f"{out} exists: give another --out, or --resume to go on with it")
    chosen = _recipe(recipe, settings)
    found = search_page.told(*searching(photos, trials, chosen, Path(out), reporter, vary or (), whole=whole))
    with alone(Path(out)):
        files = search_page.write(found, Path(out), language(chosen.lang))
    for file in files:
        reporter.say(f"written: {file}")
    print(io.text(found) if as_json else "\n".join(search_page.sentences(found)))


def demo(
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for the run.")] = "runs/demo",
    budget: Annotated[str, typer.Option("--budget", help="Time for all of it.")] = "3m",
    as_json: Json = False,
) -> None:
    """The main job on real photos that a pip install brings: 2,624 solar cells, functional or defective."""
    from fieldmark.pipeline.demo import solar_cells

    folder = Path(out).resolve()
    photos = solar_cells(folder.with_name(folder.name + "-photos"))
    # Accuracy on 393 photos with doubtful labels picks a lucky epoch: the loss is the steadier guide.
    _train(str(photos), out, folder.exists(), Recipe(budget=budget, monitor="loss"), as_json)
