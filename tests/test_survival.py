"""SIGKILL anywhere, then --resume: the same weights and the same history as a run that nobody disturbed, to the bit."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

OPTIONS = [
    "--image-size",
    "64",
    "--train-size",
    "64",
    "--batch",
    "8",
    "--frozen-epochs",
    "4",
    "--epochs",
    "2",
    "--backbone-lr",
    "0.01",
]

# Runs the real command, but stops (touches a file and sleeps) at a given place, so that the kill hits there and nowhere
# else: {when} is true there.
STOPPING = """
import sys, time
from pathlib import Path
from fieldmark import cli, finetune, run
from fieldmark.store import Packer

marker = Path(sys.argv.pop(1))
finetune.SAVE_EVERY = {save_every}

def stop_after(home, name, when):
    original = getattr(home, name)
    def stopping(*args, **kwargs):
        result = original(*args, **kwargs)
        if when(*args):
            marker.touch()
            time.sleep(600)
        return result
    setattr(home, name, stopping)

stop_after({home}, {name!r}, lambda *args: {when})
cli.main()
"""

# Name -> where it stops, and the phase and step that the checkpoint then stands at (None: there is none yet).
PLACES = {
    "while photos are read": ({"home": "Packer", "name": "add", "when": "len(args[0]) == 9"}, None),
    "in phase 1": ({"home": "finetune", "name": "draw", "when": "args[1:] == (3, 1, 14)"}, (1, 14)),
    "between the phases": ({"home": "finetune.Trainer", "name": "_next_phase", "when": "True"}, (2, 0)),
    "in an epoch of phase 2": ({"home": "finetune", "name": "draw", "when": "args[1:] == (3, 2, 6)"}, (2, 6)),
    "in an epoch, long after a checkpoint": (
        {"home": "finetune", "name": "draw", "when": "args[1:] == (3, 2, 7)", "save_every": "1e9"},
        (2, 6),
    ),
}


def command(photos: Path, out: Path) -> list[str]:
    return ["train", str(photos), "--out", str(out), "--resume", "--json", *OPTIONS]


def killed_at(place: str, photos: Path, out: Path, marker: Path) -> None:
    """Start or go on with the run, kill it at the place, and make sure that it was alive and there."""
    marker.unlink(missing_ok=True)
    code = STOPPING.format(**{"save_every": 0, **PLACES[place][0]})
    arguments = [sys.executable, "-c", code, str(marker), *command(photos, out)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert alive and marker.exists(), f"never stood {place}:\n{errors}"
    assert process.returncode == -signal.SIGKILL


def standing(out: Path) -> tuple[int, int] | None:
    """Phase and step of the run's checkpoint."""
    file = out / "resume" / "checkpoint.safetensors"
    if not file.exists():
        return None
    with safe_open(file, framework="np") as checkpoint:
        counters = json.loads(checkpoint.metadata()["counters"])
    return counters["phase"], counters["step"]


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(
        [sys.executable, "-m", "fieldmark.cli", *command(small_photos, out)], check=True, capture_output=True
    )
    return out


def test_a_run_killed_everywhere_ends_like_an_undisturbed_one(
    small_photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for place, (_, expected) in PLACES.items():
        killed_at(place, small_photos, out, tmp_path / "marker")
        assert standing(out) == expected, place
        assert not (out / "report.html").exists()
    subprocess.run(
        [sys.executable, "-m", "fieldmark.cli", *command(small_photos, out)], check=True, capture_output=True
    )
    assert history(out) == history(undisturbed)
    assert len(history(out)) == 6 and {row["phase"] for row in history(out)} == {"1", "2"}
    weights = [(folder / "bundle" / "model.safetensors").read_bytes() for folder in (out, undisturbed)]
    assert weights[0] == weights[1]
    assert (out / "split.csv").read_bytes() == (undisturbed / "split.csv").read_bytes()
