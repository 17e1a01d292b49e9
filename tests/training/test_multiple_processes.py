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

ALONE = {"OMP_NUM_THREADS": "1"}
COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]

# Runs the real command in as many processes as it likes. Process number KILLED dies at step KILLED_AT of phase 2, as by
# the kernel's hand, once in the life of the file KILLED_ONCE; with DRAWS, each process notes there the numbers that its
# dropout depends on, with SEEN the photos that it trains on. With SYNC_EVERY, all save after each so many steps.
PROGRAM = """
import os, signal
from fieldmark.cli import main
from fieldmark.data import dataset
from fieldmark.training import trainer

seed_torch, rank = trainer.seed_torch, os.environ.get("LOCAL_RANK", "0")
item = dataset.AugmentedDataset.__getitem__

if "SYNC_EVERY" in os.environ:
    trainer.SYNC_EVERY_STEPS, trainer.CHECKPOINT_INTERVAL_S = int(os.environ["SYNC_EVERY"]), 0

def noted(photos, which):
    with open(os.environ["SEEN"] + rank, "a") as file:
        print(*which, file=file)
    return item(photos, which)

if "SEEN" in os.environ:
    dataset.AugmentedDataset.__getitem__ = noted

def watched(*numbers):
    if (rank, str(numbers[3])) == (os.environ.get("KILLED"), os.environ.get("KILLED_AT")) and numbers[2] == 2:
        once = os.environ.get("KILLED_ONCE")
        if not once or not os.path.exists(once):
            if once:
                open(once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    if "DRAWS" in os.environ:
        with open(os.environ["DRAWS"] + rank, "a") as file:
            print(*numbers, file=file)
    seed_torch(*numbers)

trainer.seed_torch = watched
main.main()
"""

LIBRARY = """
import sys
import fieldmark

photos, out, weights = sys.argv[1:]
print("begun")
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
    settings = "--image-size 64 --train-size 64 --batch 8 --epochs 2 --lr 0.0005 --precision 32 --mixup 0.2 --ema 0.9"
    return ["--backbone", "resnet18", "--weights", str(weights), *settings.split()]


Program = subprocess.CompletedProcess[str]
OFTEN = {"SYNC_EVERY": "2"}


def run(text: str, folder: Path, *arguments: object, torchrun: bool = False, **environment: str) -> Program:
    """Runs a script with these arguments, by `torchrun` where that is asked for."""
    script = folder / "program.py"
    script.write_text(text)
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    starter += ["--max-restarts", "1", "--monitor-interval", "0.1"] if torchrun else []
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if torchrun else {}
    words = [sys.executable, *starter, str(script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ | ALONE | environment)


@pytest.fixture(scope="module")
def two(options: list[str], small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Program]:
    """A run by two processes that nobody disturbed: its folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("two")
    words = ["train", small_photos, "--out", folder / "run", "--json", "--devices", 2, *options]
    return folder / "run", run(PROGRAM, folder, *words, PYTHONWARNINGS="default", SYNC_EVERY="2")


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    """Runs a script in a folder of its own."""
    return lambda text, *arguments, **how: run(text, tmp_path, *arguments, **how)


def test_two_processes_learn_what_one_learns(two, options: list[str], small_photos: Path, tmp_path: Path, here):
    """Up to 1e-4 in every loss; what stdout holds is one JSON document, and no library is heard on stderr."""
    out, done = two
    alone = here("train", small_photos, "--out", tmp_path / "one", "--json", *options)
    assert done.returncode == alone.code == 0
    said = json.loads(done.stdout)
    assert said["test"]["n"] == alone.json["test"]["n"] and said["bundle"] == str(out / "bundle")
    assert all(line.startswith(("48 photos", "epoch: ")) for line in done.stderr.splitlines()), done.stderr
    one, both = rows(tmp_path / "one"), rows(out)
    assert [row["phase"] for row in both] == ["1", "2", "2"]
    for a, b in zip(one, both, strict=True):
        assert [float(b[name]) for name in COLUMNS] == pytest.approx([float(a[name]) for name in COLUMNS], abs=1e-4)
    assert "devices: 2" in (out / "recipe.yaml").read_text() and none_left(str(out))


def test_a_death_ends_all_and_resuming_gives_the_same_bits(
    two, options: list[str], small_photos: Path, tmp_path: Path, program
):
    out, draws = tmp_path / "run", tmp_path / "draws"
    words = ["train", small_photos, "--out", out, "--resume", "--json", *options]
    done = program(PROGRAM, *words, "--devices", 2, KILLED="1", KILLED_AT="5", **OFTEN)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("fieldmark: another process of this training is gone")
    assert "Traceback" not in done.stderr and none_left(str(out))

    done = program(PROGRAM, *words, "--devices", 2, KILLED="0", KILLED_AT="7", **OFTEN)
    assert done.returncode == -9 and none_left(str(out))
    assert rows(out) == rows(two[0])[:2]

    done = program(PROGRAM, *words, torchrun=True, DRAWS=str(draws), **OFTEN)
    assert done.returncode == 0, done.stderr
    assert "resumed in phase 2 at step 6" in (out / "log.txt").read_text()
    assert json.loads(done.stdout)["test"] == json.loads(two[1].stdout)["test"]
    assert rows(out) == rows(two[0])
    weights = [(folder / "bundle" / "model.safetensors").read_bytes() for folder in (out, two[0])]
    assert weights[0] == weights[1]
    first, second = (draws.with_name(f"draws{rank}").read_text().splitlines() for rank in range(2))
    assert second == [f"{numbers} 1" for numbers in first] and len(first) == 2


def seen(noted: Path) -> list[tuple[int, int]]:
    """(place in the stream, photo) of all that the processes trained on, in no order."""
    lines = [
        line.split() for rank in range(2) for line in noted.with_name(f"{noted.name}{rank}").read_text().splitlines()
    ]
    return [(int(place), int(photo)) for place, photo in lines]


def test_shards_are_shared_out_whole_and_a_vanished_machine_costs_little(
    options: list[str], small_photos: Path, tmp_path: Path, program, here
):
    """By torchrun on shards that nobody unpacks: each photo once a pass, though a killed process is started again and
    goes on inside its epoch; up to 1e-4 what one process learns from them."""
    shards = tmp_path / "shards"
    assert here("pack", small_photos, "--shards", shards).code == 0
    words = [*options, "--stream", "--json"]
    alone = here("train", shards, "--out", tmp_path / "one", *words)

    noted = {"SEEN": str(tmp_path / "seen"), "SYNC_EVERY": "2", "KILLED_ONCE": str(tmp_path / "killed")}
    command = ["train", shards, "--out", tmp_path / "two", "--resume", *words]
    done = program(PROGRAM, *command, torchrun=True, KILLED="1", KILLED_AT="7", **noted)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["n"] == alone.json["test"]["n"]
    assert "resumed in phase 2 at step 6" in (tmp_path / "two" / "log.txt").read_text()
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert [float(b[name]) for name in COLUMNS] == pytest.approx([float(a[name]) for name in COLUMNS], abs=1e-4)
    looked = seen(tmp_path / "seen")
    places, photos = dict(looked), max(photo for _, photo in looked) + 1
    assert sorted(places) == list(range(64))  # two epochs of four steps of eight photos
    assert sorted(places[k] for k in range(photos)) == list(range(photos))
    assert set(looked) == set(places.items())  # what is seen again is the same
    again = {place for place, n in Counter(place for place, _ in looked).items() if n > 1}
    assert again <= set(range(48, 64))  # from the checkpoint on, of step 6


def test_a_script_trains_twice_and_an_error_is_its_own(options: list[str], small_photos: Path, tmp_path: Path, program):
    done = program(LIBRARY, small_photos, tmp_path, options[3])
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line != "begun"]
    assert said[0].startswith("Untrainable the loss is not a number any more") and said[1:] == ["6"], said
    assert done.stdout.count("begun") == 3  # by itself, and by the second process of each training
    assert "fieldmark: process" not in done.stderr and none_left(str(tmp_path / "program.py"))


def test_another_number_of_processes_does_not_go_on(two, small_photos: Path, tmp_path: Path, command):
    (out := tmp_path / "run").mkdir()
    (out / "recipe.yaml").write_text((two[0] / "recipe.yaml").read_text().replace("devices: 2", "devices: 1"))
    refused = command("train", small_photos, "--out", out, "--resume", "--devices", 2).refusal
    assert "was begun with --devices 1, not 2" in refused
