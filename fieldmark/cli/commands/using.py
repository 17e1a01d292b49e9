"""A run -> its figures, its answers, and why it gives them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fieldmark.cli.options import Json, Model, plain
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError

Lang = Annotated[
    str | None, typer.Option("--lang", metavar="en|zh", help="Language; without it, that of the run's recipe.")
]


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    photos: Annotated[
        str | None, typer.Argument(metavar="[PHOTOS]", help="Another folder; without it, the run's test photos.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Judge each photo in four views: four times the work.")] = False,
    positive: Annotated[
        str | None, typer.Option("--positive", metavar="CLASS", help="Of two classes, the one that is looked for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Figures on the test photos of a run, or on another folder (classes aligned by name)."""
    from fieldmark.core.progress import Reporter
    from fieldmark.evaluation.evaluate import evaluate as judge
    from fieldmark.evaluation.metrics import lines

    reporter = Reporter()
    found = judge(run, photos, reporter, tta=tta, positive=positive)
    print(io.text(found) if as_json else "\n".join(map(plain, lines(found))))
    for warning in [] if as_json else found["warnings"]:
        reporter.warn(warning)
    raise typer.Exit(1 if found["warnings"] else 0)


def predict(
    model: Model,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...", help="Files, folders, globs, shards, archives, tables, addresses, - for stdin."
        ),
    ],
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write the answers as CSV.")] = None,
    jsonl: Annotated[str | None, typer.Option("--jsonl", metavar="FILE", help="Or as a line of JSON each.")] = None,
    parquet: Annotated[str | None, typer.Option("--parquet", metavar="DIR", help="Or as a Parquet dataset.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that file: leave out what it holds.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="So many of the likeliest classes.")] = 5,
    heatmap: Annotated[
        str | None, typer.Option("--heatmap", metavar="DIR", help="New folder for pictures of what each answer saw.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="plain|ray", help="ray: by all machines of a cluster, in any order.")
    ] = "plain",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of a Ray cluster, as auto or HOST:6379; without, this machine is one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is on photos. Exit code 1 when one could not be read."""
    from fieldmark.explanation import overlay
    from fieldmark.inference import ray
    from fieldmark.inference import writers as sheets
    from fieldmark.inference.classifier import Classifier

    kinds = ((sheets.Csv, csv), (sheets.JsonLines, jsonl), (sheets.Parquet, parquet))
    asked = [(kind, Path(file)) for kind, file in kinds if file]
    if len(asked) > 1 or (resume and (heatmap or not asked)):
        raise FieldmarkError("name one file for the answers (--csv, --jsonl or --parquet); --resume goes on with it")
    if engine not in ("plain", "ray") or (engine == "plain" and address) or (engine == "ray" and heatmap):
        raise FieldmarkError("--engine is plain or ray; --address is for ray, --heatmap for plain")
    failed, n, listed = 0, 0, []
    predictor = ray.Cluster(model, address) if engine == "ray" else Classifier(model)  # before a file is made
    sheet = asked[0][0](asked[0][1], resume) if asked else None
    left = sheet.has if sheet else lambda path: False
    if isinstance(predictor, Classifier) and heatmap:
        answers = overlay.answers(predictor, photos, Path(heatmap), top)
    else:
        answers = predictor.stream(photos, top, left)
    for answer in sheets.written(answers, sheet) if sheet else answers:
        n += 1
        failed += "error" in answer
        if as_json:
            listed.append(answer)
        elif "error" in answer:
            print(f"{plain(answer['path'])}: {answer['error']}", file=sys.stderr)
        elif not sheet:
            doubt = "" if answer["known"] else "   (perhaps none of these)"
            print(f"{plain(answer['path'])}: {plain(answer['label'])} {answer['confidence']:.1%}{doubt}")
    if not n and not resume:
        raise FieldmarkError(f"no photo found in {' '.join(photos)}: give files, or folders that hold photos")
    if as_json:
        print(io.text(listed))
    raise typer.Exit(1 if failed else 0)


def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, or its bundle.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for a page and the pictures.")],
    photos: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PHOTO...]", help="Files, folders, globs; without, a sheet of the run's test photos."),
    ] = None,
    method: Annotated[
        str,
        typer.Option("--method", metavar="NAME,...", help="Maps: evidence, grad_cam, occlusion and others, or all."),
    ] = "evidence",
    target: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="The class to explain, in place of each photo's answer."),
    ] = None,
    nearest: Annotated[int, typer.Option("--nearest", min=0, help="So many training photos that look alike.")] = 4,
    lang: Lang = None,
    as_json: Json = False,
) -> None:
    """Show why photos got their answers, and which map of that to believe. Exit code 1 when one could not be read."""
    from fieldmark.core.progress import Reporter
    from fieldmark.explanation.explain import explain as why

    methods = [word.strip() for word in method.split(",")]
    found = why(run, photos or [], out, Reporter(), methods=methods, target=target, nearest=nearest, lang=lang)
    failed = [photo for photo in found["photos"] if "error" in photo]
    if as_json:
        print(io.text(found))
    else:
        for photo in failed:
            print(f"{plain(photo['path'])}: {photo['error']}", file=sys.stderr)
        print(f"Read:  {plain(found['files'][0])}")
    raise typer.Exit(1 if failed else 0)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    lang: Lang = None,
    as_json: Json = False,
) -> None:
    """Write the report and the card of a finished run anew, as in another language. Exit code 1 without its photos."""
    from fieldmark.core.progress import Reporter
    from fieldmark.report.run_report import rewrite

    files, warnings = rewrite(Path(run), lang)
    if as_json:
        print(io.text({"files": [str(file) for file in files], "warnings": warnings}))
    else:
        print(f"Read:  {plain(str(files[0]))}")
    for warning in [] if as_json else warnings:
        Reporter().warn(warning)
    raise typer.Exit(1 if warnings else 0)
