"""Training on several devices of one machine: `train` in processes that torchrun starts.

The arguments, and the exception of a process that fails, cross in files of a temporary folder; the run itself is what
`train` leaves in its folder.
"""

import atexit
import gc
import logging
import os
import pickle
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.io import atomic_path
from fieldmark.core.progress import LOGGER, log_to_stderr
from fieldmark.training import distributed


def train_on_devices(devices: int, **arguments: Any) -> None:
    """Run `train(**arguments)` in one process for each device.

    Raises:
        FieldmarkError: a process died.
        Exception: whatever `train` raised in one of them.
    """
    with TemporaryDirectory(prefix="fieldmark-") as name:
        folder = Path(name)
        is_verbose = LOGGER.isEnabledFor(logging.INFO)
        (folder / "arguments.pickle").write_bytes(pickle.dumps((arguments, is_verbose)))
        if distributed.run_workers("fieldmark.pipeline.worker", folder, devices):
            return
        for file in sorted(folder.glob("error-*.pickle")):
            raise pickle.loads(file.read_bytes())
        raise FieldmarkError(
            "a worker process of this training died (out of memory, or killed?): continue with --resume"
        ) from RuntimeError((folder / "torchrun.log").read_text(errors="replace"))


def main(folder: Path) -> None:
    """Train in this process, which torchrun has started for one device."""
    os.dup2(1, 2)  # stdout is the launcher's stderr
    atexit.register(gc.freeze)  # or Python visits all objects of PyTorch for two seconds before it ends
    distributed.exit_with_launcher()
    arguments, is_verbose = pickle.loads((folder / "arguments.pickle").read_bytes())
    try:
        from fieldmark.pipeline.train import train

        with log_to_stderr() if is_verbose else nullcontext():
            train(**arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        with atomic_path(folder / f"error-{os.environ['RANK']}.pickle") as partial:
            partial.write_bytes(pickle.dumps(error))
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
