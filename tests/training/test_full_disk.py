"""A disk that is full or cannot be written: one line, never a traceback or SIGBUS; with room again nothing is lost."""

import csv
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fieldmark.data.splits import write_split_file
from fieldmark.pipeline import prepare
from fieldmark.report import run_report
from fieldmark.report.run_report import write_report

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


# Run in the training before all else: notes what is opened to be written in the run's folder, and makes the disk full,
# but for some KiB, when it comes to one of the files. `save_file` writes behind Python's back.
FILLING = """
import os, re, sys
from fieldmark.models import state

disk, target, left, notes = {disk!r}, {target!r}, {left!r}, {notes!r}
os.environ["FIELDMARK_CACHE_GB"] = "0"

def opened(path, how):
    if not os.fspath(path).startswith(disk) or path == disk + "/ballast":
        return
    name = re.sub("^[0-9a-f]{{32}}|[0-9]{{6}}$", "*", os.path.basename(path)) + how
    with open(notes, "a") as noted:
        noted.write(name + "\\n")
    if name == target and not os.path.exists(disk + "/ballast"):
        with open(disk + "/ballast", "wb") as ballast:
            free = os.statvfs(disk)
            os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_bsize - (left << 10) or 4096)

def hear(event, args):
    if event == "open" and not isinstance(args[0], int) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        opened(os.fsdecode(args[0]), "")

def save_file(tensors, path, metadata):
    opened(str(path), ", saved")
    whole(tensors, path, metadata)

whole, state.save_file = state.save_file, save_file
sys.addaudithook(hear)
"""
EXPORTED = """
import onnx, torch, types
torch.onnx.export = lambda *_, **__: types.SimpleNamespace(model_proto=onnx.load({model!r}))
"""
# By the first part of their names: those that only get their name when they are whole, and those that do not need it.
WHOLE = {
    *("recipe", "*", "pack", "audit", "packed", "quarantine", "split", "history", "train_features", "val_features"),
    *("val_maps", "best", "checkpoint", "model", "bundle", "predictions", "metrics", "report", "card", "curves"),
}
GROWING = {"log", "events", ""}  # the last one is the lock .run.lock
LARGE = {"*", "train_features", "val_features", "model", "report"}


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_full_at_every_file_of_a_run(start, disk, small_options, trained, tmp_path, every):
    """Or at every sixth: each time the run goes on from where it stood, and ends as one that was not disturbed."""
    folder, notes = disk("size=200m"), tmp_path / "notes"
    run, ballast = folder / "run", folder / "ballast"

    def filling(target: str, left: int = 0) -> str:
        notes.unlink(missing_ok=True)
        ballast.unlink(missing_ok=True)
        words = {"disk": str(folder), "target": target, "left": left, "notes": str(notes)}
        return EXPORTED.format(model=str(trained[0] / "bundle" / "model.onnx")) + FILLING.format(**words)

    assert start(run, small_options, whole=True, save_every=1e9, first=filling("nothing")).code == 0
    files = list(dict.fromkeys(notes.read_text().splitlines()))
    stems = {name: name.split(".")[0] for name in files}
    assert {stems[name] for name in files if ".half" in name} >= WHOLE
    assert {stems[name] for name in files if ".half" not in name} == GROWING
    undisturbed = Path(shutil.move(run, tmp_path / "undisturbed"))
    for name in files[every // 2 :: every]:
        left = 16 if stems[name] in LARGE or name.endswith("saved") else 0
        ended = start(run, small_options, whole=True, save_every=1e9, first=filling(name, left))
        (line,) = (line for line in ended.said.splitlines() if line.startswith("fieldmark: "))
        assert ended.code == 2 and line == ended.said.splitlines()[-1] and ballast.exists(), (name, ended.said)
        assert FULL in line and "--resume" in line, name
    assert start(run, small_options, whole=True, first=filling("nothing")).code == 0
    assert equal(run, undisturbed)
    assert not list(run.rglob("*.half"))


def half_split(file: Path, catalog: Any, splits: list[str]) -> None:
    def first_half() -> Iterator[str]:
        yield from splits[: len(splits) // 2]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    written: Any = first_half()
    write_split_file(file, catalog, written)


def half_report(run: Path, *others: Any, **named: Any) -> None:
    file, *_ = write_report(run, *others, **named)
    os.truncate(file, file.stat().st_size // 2)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


@pytest.mark.parametrize(
    ("module", "victim", "half"),
    [(prepare, "write_split_file", half_split), (run_report, "write_report", half_report)],
    ids=["split", "report"],
)
def test_full_in_the_middle_of_a_file(
    here, small_photos, tiny_options, tmp_path, monkeypatch, module: Any, victim: str, half: Callable[..., None]
):
    """Half a split is no split, and half a report no finished run."""
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
