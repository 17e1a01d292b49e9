"""A run -> its figures, its answers, and why it gives them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fieldmark.cli.options import JsonOption, ModelArgument
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import sanitize_for_terminal

LangOption = Annotated[
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
    as_json: JsonOption = False,
) -> None:
    """Figures on the test photos of a run, or on another folder (classes aligned by name)."""
    from fieldmark.core.progress import Reporter
    from fieldmark.evaluation import evaluate as evaluation

    reporter = Reporter()
    metrics = evaluation.evaluate(run, photos, reporter, tta=tta, positive=positive)
    lines = evaluation.summary_lines(metrics, metrics.learning_curve)
    print(io.to_json(metrics.to_dict()) if as_json else "\n".join(map(sanitize_for_terminal, lines)))
    for warning in [] if as_json else metrics.warnings:
        reporter.warning(warning)
    raise typer.Exit(1 if metrics.warnings else 0)


def predict(
    model: ModelArgument,
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
    as_json: JsonOption = False,
) -> None:
    """Say what is on photos. Exit code 1 when one could not be read."""
    from fieldmark.explanation import overlay
    from fieldmark.inference import ray
    from fieldmark.inference import writers as sheets
    from fieldmark.inference.classifier import Classifier

    formats = ((sheets.CsvWriter, csv), (sheets.JsonLinesWriter, jsonl), (sheets.ParquetWriter, parquet))
    outputs = [(format_class, Path(file)) for format_class, file in formats if file]
    if len(outputs) > 1 or (resume and (heatmap or not outputs)):
        raise FieldmarkError("name one file for the answers (--csv, --jsonl or --parquet); --resume goes on with it")
    if engine not in ("plain", "ray") or (engine == "plain" and address) or (engine == "ray" and heatmap):
        raise FieldmarkError("--engine is plain or ray; --address is for ray, --heatmap for plain")
    n_failed, n_predictions, predictions = 0, 0, []
    predictor = ray.RayPredictor(model, address) if engine == "ray" else Classifier(model)  # before a file is made
    writer = outputs[0][0](outputs[0][1], resume) if outputs else None
    is_done = writer.has_prediction if writer else lambda path: False
    if isinstance(predictor, Classifier) and heatmap:
        predictions_stream = overlay.predict_with_heatmaps(predictor, photos, Path(heatmap), top)
    else:
        predictions_stream = predictor.stream(photos, top, is_done)
    for prediction in sheets.write_predictions(predictions_stream, writer) if writer else predictions_stream:
        n_predictions += 1
        n_failed += prediction.error is not None
        path = sanitize_for_terminal(prediction.path)
        if as_json:
            predictions.append(prediction.to_dict())
        elif prediction.error is not None:
            print(f"{path}: {prediction.error}", file=sys.stderr)
        elif not writer:
            ood_note = "" if prediction.known else "   (perhaps none of these)"
            print(f"{path}: {sanitize_for_terminal(prediction.label or '')} {prediction.confidence:.1%}{ood_note}")
    if not n_predictions and not resume:
        raise FieldmarkError(f"no photo found in {' '.join(photos)}: give files, or folders that hold photos")
    if as_json:
        print(io.to_json(predictions))
    raise typer.Exit(1 if n_failed else 0)


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
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show why photos got their answers, and which map of that to believe. Exit code 1 when one could not be read."""
    from fieldmark.core.progress import Reporter
    from fieldmark.inference.run_folder import resolve_language
    from fieldmark.report import explain_page

    if photos:
        methods = [word.strip() for word in method.split(",")]
        result = explain_page.write_explanations(
            run, photos, out, Reporter(), methods=methods, target=target, nearest=nearest, lang=lang
        )
    else:
        result = explain_page.write_class_sheet(run, Path(out), Reporter(), resolve_language(Path(run), lang))
    if as_json:
        print(io.to_json(result.to_dict()))
    else:
        for path, error in result.errors:
            print(f"{sanitize_for_terminal(path)}: {error}", file=sys.stderr)
        print(f"Read:  {sanitize_for_terminal(result.files[0])}")
    raise typer.Exit(1 if result.errors else 0)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report and the card of a finished run anew, as in another language. Exit code 1 without its photos."""
    from fieldmark.core.progress import Reporter
    from fieldmark.report.run_report import rewrite_report

    files, warnings = rewrite_report(Path(run), lang)
    if as_json:
        print(io.to_json({"files": [str(file) for file in files], "warnings": warnings}))
    else:
        print(f"Read:  {sanitize_for_terminal(str(files[0]))}")
    for warning in [] if as_json else warnings:
        Reporter().warning(warning)
    raise typer.Exit(1 if warnings else 0)
