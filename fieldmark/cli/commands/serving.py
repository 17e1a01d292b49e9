"""A classifier -> a service."""

import ipaddress
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fieldmark.cli.options import JsonOption, ModelArgument
from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError


def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="FIELDMARK_TOKEN", help="Whoever asks must know it."),
    ] = None,
    origins: Annotated[
        list[str] | None,
        typer.Option("--origin", metavar="URL", help="A page elsewhere whose scripts may ask; several times for more."),
    ] = None,
    max_mib: Annotated[int, typer.Option("--max-mib", min=1, help="Of a request, in MiB.")] = 32,
    max_photos: Annotated[int, typer.Option("--max-photos", min=1, help="Of a request.")] = 32,
    max_megapixels: Annotated[int, typer.Option("--max-megapixels", min=1, help="Of a photo.")] = 50,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.1, help="For an answer; four times that for the photos.")
    ] = 30,
    max_requests: Annotated[int, typer.Option("--max-requests", min=1, help="At a time.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """A page for people and POST /predict for programs, until Ctrl-C; requests that were taken are answered first."""
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise FieldmarkError("--token must be of letters, digits and other characters of ASCII, at least one")
    from fieldmark.serve.limits import Limits
    from fieldmark.serve.server import serve as run

    def on_listening(url: str) -> None:
        if not token and not ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback:
            print(f"warning: anybody who reaches {url} may ask; --token TOKEN lets only some", file=sys.stderr)
        print(io.to_json({"url": url, "model": model}) if as_json else f"Open:  {url}   (Ctrl-C ends it)", flush=True)

    limits = Limits(max_mib * 2**20, max_photos, max_megapixels * 10**6, max_seconds, max_requests)
    run(model, host, port, limits, token, origins or [], on_listening)
