"""Commands on a finished run: evaluate, explain, report."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fieldmark.cli.options import JsonOption, PrivateHostsOption
from fieldmark.cli.output import print_result
from fieldmark.core.progress import Reporter
from fieldmark.core.text import sanitize_for_terminal

MovedOption = Annotated[
    str | None, typer.Option("--photos", metavar="DIR", help="Where the run's images are now, if they were moved.")
]
LangOption = Annotated[
    str | None, typer.Option("--lang", metavar="en|zh", help="Language; by default that of the run's recipe.")
]


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    photos: Annotated[
        str | None, typer.Argument(metavar="[PHOTOS]", help="Another dataset; by default the run's test set.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Test-time augmentation: average four views.")] = False,
    positive: Annotated[
        str | None, typer.Option("--positive", metavar="CLASS", help="Of two classes, the positive one.")
    ] = None,
    moved_to: MovedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute metrics on the test set of a run, or on another dataset (classes matched by name)."""
    from fieldmark.evaluation import evaluate as evaluation

    metrics = evaluation.evaluate(run, photos, Reporter(), tta=tta, positive=positive, moved_to=moved_to)
    lines = evaluation.summary_lines(metrics, metrics.learning_curve)
    print_result(metrics.to_dict(), lines, metrics.warnings, as_json)
    raise typer.Exit(1 if metrics.warnings else 0)


def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, or its bundle.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for a page and its pictures.")],
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PHOTO...]",
            help="Files, folders, globs, addresses; by default examples of the test set.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME,...",
            help="Methods: evidence, grad_cam, occlusion and others, or all.",
        ),
    ] = "evidence",
    target: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="The class to explain; by default the predicted one."),
    ] = None,
    nearest: Annotated[int, typer.Option("--nearest", min=0, help="Number of nearest training images.")] = 4,
    allow_private_hosts: PrivateHostsOption = False,
    moved_to: MovedOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain predictions by attribution maps and measure their faithfulness. Exit code 1 if an image is unreadable."""
    from fieldmark.inference.run_folder import resolve_language
    from fieldmark.report import explain_page

    if photos:
        methods = [word.strip() for word in method.split(",")]
        result = explain_page.write_explanations(
            run,
            photos,
            out,
            Reporter(),
            methods=methods,
            target=target,
            nearest=nearest,
            lang=lang,
            allow_private_hosts=allow_private_hosts or None,
        )
    else:
        language = resolve_language(Path(run), lang)
        result = explain_page.write_class_sheet(run, Path(out), Reporter(), language, moved_to)
    errors = [f"{path}: {error}" for path, error in result.errors]
    for error in [] if as_json else errors:
        print(sanitize_for_terminal(error), file=sys.stderr)
    print_result(result.to_dict(), [f"Read:  {result.files[0]}"], [], as_json)
    raise typer.Exit(1 if errors else 0)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    moved_to: MovedOption = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report and model card of a run again, as in another language."""
    from fieldmark.report.run_report import rewrite_report

    files, warnings = rewrite_report(Path(run), lang, moved_to)
    data = {"files": [str(file) for file in files], "warnings": warnings}
    print_result(data, [f"Read:  {files[0]}"], warnings, as_json)
    raise typer.Exit(1 if warnings else 0)
