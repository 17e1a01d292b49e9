"""Jobs, one a line of stdin -> runs as processes of their own, forked with torch at hand; on stdout how each ended.

A run ends where its training does, with the weights in trained.safetensors, unless the job wants the whole of it. It
dies before by its own hand behind the call that `dies` describes, or by ours after so many seconds. `first` is run in
it before all else.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from fieldmark.cli import main
from fieldmark.data import dataset
from fieldmark.data.cache import pack
from fieldmark.exporters import onnx
from fieldmark.models import state
from fieldmark.pipeline import finish, prepare
from fieldmark.recipes import recipe
from fieldmark.training import frozen_features, trainer

LATE = ("fieldmark.report.run_report", "torchvision.transforms.v2", "tensorboard.summary.writer.record_writer")
for late in (*LATE, "onnx", "onnxruntime"):
    import_module(late)  # once for all of them

PLACES = {
    "state": state,
    "AugmentedDataset": dataset.AugmentedDataset,
    "onnx": onnx,
    "NpyWriter": frozen_features.NpyWriter,
    "trainer": trainer,
    "trainer.Trainer": trainer.Trainer,
    "prepare": prepare,
    "recipe": recipe,
    "MemmapWriter": pack.MemmapWriter,
    "finish.bundle": finish.bundle,
}
"""Where a call may kill."""


def die_behind(home: str, name: str, when: str) -> None:
    """The process, or one that it has forked, ends as soon as it has called `home.name` with `args` as in `when`."""
    original = getattr(PLACES[home], name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if eval(when, {"os": os}, {"args": args}):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(PLACES[home], name, deadly)


def train(job: dict[str, Any]) -> None:
    """`fieldmark train` on the command line."""

    def judge(trained: trainer.Trainer, *_: object) -> None:
        state.save_state(Path(job["out"]) / "trained.safetensors", trained.network.state_dict())
        os._exit(0)

    if not job.get("whole"):
        finish.finish_run = judge  # type: ignore[assignment]
    trainer.CHECKPOINT_INTERVAL_S = job.get("save_every", 0)
    exec(job.get("first", ""), {})
    if "dies" in job:
        die_behind(**job["dies"])
    sys.argv = ["fieldmark", "train", job["photos"], "--out", job["out"], "--resume", "--json", *job["options"]]
    main.main()


for line in sys.stdin:
    job, began = json.loads(line), time.monotonic()
    if not (pid := os.fork()):
        said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        try:
            train(job)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        finally:
            os._exit(99)
    if "after" in job:
        time.sleep(job["after"])
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), time.monotonic() - began, flush=True)
