"""A run -> files that answer elsewhere."""

from typing import Annotated

import typer

from fieldmark.cli.options import JsonOption
from fieldmark.core import io
from fieldmark.core.text import sanitize_for_terminal


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, or with PHOTOS its bundle.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for the files.")],
    photos: Annotated[
        str | None, typer.Argument(metavar="[PHOTOS]", help="Where the run's photos are now, if they were moved.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="A file in 8 bits as well: smaller, and faster where the processor can.")
    ] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Files for OpenVINO as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the classifier as ONNX, held against the network on real photos. Exit code 1 when the two differ."""
    from fieldmark.core.progress import Reporter
    from fieldmark.exporters import export_run

    result = export_run.export_run(run, out, Reporter(), photos=photos, int8=int8, openvino=openvino)
    lines = [io.to_json(result.to_dict())] if as_json else map(sanitize_for_terminal, export_run.format_report(result))
    print("\n".join(lines))
    raise typer.Exit(0 if result.is_equivalent else 1)
