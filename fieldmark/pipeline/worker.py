"""Training on several devices of one machine: `train` in processes that torchrun starts.

The arguments, and the error of a process that fails, cross as JSON in a temporary folder; the run itself is in its
folder.
"""

import atexit
import gc
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fieldmark.core.errors import FieldmarkError, UntrainableRecipeError
from fieldmark.core.io import read_json, write_json
from fieldmark.core.progress import LOGGER, log_to_stderr
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import distributed

PATHS = ("photos", "out", "feature_cache_dir")


def train_on_devices(devices: int, recipe: Recipe, **arguments: Any) -> None:
    """Run `train(recipe=recipe, **arguments)` in one process for each device.

    Raises:
        FieldmarkError: as `train` raised it in one of them, or a process died.
        OSError: likewise.
        RuntimeError: any other error of `train`, with its traceback as a note.
    """
    arguments |= {name: str(arguments[name]) for name in PATHS if arguments.get(name) is not None}
    job = {
        "recipe": {name: getattr(recipe, name) for name in recipe.explicit},
        "arguments": arguments,
        "verbose": LOGGER.isEnabledFor(logging.INFO),
    }
    with TemporaryDirectory(prefix="fieldmark-") as name:
        folder = Path(name)
        write_json(folder / "job.json", job)
        if distributed.run_workers("fieldmark.pipeline.worker", folder, devices):
            return
        for file in sorted(folder.glob("error-*.json")):
            raise _from_dict(read_json(file))
        raise FieldmarkError(
            "a worker process of this training died (out of memory, or killed?): continue with --resume"
        ) from RuntimeError((folder / "torchrun.log").read_text(errors="replace"))


def main(folder: Path) -> None:
    """Train in this process, which torchrun has started for one device."""
    os.dup2(1, 2)  # stdout is the launcher's stderr
    atexit.register(gc.freeze)  # or Python visits all objects of PyTorch for two seconds before it ends
    distributed.exit_with_launcher()
    job = read_json(folder / "job.json")
    arguments = job["arguments"] | {name: Path(job["arguments"][name]) for name in PATHS if job["arguments"].get(name)}
    try:
        from fieldmark.pipeline.train import train

        with log_to_stderr() if job["verbose"] else nullcontext():
            train(recipe=Recipe(**job["recipe"]), **arguments)
    except Exception as error:
        write_json(folder / f"error-{os.environ['RANK']}.json", _to_dict(error))
        sys.exit(2)


def _to_dict(error: Exception) -> dict[str, Any]:
    described = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
    if isinstance(error, OSError):
        described |= {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    return described


def _from_dict(described: dict[str, Any]) -> Exception:
    message = described["message"]
    if described["type"] in ("FieldmarkError", "UntrainableRecipeError"):
        error: Exception = UntrainableRecipeError(message) if described["type"][0] == "U" else FieldmarkError(message)
    elif described.get("errno"):
        error = OSError(described["errno"], described["strerror"], described["filename"])
    else:
        error = RuntimeError(f"{described['type']}: {message}")
    error.add_note(described["traceback"])
    return error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
