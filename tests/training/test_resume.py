"""SIGKILL anywhere, then --resume: the same weights and the same history as a run that nobody disturbed, to the bit."""

import csv
import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fieldmark.data.dataset import iter_eval_batches
from fieldmark.models import build
from fieldmark.models.state import load_state
from fieldmark.training import checkpoint
from fieldmark.training.history import EpochRecord


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """Options -> the folder of a run with them that nobody disturbed, and how it ended."""
    done: dict[tuple[str, ...], tuple[Path, Any]] = {}

    def run(options: list[str]) -> tuple[Path, Any]:
        if tuple(options) not in done:
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            ended = start(out, options)
            assert ended.code == 0, ended.said
            done[tuple(options)] = out, ended
        return done[tuple(options)]

    return run


Job = dict[str, Any]


def behind(home: str, name: str, when: str = "True") -> Job:
    """A run that dies behind a call of `home.name` with such `args`."""
    return {"dies": {"home": home, "name": name, "when": when}}


def in_step(phase: int, step: int) -> Job:
    """A run that dies within this step, in which `seed_torch` sets what is random."""
    return behind("trainer", "seed_torch", f"args[1:] == (3, {phase}, {step})")


BETWEEN = behind("trainer.Trainer", "_enter_phase")
WRITING = behind(
    "state", "save_file", "args[1].name == 'checkpoint.safetensors.half' and not os.truncate(args[1], 3000)"
)
AS_IT_COMES = shlex.split("--image-size 64 --train-size 64 --batch 8 --epochs 2")
MUCH_AT_ONCE = shlex.split(
    "--image-size 64 --train-size 96 --start-size 64 --batch 8 --epochs 5 --no-exact --frozen-epochs 4"
    " --after '-1:mask(norm=True)' --unfreeze gradual --optimizer adamw --ema 0.99 --mixup 0.3 --cutmix 0.3"
    " --accumulate 2 --imbalance sampling --augment strong --monitor loss"
)
IN_32_BITS = shlex.split(
    "--image-size 64 --train-size 64 --batch 8 --epochs 2 --precision 32 --schedule plateau --optimizer adam"
    " --imbalance weights --unfreeze all --ema 0.9 --frozen-epochs 0"
)
AUXILIARY_HEADS = shlex.split(
    "--backbone googlenet --aux --weights none --image-size 32 --train-size 32 --batch 12 --epochs 2"
)

# Options, and in order: where the run dies, with the phase and the step that its checkpoint then stands at.
RUNS: dict[str, tuple[list[str], list[tuple[Job, tuple[int, int] | None]]]] = {
    "as it comes": (
        AS_IT_COMES,
        [
            (behind("recipe", "write_recipe"), None),
            (behind("MemmapWriter", "add", "len(args[0]) == 9"), None),
            (behind("prepare", "write_split_file"), None),
            (behind("NpyWriter", "append", "args[0].path.name == 'train_features.npy'"), None),
            (behind("NpyWriter", "append", "args[0].path.name == 'val_features.npy'"), None),
            (in_step(1, 0), None),
            (WRITING, None),
            (BETWEEN, (2, 0)),
            (in_step(2, 2), (2, 2)),
            (WRITING, (2, 2)),
            (in_step(2, 6), (2, 6)),
            (in_step(2, 7) | {"save_every": 1e9}, (2, 6)),  # long after a checkpoint
            (BETWEEN, (4, 0)),
            (behind("NpyWriter", "append", "args[0].path.name == 'tuned_train_features.npy'"), (4, 0)),
            (in_step(4, 0), (4, 0)),
            (behind("finish.bundle", "make_info") | {"whole": True}, (4, 1)),
        ],
    ),
    "much at once": (
        MUCH_AT_ONCE,
        [
            (in_step(1, 14), (1, 14)),
            (BETWEEN, (2, 0)),
            (in_step(2, 6), (2, 6)),
            (BETWEEN, (3, 0)),
            (in_step(3, 1), (3, 1)),
            (WRITING, (3, 1)),
            (in_step(3, 7), (3, 7)),
        ],
    ),
    "in 32 bits": (
        IN_32_BITS,
        [
            (in_step(2, 0), (2, 0)),
            (in_step(2, 3), (2, 3)),
            (behind("trainer.Trainer", "_save_best_weights"), (2, 3)),
            (in_step(2, 5), (2, 5)),
        ],
    ),
    "auxiliary heads": (AUXILIARY_HEADS, [(in_step(2, 1), (2, 1)), (in_step(2, 3), (2, 3))]),
}


def standing(out: Path) -> tuple[int, int] | None:
    """Phase and step of the run's checkpoint; its best weights are there as soon as an epoch is in its history."""
    file = out / "resume" / "checkpoint.safetensors"
    if not file.exists():
        return None
    tensors, counters = load_state(file)
    assert bool(checkpoint.select_prefix(tensors, "best")) == bool(counters["history"])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    return counters["phase"], counters["step"]


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def same(out: Path, other: Path) -> bool:
    """Whether two trainings ended alike."""
    split, weights = (
        [(run / name).read_bytes() for run in (out, other)] for name in ("split.csv", "trained.safetensors")
    )
    return split[0] == split[1] and weights[0] == weights[1] and history(out) == history(other)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", RUNS)
def test_a_run_killed_everywhere_ends_like_an_undisturbed_one(
    start, undisturbed, tmp_path: Path, which: str, every: int
):
    """At each of these places, or at every third."""
    options, places = RUNS[which][0], RUNS[which][1][every // 2 :: every]
    for job, expected in places:
        ended = start(tmp_path / "run", options, **job)
        assert ended.code == -signal.SIGKILL, (job, ended.said)
        assert standing(tmp_path / "run") == expected, job
    assert start(tmp_path / "run", options).code == 0
    assert same(tmp_path / "run", undisturbed(options)[0])
    names = load_file(tmp_path / "run" / "trained.safetensors")
    assert any(".aux1." in name for name in names) == ("--aux" in options)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_like_an_undisturbed_one(start, undisturbed, tmp_path: Path):
    options, (whole, ended) = MUCH_AT_ONCE, undisturbed(MUCH_AT_ONCE)
    moments = random.Random(5)
    for _ in range(5):
        start(tmp_path / "run", options, after=moments.random() * ended.seconds, save_every=0.2)
        standing(tmp_path / "run")
    assert start(tmp_path / "run", options).code == 0
    assert same(tmp_path / "run", whole)


def test_a_loader_that_dies_costs_a_line_and_nothing_else(start, undisturbed, tmp_path: Path):
    two = "from fieldmark.data import dataset; dataset._num_workers = lambda world=1: 2"
    dies = behind("AugmentedDataset", "__getitem__", "args[1][0] == 45")  # in a process of the loader
    ended = start(tmp_path / "run", AS_IT_COMES, first=two, **dies)
    assert ended.code == 2
    (line,) = (line for line in ended.said.splitlines() if line.startswith("fieldmark: "))
    assert ended.said.splitlines()[-1] == line and "a data-loading worker died" in line and "--resume" in line
    at = standing(tmp_path / "run")
    assert at and at[0] == 2 and 0 < at[1] <= 6  # nothing that was computed is lost
    assert start(tmp_path / "run", AS_IT_COMES, first=two).code == 0
    assert same(tmp_path / "run", undisturbed(AS_IT_COMES)[0])


def same_to_the_end(out: Path, other: Path) -> None:
    for name in ("bundle/model.safetensors", "split.csv", "predictions.csv"):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name
    tested, expected = (json.loads((run / "metrics.json").read_text())["test"] for run in (out, other))
    assert tested == expected and history(out) == history(other)


def test_a_finishing_run_goes_on_to_the_same_bundle(start, small_photos, small_options, trained, here, tmp_path: Path):
    ended = start(tmp_path / "run", small_options, whole=True, **behind("finish.bundle", "save"))
    assert ended.code == -signal.SIGKILL, ended.said
    assert "has not finished" in here("predict", tmp_path / "run", small_photos).refusal
    assert start(tmp_path / "run", small_options, whole=True).code == 0
    same_to_the_end(tmp_path / "run", trained[0])


# The same with the real command.
STOPPING = """
import sys, time
from pathlib import Path
from fieldmark.cli import main
from fieldmark.pipeline import finish
from fieldmark.training import trainer

marker, home, name, when = (sys.argv.pop(1) for _ in range(4))
original, home, trainer.CHECKPOINT_INTERVAL_S = getattr(eval(home), name), eval(home), 0

def stopping(*args, **kwargs):
    result = original(*args, **kwargs)
    if eval(when):
        Path(marker).touch()
        time.sleep(600)
    return result

setattr(home, name, stopping)
main.main()
"""


@pytest.mark.slow
def test_the_command_goes_on_to_the_same_bundle(small_photos, small_options, trained, command, tmp_path: Path):
    words = ["train", str(small_photos), "--out", str(tmp_path / "run"), "--resume", "--json", *small_options]
    for k, place in enumerate((in_step(2, 2), behind("finish.bundle", "save"))):
        marker = tmp_path / str(k)
        arguments = [sys.executable, "-c", STOPPING, str(marker), *place["dies"].values(), *words]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            _, said = process.communicate()
        assert marker.exists() and process.returncode == -signal.SIGKILL, said
        assert "has not finished" in command("predict", tmp_path / "run", small_photos).refusal
    done = command(*words)
    assert done.code == 0 and done.json["test"] == trained[1].json["test"]
    same_to_the_end(tmp_path / "run", trained[0])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_network_so_far_is_always_at_hand(trainer, few, ema: float):
    """As a file that another training starts from, from the end of phase 1 on."""

    class Watch:
        def start(self, history: list) -> None:
            pass

        def log_epoch(self, record: EpochRecord) -> None:
            if record.phase == 1:
                return
            network = build("efficientnet_lite0", classes=3, weights=training.folder / "best.safetensors").eval()
            with torch.inference_mode():
                logits = network(
                    torch.cat(
                        [
                            training.phase_builder.frozen_features.normalise(p)
                            for p in iter_eval_batches(few.images, few.val, 64)
                        ]
                    )
                )
            loss = F.cross_entropy(logits, training.phase_builder.val_labels).item()
            best = training.state.history[training.best_epoch() - 1]
            assert loss == pytest.approx(best.val_loss, rel=1e-4)
            kept.append(best.epoch)

    kept: list[int] = []
    settings = {"exact": False, "frozen_epochs": 1, "unfreeze": "gradual", "epochs": 6, "patience": 9, "ema": ema}
    training = trainer(loggers=Watch(), monitor="loss", **settings)
    training.train()
    assert len(kept) == 6 and len(set(kept)) > 1
