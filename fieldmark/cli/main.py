"""Command line -> one plain function per verb; JSON on stdout, everything for people on stderr, exit codes 0, 1, 2."""

import atexit
import gc
import io
import os
import sys
import traceback
from typing import Any

import typer

from fieldmark.cli.commands import exporting, making, networks, serving, using
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
EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C


app.command()(with_recipe_options(making.look))
app.command()(with_recipe_options(making.check, "group_by", "split_file", "apply", "crop_boxes", "lang"))
app.command()(with_recipe_options(making.train))
app.command()(with_recipe_options(making.pack, "group_by", "split_file", "apply", "seed"))
app.command()(using.evaluate)
app.command()(with_recipe_options(making.compare, *SHARED_FIELDS))
app.command()(with_recipe_options(making.search))
app.command()(using.predict)
app.command()(using.explain)
app.command()(using.report)
app.command()(exporting.export)
app.command()(serving.serve)
app.command()(with_recipe_options(networks.zoo, "attention", "after", "head", "aux", "image_size", "channels"))
app.command()(networks.bench)
app.command()(making.demo)


def main() -> None:
    """Entry point: errors that people can mend are one line and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "--json" in sys.argv and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's language
    atexit.register(gc.freeze)  # or Python visits all objects of PyTorch for two seconds before it ends
    try:
        with log_to_stderr():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        message = f"{error.format_message()} (`fieldmark --help`, `fieldmark VERB --help` list what there is)"
    except FieldmarkError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("fieldmark"):
            raise
        extras = {"pyarrow": "parquet", "openvino": "openvino", "fsspec": "ray", "ray": "ray", "optuna": "search"}
        message = f"this needs {error.name}: pip install 'fieldmark[{extras.get(error.name or '', 'train')}]'"
    except KeyboardInterrupt:
        message = "stopped; a training goes on with --resume"
    except BrokenPipeError:  # `fieldmark zoo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        prefix = f"{error.filename}: " if error.filename else ""
        message = f"{prefix}{error.strerror or error}; give it room or access, and go on (a training by --resume)"
    except Exception as error:
        if os.environ.get("FIELDMARK_DEBUG"):
            traceback.print_exc()
        message = f"a fault of Fieldmark: {type(error).__name__}: {error} (FIELDMARK_DEBUG=1 shows where)"
    print("fieldmark: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
