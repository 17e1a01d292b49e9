"""Command line -> one plain function per verb; JSON on stdout, everything for people on stderr, exit codes 0, 1, 2."""

import dataclasses
import io
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark import machine, records
from fieldmark import recipe as recipes
from fieldmark.errors import FieldmarkError
from fieldmark.options import OUT, Json, Model, Photos, with_settings
from fieldmark.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From a folder of labelled photos to a classifier you can trust, and can read.",
)

USAGE_ERROR: Any = typer.BadParameter.__base__
INTERRUPTED = 130  # what typer makes of Ctrl-C
FIGURES = ["top5", "balanced_accuracy", "macro_f1", "ece", "coverage", "roc_auc", "sensitivity", "specificity"]


def check(
    photos: Photos,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help=OUT)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not look for wrong labels, which takes longest.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Audit photos before anything is trained; changes nothing. Exit code 1 when there is something to see to."""
    from fieldmark import check as checks
    from fieldmark.progress import Reporter

    folder, reporter = Path(out) if out else None, Reporter()
    checks.require_new(folder)
    asked = Recipe(**{name: value for name, value in settings.items() if value is not None})
    found = checks.check(photos, reporter, asked, quick=quick)
    written = checks.write(found, folder) if folder else []
    for warning in [] if as_json else found.findings["warnings"]:
        reporter.warn(warning)
    told = [*checks.lines(found.findings), *(f"Written: {file}" for file in written)]
    print(records.text(found.findings) if as_json else "\n".join(map(_plain, told)))
    raise typer.Exit(1 if found.problems else 0)


def _train(photos: str, out: str, resume: bool, recipe: Recipe | None, as_json: bool) -> None:
    from fieldmark import wording
    from fieldmark.run import train

    run = train(
        photos,
        recipe,
        out=out,
        resume=resume,
        started=machine.STARTED,
        command=shlex.join(["fieldmark", *sys.argv[1:]]),
    )
    if as_json:
        print(records.text(run.metrics))
        return
    for folder in sorted(run.folder.glob("fold-*")) or [run.folder]:
        print(f"Read:  {folder / 'report.html'}")
    print(f"Use:   fieldmark predict {shlex.quote(str(Path(run.metrics['bundle']).parent))} PHOTO")
    print(wording.summary(run.metrics))


def train(
    photos: Photos,
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for all that the run leaves.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="Settings of `classic` or of a YAML file; options win."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a classifier on a folder of photos: audit, split, two phases, test, report."""
    asked = {name: value for name, value in settings.items() if value is not None}
    chosen = dataclasses.replace(recipes.read(recipe), **asked) if recipe else Recipe(**asked)
    _train(photos, out, resume, chosen, as_json)


app.command()(with_settings(check, "group_by", "split_file", "apply", "crop_boxes"))
app.command()(with_settings(train))


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    photos: Annotated[
        str | None, typer.Argument(metavar="[PHOTOS]", help="Another folder; without it, the run's test photos.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Figures on the test photos of a run, or on another folder (classes aligned by name)."""
    from fieldmark.evaluate import evaluate as judge
    from fieldmark.progress import Reporter

    reporter = Reporter()
    found = judge(run, photos, reporter)
    if as_json:
        print(records.text(found))
    else:
        low, high = found["ci95"]
        print(f"accuracy           {found['accuracy']:.4f}  ({low:.4f} to {high:.4f}, n = {found['n']:,})")
        for name in FIGURES:
            if name in found:
                print(f"{name:18} {found[name]:.4f}")
        for warning in found["warnings"]:
            reporter.warn(warning)
    raise typer.Exit(1 if found["warnings"] else 0)


@app.command()
def predict(
    model: Model,
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Files, folders, globs, or - for a list on stdin.")
    ],
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write the answers as CSV.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="So many of the likeliest classes.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what is on photos. Exit code 1 when one could not be read."""
    from fieldmark.predict import Classifier, write_csv

    answers, failed, n, listed = Classifier(model).stream(photos, top), False, 0, []
    if csv:
        answers = write_csv(answers, Path(csv))
    for answer in answers:
        n += 1
        failed |= "error" in answer
        if as_json:
            listed.append(answer)
        elif "error" in answer:
            print(f"{_plain(answer['path'])}: {answer['error']}", file=sys.stderr)
        elif not csv:
            doubt = "" if answer["known"] else "   (perhaps none of these)"
            print(f"{_plain(answer['path'])}: {_plain(answer['label'])} {answer['confidence']:.1%}{doubt}")
    if not n:
        raise FieldmarkError(f"no photo found in {' '.join(photos)}: give files, or folders that hold photos")
    if as_json:
        print(records.text(listed))
    raise typer.Exit(1 if failed else 0)


def zoo(
    network: Annotated[
        str | None,
        typer.Argument(metavar="[NETWORK]", help="A network, as resnet50 or efficientnet_lite0+after=-1:mask."),
    ] = None,
    like: Annotated[str, typer.Option("--like", metavar="WORD", help="Networks with this in their name alone.")] = "",
    speed: Annotated[bool, typer.Option("--speed", help="Time each network too: photos a second, one by one.")] = False,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes of the one network.")] = 1000,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """List every network; or the layers of one, what fine-tuning trains of them, and what its attention adds."""
    from fieldmark import showcase

    asked = {name: value for name, value in settings.items() if value is not None}
    if network is None and (asked or classes != 1000):
        raise FieldmarkError("these options describe one network: name it, as in fieldmark zoo resnet50 --after -1:se")
    if network is not None and (like or speed):
        raise FieldmarkError(f"--like and --speed are for the list: fieldmark bench {network} times one network")
    Recipe(**asked)  # refuses what a training would
    rows, text = showcase.network(network, classes=classes, **asked) if network else showcase.networks(like, speed)
    print(records.text(rows) if as_json else text)


app.command()(with_settings(zoo, "attention", "after", "head", "aux", "image_size", "channels"))


@app.command()
def bench(
    network: Annotated[str, typer.Argument(metavar="NETWORK")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Photos in a batch.")] = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels; without it, the network's own.")
    ] = None,
    training: Annotated[bool, typer.Option("--train", help="Time forward and backward, not forward alone.")] = False,
    as_json: Json = False,
) -> None:
    """Time a network: 10 runs to warm up, 100 timed; mean and standard deviation."""
    from fieldmark.bench import bench as measure

    found = measure(network, batch, image_size, training, lambda text: print(text, file=sys.stderr))
    if as_json:
        print(records.text(found))
    else:
        print(f"{found['mean_s']:.4f} +/- {found['sd_s']:.4f} s a batch, {found['images_per_s']:.1f} images/s")


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="New folder for the run.")] = "runs/demo",
    budget: Annotated[str, typer.Option("--budget", help="Time for all of it.")] = "3m",
    as_json: Json = False,
) -> None:
    """The main job on real photos that a pip install brings: 2,624 solar cells, functional or defective."""
    from fieldmark.demo import solar_cells

    folder = Path(out).resolve()
    photos = solar_cells(folder.with_name(folder.name + "-photos"))
    # Accuracy on 393 photos with doubtful labels picks a lucky epoch: the loss is the steadier guide.
    _train(str(photos), out, folder.exists(), Recipe(budget=budget, monitor="loss"), as_json)


def _plain(name: str) -> str:
    """A name without line breaks and other control characters, which could play tricks on a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


def main() -> None:
    """Entry point: errors that people can mend are one line and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "--json" in sys.argv and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's language
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except USAGE_ERROR as error:
        problem = f"{error.format_message()} (`fieldmark --help`, `fieldmark VERB --help` list what there is)"
    except FieldmarkError as error:
        problem = str(error)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("fieldmark"):
            raise
        extra = "parquet" if error.name == "pyarrow" else "train"
        problem = f"this needs {error.name}: pip install 'fieldmark[{extra}]'"
    except KeyboardInterrupt:
        problem = "stopped; a training goes on with --resume"
    except BrokenPipeError:  # `fieldmark zoo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem = f"{where}{error.strerror or error}; give it room or access, and go on (a training by --resume)"
    except Exception as error:
        if os.environ.get("FIELDMARK_DEBUG"):
            traceback.print_exc()
        problem = f"a fault of Fieldmark: {type(error).__name__}: {error} (FIELDMARK_DEBUG=1 shows where)"
    print("fieldmark: " + " ".join(problem.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
