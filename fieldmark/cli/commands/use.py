"""Commands that use a trained classifier: predict, export, push, serve."""

import ipaddress
import socket
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fieldmark.cli.options import JsonOption, ModelArgument, PrivateHostsOption, check_token
from fieldmark.cli.output import print_result, print_to_stderr
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.core.text import sanitize_for_terminal


def predict(
    model: ModelArgument,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Files, folders, globs, shards, archives, tables, addresses, - for names or an image on stdin.",
        ),
    ],
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write predictions as CSV.")] = None,
    jsonl: Annotated[str | None, typer.Option("--jsonl", metavar="FILE", help="Write them as JSON lines.")] = None,
    parquet: Annotated[
        str | None, typer.Option("--parquet", metavar="DIR", help="Write them as a Parquet dataset.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue that file: skip images that it has.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of most probable classes.")] = 5,
    heatmap: Annotated[
        str | None, typer.Option("--heatmap", metavar="DIR", help="New folder for overlays of the class evidence.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="plain|ray", help="ray: on all machines of a cluster, in any order.")
    ] = "plain",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster, as auto or HOST:6379; by default this machine."),
    ] = None,
    allow_private_hosts: PrivateHostsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the classes of images. Exit code 1 if one is unreadable."""
    from fieldmark.pipeline.predict import PredictionOptions, predict_images

    files = {name: file for name, file in {"csv": csv, "jsonl": jsonl, "parquet": parquet}.items() if file}
    if len(files) > 1:
        raise FieldmarkError("predictions are written to one file: give --csv, --jsonl or --parquet")
    name, file = next(iter(files.items()), (None, None))
    options = PredictionOptions(
        top,
        name,
        Path(file) if file else None,
        resume,
        Path(heatmap) if heatmap else None,
        engine,
        address,
        allow_private_hosts or None,
    )
    predictions, n_failed = [], 0
    for prediction in predict_images(model, photos, options):
        n_failed += prediction.error is not None
        if as_json:
            predictions.append(prediction.to_dict())
        elif prediction.error is not None:
            print_to_stderr(sanitize_for_terminal(f"{prediction.path}: {prediction.error}"))
        elif not file:
            ood_note = "" if prediction.known else "   (out-of-distribution?)"
            line = f"{prediction.path}: {prediction.label} {prediction.confidence:.1%}{ood_note}"
            print(sanitize_for_terminal(line))
    if as_json:
        print(io.to_json(predictions))
    raise typer.Exit(1 if n_failed else 0)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, or with PHOTOS its bundle.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="New folder for the files.")],
    photos: Annotated[
        str | None, typer.Argument(metavar="[PHOTOS]", help="Where the run's images are now, if they were moved.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="INT8 quantisation as well: smaller, and faster on processors with VNNI.")
    ] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Files for OpenVINO as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export to ONNX, verified against the network on images of the run. Exit code 1 if the two differ."""
    from fieldmark.exporters import export_run

    result = export_run.export_run(run, out, Reporter(), photos=photos, int8=int8, openvino=openvino)
    print_result(result.to_dict(), export_run.format_report(result), [], as_json)
    raise typer.Exit(0 if result.is_equivalent else 1)


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload the classifier of a run with its model card to the Hugging Face hub: weights, ONNX file, classes.

    No images and no predictions are uploaded. `hf auth login` or HF_TOKEN gives access.
    """
    from fieldmark.exporters.push import push_run

    address = push_run(run, repository, private=private)
    print_result({"address": address}, [f"Use:  fieldmark predict {address} PHOTO"], [], as_json)


def _open_line(url: str) -> str:
    """Where to open a server's page; 0.0.0.0 and :: are no addresses of a browser, but all of this computer."""
    parts = urlsplit(url)
    if not ipaddress.ip_address(parts.hostname or "").is_unspecified:
        return f"Open:  {url}   (Ctrl-C ends it)"
    own = "[::1]" if ":" in (parts.hostname or "") else "127.0.0.1"
    here, others = (f"{parts.scheme}://{host}:{parts.port}" for host in (own, socket.gethostname()))
    return f"Open:  {here} on this computer, {others} on others   (Ctrl-C ends it)"


def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="FIELDMARK_TOKEN", help="Bearer token that requests must carry."),
    ] = None,
    origins: Annotated[
        list[str] | None,
        typer.Option("--origin", metavar="URL", help="Another page whose scripts may send requests; repeatable."),
    ] = None,
    max_mib: Annotated[int, typer.Option("--max-mib", min=1, help="Largest request in MiB.")] = 32,
    max_photos: Annotated[int, typer.Option("--max-photos", min=1, help="Images in a request.")] = 32,
    max_megapixels: Annotated[int, typer.Option("--max-megapixels", min=1, help="Largest image in megapixels.")] = 50,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.1, help="Time limit of a prediction; of the upload four times that.")
    ] = 30,
    max_requests: Annotated[int, typer.Option("--max-requests", min=1, help="Requests at a time.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Serve a page for people and POST /predict for programs, until Ctrl-C; accepted requests are finished first."""
    check_token(token)
    from fieldmark.serve.limits import Limits
    from fieldmark.serve.server import serve as run

    def on_listening(url: str) -> None:
        if not token and not ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback:
            print(f"warning: anybody who reaches {url} can send requests; restrict that by --token", file=sys.stderr)
        print(io.to_json({"url": url, "model": model}) if as_json else _open_line(url), flush=True)

    limits = Limits(max_mib * 2**20, max_photos, max_megapixels * 10**6, max_seconds, max_requests)
    run(model, host, port, limits, token, origins or [], on_listening)
