"""The command that labels images on a page: teach."""

import ipaddress
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fieldmark.cli.options import JsonOption, check_token
from fieldmark.cli.output import print_to_stderr
from fieldmark.core import io


def teach(
    data: Annotated[
        str,
        typer.Argument(metavar="PHOTOS|RUN", help="Images with or without labels, or a finished run."),
    ],
    more: Annotated[
        str | None, typer.Argument(metavar="[MORE_IMAGES]", help="A folder of further images without labels.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the session; by default runs/teach-NAME. It is continued."
        ),
    ] = None,
    ignore_labels: Annotated[
        bool, typer.Option("--ignore-labels", help="The names of folders are no classes.")
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 8001,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="FIELDMARK_TOKEN", help="Token of the page; by default a new one."),
    ] = None,
    lang: Annotated[str, typer.Option("--lang", metavar="en|zh", help="Language of the page.")] = "en",
    as_json: JsonOption = False,
) -> None:
    """Label, correct and add classes on a page, while a classifier learns from each answer.

    Each answer is kept at once in DIR/answers.jsonl. The images stay as they are. DIR/labels.csv is what `train` takes.
    """
    check_token(token)
    from fieldmark.core.i18n import get_language
    from fieldmark.pipeline.teach import default_folder
    from fieldmark.recipes.recipe import Recipe
    from fieldmark.serve.teach_server import teach as run

    folder = out or str(default_folder(Path(data)))
    language = get_language(Recipe(lang=lang).lang)

    def on_listening(url: str) -> None:
        if not ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback:
            print_to_stderr(
                "warning: connections are not encrypted: whoever can listen on this network reads the token"
            )
        if as_json:
            print(io.to_json({"url": url, "folder": folder}), flush=True)
        else:
            print(f"Open:    {url}   (Ctrl-C ends it)\nLabels:  {folder}/labels.csv", flush=True)

    run(
        data,
        more,
        folder,
        ignore_labels=ignore_labels,
        host=host,
        port=port,
        token=token,
        language="zh" if language.tag.startswith("zh") else "en",
        on_ready=on_listening,
    )
    print(f"Train:   fieldmark train {folder}/labels.csv --out RUN", file=sys.stderr)
