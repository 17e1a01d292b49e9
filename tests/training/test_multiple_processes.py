"""Two processes on this machine train like one, and end together, however they end."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fieldmark.models import build

pytestmark = pytest.mark.usefixtures("all_cores")

COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]

# Imported by every Python that starts with this folder on its path; it changes the processes that torchrun starts.
# Process number KILLED dies at step KILLED_AT of fine-tuning, as by the kernel's hand, once in the life of the file
# KILLED_ONCE, or its launcher does where LAUNCHER is set; with DRAWS, each process notes there the numbers that its
# dropout depends on, with SEEN the images that it trains on. With SYNC_EVERY, all save after each so many steps. With
# EPOCH_SECONDS, an epoch is said to take so long, twice as long in the second process, and LIMIT_SECONDS are left.
WORKER_HOOKS = """
import os, signal

def kill():
    if "LAUNCHER" in os.environ:
        launcher = open(f"/proc/{os.getppid()}/stat").read().rsplit(")", 1)[1].split()[1]
        os.kill(int(launcher), signal.SIGKILL)
        signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)

if "LOCAL_RANK" in os.environ and not os.environ.get("HOOKED"):
    os.environ["HOOKED"] = "1"  # not in what the workers start
    from fieldmark.data import dataset
    from fieldmark.training import trainer

    seed_torch, rank = trainer.seed_torch, os.environ["LOCAL_RANK"]
    item = dataset.AugmentedDataset.__getitem__

    if "SYNC_EVERY" in os.environ:
        trainer.SYNC_EVERY_STEPS, trainer.CHECKPOINT_INTERVAL_S = int(os.environ["SYNC_EVERY"]), 0

    def noted(images, which):
        with open(os.environ["SEEN"] + rank, "a") as file:
            print(*which, file=file)
        return item(images, which)

    if "SEEN" in os.environ:
        dataset.AugmentedDataset.__getitem__ = noted

    def watched(*numbers):
        if (rank, str(numbers[3])) == (os.environ.get("KILLED"), os.environ.get("KILLED_AT")) and numbers[2] == 2:
            once = os.environ.get("KILLED_ONCE")
            if not once or not os.path.exists(once):
                if once:
                    open(once, "w").close()
                kill()
        if "DRAWS" in os.environ:
            with open(os.environ["DRAWS"] + rank, "a") as file:
                print(*numbers, file=file)
        seed_torch(*numbers)

    trainer.seed_torch = watched

    if "EPOCH_SECONDS" in os.environ:
        import dataclasses

        evaluate, train = trainer.Trainer._evaluate_epoch, trainer.Trainer.train

        def evaluate_slowly(self, *args):
            seconds = float(os.environ["EPOCH_SECONDS"]) * (1 + int(rank))
            return dataclasses.replace(evaluate(self, *args), seconds=seconds)

        def train_with_limit(self, plan):
            def plan_with_limit(self):
                self.limit_finetuning(float(os.environ["LIMIT_SECONDS"]))
                return plan(self)

            return train(self, plan_with_limit)

        trainer.Trainer._evaluate_epoch, trainer.Trainer.train = evaluate_slowly, train_with_limit
"""

LIBRARY = """
import sys
import fieldmark

photos, out, weights = sys.argv[1:]
settings = {"backbone": "resnet18", "weights": weights, "image_size": 32, "train_size": 32, "batch": 8, "devices": 2}
try:
    fieldmark.train(photos, fieldmark.Recipe(**settings, epochs=9, lr=1e30), out=out + "/diverging")
except Exception as error:
    print(type(error).__name__, error)
print(fieldmark.train(photos, fieldmark.Recipe(**settings, epochs=1), out=out + "/run").metrics["test"]["n"])
"""


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def none_left(name: str) -> bool:
    """Whether, within seconds, no process is there whose command names this."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(name.encode() in file.read_bytes())
            except OSError:  # gone meanwhile
                continue
        if not any(found):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Both phases of a network without dropout, whose norms stay as its weights have them, in 32 bits."""
    weights = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    torch.manual_seed(1)
    save_file(build("resnet18", classes=7).state_dict(), weights)
    settings = "--image-size 64 --train-size 64 --batch 8 --epochs 2 --optimizer sgd --lr 0.0001 --precision 32"
    settings += " --mixup 0.2 --ema 0.9"
    return ["--backbone", "resnet18", "--weights", str(weights), *settings.split()]


TOLERANCE = 3e-4
"""Of losses. The features of an untrained network hardly differ between images, so that rounding counts."""
Program = subprocess.CompletedProcess[str]
COMMAND = ["-m", "fieldmark.cli"]


def run(folder: Path, *words: object, torchrun: bool = False, **environment: str) -> Program:
    """Runs Python with these words, by `torchrun` where that is asked for."""
    (folder / "sitecustomize.py").write_text(WORKER_HOOKS)
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    starter += ["--max-restarts", "1", "--monitor-interval", "0.1"] if torchrun else []
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if torchrun else {}
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment |= {"PYTHONPATH": path, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *starter, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


@pytest.fixture(scope="module")
def two(options: list[str], small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Program]:
    """A run by two processes that nobody disturbed: its folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("two")
    words = ["train", small_photos, "--out", folder / "run", "--json", "--devices", 2, *options]
    return folder / "run", run(folder, *COMMAND, *words, PYTHONWARNINGS="default", SYNC_EVERY="2")


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    """Runs Python in a folder of its own."""
    return lambda *words, **how: run(tmp_path, *words, **how)


def test_two_processes_learn_what_one_learns(two, options: list[str], small_photos: Path, tmp_path: Path, here):
    """Up to rounding in every loss; what stdout holds is one JSON document, and no library is heard on stderr."""
    out, done = two
    alone = here("train", small_photos, "--out", tmp_path / "one", "--json", *options)
    assert done.returncode == alone.code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["test"]["n"] == alone.json["test"]["n"] and said["bundle"] == str(out / "bundle")
    steps = (
        "Data",
        "Audit",
        "Features",
        "Linear probe",
        "Fine-tuning",
        "Head refit",
        "Kept",
        "Test",
        "Next",
        "Report",
        " ",
    )
    assert all(line.startswith(steps) for line in done.stderr.splitlines()), done.stderr
    one, both = rows(tmp_path / "one"), rows(out)
    assert [row["phase"] for row in both] == ["1", "2", "2", "4"]
    for a, b in zip(one, both, strict=True):
        assert [float(b[name]) for name in COLUMNS] == pytest.approx(
            [float(a[name]) for name in COLUMNS], abs=TOLERANCE
        )
    assert "devices: 2" in (out / "recipe.yaml").read_text() and none_left(str(out.parent))


@pytest.mark.parametrize("deaths", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_death_ends_all_and_resuming_gives_the_same_bits(
    two, options: list[str], small_photos: Path, tmp_path: Path, program, deaths: int
):
    """Dies a process, and with `deaths` also the main process and who started them: no process is left."""
    out, draws = tmp_path / "run", tmp_path / "draws"
    words = [*COMMAND, "train", small_photos, "--out", out, "--resume", "--json", *options]
    for rank, dies_at in (("1", "3"), ("0", "5"))[:deaths]:
        done = program(*words, "--devices", 2, KILLED=rank, KILLED_AT=dies_at, SYNC_EVERY="2")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith("fieldmark: a worker process of this training died"), done.stderr
        assert "Traceback" not in done.stderr and none_left(str(tmp_path))

    step = 2
    if deaths > 1:
        step = 6
        done = program(*words, "--devices", 2, KILLED="0", KILLED_AT="7", SYNC_EVERY="2", LAUNCHER="1")
        assert done.returncode == -9 and none_left(str(tmp_path))
        assert rows(out) == rows(two[0])[:2]

    done = program(*words, torchrun=True, DRAWS=str(draws), SYNC_EVERY="2")
    assert done.returncode == 0, done.stderr
    assert f"resumed in phase 2 at step {step}" in (out / "log.txt").read_text()
    assert json.loads(done.stdout)["test"] == json.loads(two[1].stdout)["test"]
    assert rows(out) == rows(two[0])
    weights = [(folder / "bundle" / "model.safetensors").read_bytes() for folder in (out, two[0])]
    assert weights[0] == weights[1]
    drawn = (draws.with_name(f"draws{rank}").read_text().splitlines() for rank in range(2))
    first, second = ([line for line in lines if line.split()[2] == "2"] for lines in drawn)  # of fine-tuning
    assert second == [f"{numbers} 1" for numbers in first] and len(first) == 8 - step


def test_the_pace_of_the_main_process_decides_what_fits_into_a_budget(
    options: list[str], small_photos: Path, tmp_path: Path, program
):
    out, noted = tmp_path / "run", tmp_path / "seen"
    words = [*COMMAND, "train", small_photos, "--out", out, *options]
    done = program(*words, torchrun=True, SEEN=str(noted), EPOCH_SECONDS="10", LIMIT_SECONDS="15")
    assert done.returncode == 0, done.stderr
    assert "1.5 epochs in place of 2" in (out / "log.txt").read_text()
    assert [row["phase"] for row in rows(out)] == ["1", "2", "2", "4"]
    assert sorted(place for place, _ in seen(noted)) == list(range(6 * 8))  # steps of eight photos, each once


def seen(noted: Path) -> list[tuple[int, int]]:
    """(place in the stream, photo) of all that the processes trained on, in no order."""
    lines = [
        line.split() for rank in range(2) for line in noted.with_name(f"{noted.name}{rank}").read_text().splitlines()
    ]
    return [(int(place), int(photo)) for place, photo in lines]


@pytest.mark.slow
def test_shards_are_shared_out_whole_and_a_vanished_machine_costs_little(
    options: list[str], small_photos: Path, tmp_path: Path, program, here
):
    """By torchrun on shards that nobody unpacks: each photo once a pass, though a killed process is started again and
    goes on inside its epoch; up to rounding what one process learns from them."""
    shards = tmp_path / "shards"
    assert here("pack", small_photos, "--shards", shards).code == 0
    words = [*options, "--stream", "--json"]
    alone = here("train", shards, "--out", tmp_path / "one", *words)

    noted = {"SEEN": str(tmp_path / "seen"), "SYNC_EVERY": "2", "KILLED_ONCE": str(tmp_path / "killed")}
    command = ["train", shards, "--out", tmp_path / "two", "--resume", *words]
    done = program(*COMMAND, *command, torchrun=True, KILLED="1", KILLED_AT="7", **noted)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["n"] == alone.json["test"]["n"]
    assert "resumed in phase 2 at step 6" in (tmp_path / "two" / "log.txt").read_text()
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert [float(b[name]) for name in COLUMNS] == pytest.approx(
            [float(a[name]) for name in COLUMNS], abs=TOLERANCE
        )
    looked = seen(tmp_path / "seen")
    places, photos = dict(looked), max(photo for _, photo in looked) + 1
    assert sorted(places) == list(range(64))  # two epochs of four steps of eight photos
    assert sorted(places[k] for k in range(photos)) == list(range(photos))
    assert set(looked) == set(places.items())  # what is seen again is the same
    again = {place for place, n in Counter(place for place, _ in looked).items() if n > 1}
    assert again <= set(range(48, 64))  # from the checkpoint on, of step 6


@pytest.mark.slow
def test_a_program_trains_twice_and_gets_the_error_of_its_workers(
    options: list[str], small_photos: Path, tmp_path: Path, program
):
    """Not even a script: nothing of the program is run again in the workers."""
    done = program("-c", LIBRARY, small_photos, tmp_path, options[3])
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("UntrainableRecipeError the loss is") and said[1:] == ["6"], said
    assert "the loss is" not in done.stderr and none_left(str(tmp_path))


def test_another_number_of_processes_does_not_go_on(two, small_photos: Path, tmp_path: Path, here):
    (out := tmp_path / "run").mkdir()
    (out / "recipe.yaml").write_text((two[0] / "recipe.yaml").read_text().replace("devices: 2", "devices: 1"))
    refused = here("train", small_photos, "--out", out, "--resume", "--devices", 2).refusal
    assert "was started with --devices 1, not 2" in refused
