"""The command line: JSON on stdout, everything for people on stderr, exit codes 0, 1, 2."""

import atexit
import gc
import io
import os
import sys
import traceback
from typing import Any

import typer

from fieldmark.cli.commands import data, evaluate, networks, train, use
from fieldmark.cli.options import SHARED_FIELDS, with_recipe_options
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import log_to_stderr

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From a folder of labelled photos to a classifier you can trust, and can read.",
)

UsageError: Any = typer.BadParameter.__base__
EXTRAS = {"pyarrow": "parquet", "openvino": "openvino", "fsspec": "ray", "ray": "ray", "optuna": "search"}
"""Package -> the extra that installs it; `train` has the others."""
EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C


app.command()(with_recipe_options(data.look))
app.command()(with_recipe_options(data.check, "group_by", "split_file", "apply", "crop_boxes", "lang"))
app.command()(with_recipe_options(train.train))
app.command()(with_recipe_options(data.pack, "group_by", "split_file", "apply", "seed"))
app.command()(evaluate.evaluate)
app.command()(with_recipe_options(train.compare, *SHARED_FIELDS))
app.command()(with_recipe_options(train.search))
app.command()(use.predict)
app.command()(evaluate.explain)
app.command()(evaluate.report)
app.command()(use.export)
app.command()(use.serve)
app.command()(with_recipe_options(networks.zoo, "attention", "after", "head", "aux", "image_size", "channels"))
app.command()(networks.bench)
app.command()(train.demo)


def main() -> None:
    """Entry point. An error is one line on stderr and exit code 2, never a traceback."""
    _configure_streams()
    atexit.register(gc.freeze)  # or Python visits all objects of PyTorch for two seconds before it ends
    try:
        with log_to_stderr():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except BrokenPipeError:  # `fieldmark zoo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, KeyboardInterrupt) as error:
        message = _message_for(error)
    print("fieldmark: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _configure_streams() -> None:
    """Any file name can be printed, and JSON is UTF-8, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "--json" in sys.argv and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _message_for(error: BaseException) -> str:
    """What is wrong and what to do, for people."""
    match error:
        case FieldmarkError():
            return str(error)
        case UsageError():
            return f"{error.format_message()} (see `fieldmark --help` and `fieldmark COMMAND --help`)"
        case ModuleNotFoundError(name=str(name)) if not name.startswith("fieldmark"):
            return f"this needs {name}: pip install 'fieldmark[{EXTRAS.get(name, 'train')}]'"
        case KeyboardInterrupt():
            return "interrupted; continue a training with --resume"
        case OSError():
            prefix = f"{error.filename}: " if error.filename else ""
            advice = "free disk space or fix permissions, then continue (a training with --resume)"
            return f"{prefix}{error.strerror or error}; {advice}"
    if os.environ.get("FIELDMARK_DEBUG"):
        traceback.print_exception(error)
    return f"internal error: {type(error).__name__}: {error} (FIELDMARK_DEBUG=1 shows where)"
