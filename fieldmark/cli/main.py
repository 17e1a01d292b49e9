"""The command line: JSON on stdout, everything for people on stderr, exit codes 0, 1, 2."""

import atexit
import gc
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from fieldmark.cli.group import Command, LazyGroup
from fieldmark.cli.output import print_to_stderr
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import log_to_stderr

UsageError: Any = typer.BadParameter.__base__
EXTRAS = {
    "huggingface_hub": "hub",
    "pyarrow": "parquet",
    "openvino": "openvino",
    "fsspec": "ray",
    "ray": "ray",
    "optuna": "search",
}
"""Package -> the extra that installs it; `train` has the others."""
EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C
COMMANDS = (
    Command(
        "Data",
        "data.look",
        "Count the images of each class and show some.",
        (
            "look PHOTOS --out LOOK",
            "look PHOTOS --out LOOK --augment strong --count 24",
            "look photos.zip --out LOOK --image-size 320",
        ),
    ),
    Command(
        "Data",
        "data.check",
        "Find duplicates, leaks and label errors; changes no file.",
        (
            "check PHOTOS",
            "check PHOTOS --out FOUND",
            "check table.csv --quick --json",
        ),
    ),
    Command(
        "Data",
        "data.pack",
        "Pack images into shards for many machines.",
        (
            "pack PHOTOS --shards SHARDS",
            "pack PHOTOS --shards SHARDS --shard-mb 512",
            r"pack PHOTOS --shards SHARDS --group-by 'patient(\d+)'",
        ),
    ),
    Command(
        "Data",
        "teach.teach",
        "Label images on a page; a classifier learns meanwhile.",
        (
            "teach PHOTOS",
            "teach RUN MORE_IMAGES",
            "teach PHOTOS --out LABELS --port 9001",
        ),
    ),
    Command(
        "Train",
        "train.train",
        "Train a classifier, test it and write a report.",
        (
            "train PHOTOS --out RUN --budget 5m",
            "train PHOTOS --out RUN --backbone resnet50 --epochs 20",
            "train PHOTOS --out RUN --resume",
        ),
    ),
    Command(
        "Train",
        "train.compare",
        "Compare networks on the same splits.",
        (
            "compare PHOTOS --out OUT --network resnet18 --network vgg11",
            "compare PHOTOS --out C --network vgg16 --network vgg16+after=-1:se",
            "compare RUN1 RUN2 --out OUT",
        ),
    ),
    Command(
        "Train",
        "train.search",
        "Search hyperparameters on the validation set.",
        (
            "search PHOTOS --out OUT --trials 20",
            "search PHOTOS --out OUT --trials 20 --vary lr=0.0001..0.01 --whole",
            "search PHOTOS --out OUT --trials 40 --resume",
        ),
    ),
    Command(
        "Train",
        "train.demo",
        "Train on 2,624 photos of solar cells.",
        (
            "demo",
            "demo --budget 10m",
            "demo --out runs/demo --json",
        ),
    ),
    Command(
        "Evaluate",
        "evaluate.evaluate",
        "Compute metrics on the test set or on other images.",
        (
            "evaluate RUN",
            "evaluate RUN OTHER_PHOTOS",
            "evaluate RUN OTHER_PHOTOS --tta --json",
        ),
    ),
    Command(
        "Evaluate",
        "evaluate.explain",
        "Show what a classifier looked at, and how reliably.",
        (
            "explain RUN --out SHEET",
            "explain RUN photo.jpg --out WHY",
            "explain RUN PHOTOS/*.jpg --out WHY --method evidence,grad_cam",
        ),
    ),
    Command(
        "Evaluate",
        "evaluate.report",
        "Write the report of a run in another language.",
        (
            "report RUN",
            "report RUN --lang zh",
            "report RUN --json",
        ),
    ),
    Command(
        "Use",
        "use.predict",
        "Predict the classes of images.",
        (
            "predict RUN photo.jpg",
            "predict RUN FOLDER --csv predictions.csv",
            "predict model.onnx FOLDER --heatmap MAPS --json",
        ),
    ),
    Command(
        "Use",
        "use.export",
        "Export to ONNX and OpenVINO, also INT8.",
        (
            "export RUN --out OUT",
            "export RUN --out OUT --int8",
            "export RUN --out OUT --openvino",
        ),
    ),
    Command(
        "Use",
        "use.push",
        "Upload a classifier with its model card to the hub.",
        (
            "push RUN user/name",
            "push RUN user/name --private",
            "push RUN user/name --json",
        ),
    ),
    Command(
        "Use",
        "use.serve",
        "Serve a page for people and an API for programs.",
        (
            "serve RUN",
            "serve RUN --port 9000",
            "serve RUN --host 0.0.0.0 --token SECRET",
        ),
    ),
    Command(
        "Networks",
        "networks.zoo",
        "List the networks, or the layers of one.",
        (
            "zoo",
            "zoo --like resnet",
            "zoo resnet50 --after -1:se --classes 4",
        ),
    ),
    Command(
        "Networks",
        "networks.bench",
        "Measure the speed of a network.",
        (
            "bench resnet50",
            "bench resnet50 --batch 16",
            "bench resnet50 --train --batch 32",
        ),
    ),
)


class _Commands(LazyGroup):
    entries = COMMANDS


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train an image classifier from a folder of labelled images, and know how far to trust it.",
    epilog="Start with [bold]fieldmark demo[/bold], or [bold]fieldmark train PHOTOS --out RUN --budget 5m[/bold].",
)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        print(f"fieldmark {version('fieldmark')}")
        raise typer.Exit


@app.callback()
def _options(
    is_version_requested: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point. An error is one line on stderr and exit code 2, never a traceback."""
    _open_closed_streams()
    _configure_streams()
    atexit.register(gc.freeze)  # or Python visits all objects of PyTorch for two seconds before it ends
    stdout = sys.stdout
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
    except SystemExit:
        if sys.stdout is not stdout:  # typer has put its own there, since nobody reads any more
            sys.exit(0)
        raise
    except (Exception, KeyboardInterrupt) as error:
        message = _message_for(error)
    print_to_stderr("fieldmark: " + " ".join(message.split()))
    sys.exit(2)


def _open_closed_streams() -> None:
    """What the caller closed (`>&-`) leads nowhere; or the next file to be opened would take its number.

    Then what a library prints would stand in a file of predictions; and `print` to no stderr goes to stdout.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            if number:
                setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _configure_streams() -> None:
    """Any file name can be printed, and JSON is UTF-8, whatever the terminal's encoding.

    Where the locale knows ASCII alone (LC_ALL=C), text is UTF-8 as well: names then come out with the bytes they have.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_plain = stream.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968", "646")
            is_free = is_plain and not os.environ.get("PYTHONIOENCODING")
            stream.reconfigure(encoding="utf-8" if is_free else stream.encoding, errors="backslashreplace")
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
            return "interrupted; --resume continues a training, or a file of predictions"
        case OSError():
            prefix = f"{error.filename}: " if error.filename else ""
            advice = "free disk space or fix permissions, then continue (a training with --resume)"
            return f"{prefix}{error.strerror or error}; {advice}"
    if os.environ.get("FIELDMARK_DEBUG"):
        traceback.print_exception(error)
    return f"internal error: {type(error).__name__}: {error} (FIELDMARK_DEBUG=1 shows where)"
