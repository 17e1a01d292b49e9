"""A disk that is full or cannot be written: one line, never a traceback or SIGBUS; with room again nothing is lost."""

import csv
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """-> a function that gives a small file system other mount options, as `size=2m` or `ro`, and its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def remount(options: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)
        return folder

    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs may be mounted here: {getattr(error, 'stderr', error)}")
    yield remount
    subprocess.run(["umount", "--lazy", folder], check=True)


def ends_in_one_line(done) -> bool:
    """The process ended by itself, with one line after what it told before."""
    lines = [line for line in done.err.splitlines() if line.startswith("fieldmark: ")]
    assert (done.code, done.out) == (2, ""), done
    assert lines == done.err.splitlines()[-1:] and FULL in lines[0] and "--resume" in lines[0], done.err
    return True


def equal(run: Path, other: Path) -> bool:
    """Whether the runs have the same weights, to the bit, and the same history but for the seconds."""
    histories = []
    for folder in (run, other):
        with (folder / "history.csv").open(newline="") as file:
            histories.append([{**row, "seconds": None} for row in csv.DictReader(file)])
    weights = [(folder / "bundle" / "model.safetensors").read_bytes() for folder in (run, other)]
    return histories[0] == histories[1] and weights[0] == weights[1]


def test_full_in_the_pack_the_features_and_the_checkpoint(
    command, disk, small_photos, small_options, trained, monkeypatch
):
    monkeypatch.setenv("FIELDMARK_CACHE_GB", "0")
    run = disk("size=512k") / "run"
    words = ["train", small_photos, "--out", run, "--resume", "--json", *small_options]
    pack, features, checkpoint = (
        run / "resume" / name for name in ("pack.npz", "train_features.npy", "checkpoint.safetensors")
    )
    assert ends_in_one_line(command(*words)) and not pack.exists()
    disk("size=1160k")
    assert ends_in_one_line(command(*words)) and pack.exists() and not features.exists()
    disk("size=12m")
    assert ends_in_one_line(command(*words)) and features.exists() and not checkpoint.exists()
    disk("size=200m")
    done = command(*words)
    assert done.code == 0 and done.json["test"] == trained[1].json["test"]
    assert equal(run, trained[0])


def test_full_in_the_bundle(command, disk, small_photos, small_options, trained):
    """A run that is trained, but has no bundle yet."""
    checkpoint = trained[0] / "resume" / "checkpoint.safetensors"
    run = disk(f"size={checkpoint.stat().st_size + 6 * 2**20}") / "run"
    (run / "resume").mkdir(parents=True)
    shutil.copy(checkpoint, run / "resume")
    shutil.copy(trained[0] / "recipe.yaml", run)
    words = ["train", small_photos, "--out", run, "--resume", "--json", *small_options]
    assert ends_in_one_line(command(*words)) and (run / "bundle").exists()
    assert "has not finished" in command("predict", run, small_photos / "disc" / "00.jpg").refusal
    disk("size=200m")
    assert command(*words).code == 0
    assert equal(run, trained[0])


@pytest.mark.parametrize(("home", "victim"), [("prepare", "write_split"), ("run", "write_report")])
def test_full_in_the_middle_of_a_file(here, small_photos, tiny_options, tmp_path, monkeypatch, home, victim):
    """Half a split is no split, and half a report no finished run."""
    module = import_module(f"fieldmark.{home}")
    whole = getattr(module, victim)

    def half(place, *others):
        whole(place, *others)
        file = place / "report.html" if place.is_dir() else place
        os.truncate(file, file.stat().st_size // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    words = ["train", small_photos, "--out", tmp_path / "run", "--resume", "--json", *tiny_options]
    with monkeypatch.context() as patch:
        patch.setattr(module, victim, half)
        assert ends_in_one_line(here(*words))
    done = here(*words)
    assert done.code == 0 and done.json["seconds"]["report"] > 0
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
    assert len((tmp_path / "run" / "split.csv").read_text().splitlines()) == 1 + 48


def test_an_out_that_cannot_be_made(here, disk, small_photos, tmp_path):
    (tmp_path / "file").touch()
    line = here("train", small_photos, "--out", tmp_path / "file" / "run").refusal
    assert line == f"{tmp_path / 'file' / 'run'} cannot be made (Not a directory): give another --out"
    run = disk("ro") / "run"
    assert "cannot be made (Read-only file system)" in here("train", small_photos, "--out", run).refusal
    assert f"{tmp_path / 'file'} exists" in here("train", small_photos, "--out", tmp_path / "file").refusal


def test_a_csv_that_cannot_be_written(here, disk, small_run, small_photos):
    file = disk("ro") / "answers.csv"
    line = here("predict", small_run, small_photos / "disc" / "00.jpg", "--csv", file, "--json").refusal
    assert line.startswith(f"{file}: Read-only file system")
