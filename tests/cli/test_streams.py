"""Streams that are closed, full, narrow or left early, and Ctrl-C: it works, or one line says what is wrong."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from addresses import WebServer, photo, wait_until
from tiny import write_model

from fieldmark.core import runtime

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, `photos` with three photos, one of which is none, and a list of many names."""
    folder = tmp_path_factory.mktemp("streams")
    write_model(folder / "model.onnx")
    (folder / "photos").mkdir()
    for name, content in {"1 红.jpg": photo("red"), "2 坏.jpg": b"text", "3 绿.jpg": photo("lime")}.items():
        (folder / "photos" / name).write_bytes(content)
    (folder / "many.txt").write_text("photos/1 红.jpg\n" * 4000, encoding="utf-8")
    return folder


@pytest.fixture
def shell(folder: Path, tmp_path: Path):
    """A line of bash in which `predict` stands for the command with the model -> how it ended."""

    def run(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        program = f"{shlex.quote(sys.executable)} -m fieldmark.cli"
        line = line.replace("predict", f"{program} predict model.onnx").replace("OUT", str(tmp_path / "out"))
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())} | environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=60,
        )
        assert not {"Traceback", "internal error"} & set(done.stderr.split()), done.stderr
        assert "internal error" not in done.stderr and "Exception ignored" not in done.stderr
        return done

    return run


ROWS = ["photos/1 红.jpg", "photos/2 坏.jpg", "photos/3 绿.jpg"]


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-", "--json >&-", "2>/dev/full"])
def test_closed_streams_leave_every_row(closed: str, shell: Any, tmp_path: Path):
    done = shell(f"predict photos --csv OUT {closed}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == (0 if "2>" in closed or "--json" in closed else 1)
    with (tmp_path / "out").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ROWS
    assert [row["label"] for row in rows] == ["red", "", "绿, green"]


def test_errors_do_not_go_to_stdout(shell: Any):
    assert shell("predict photos 2>&-").stdout.count("\n") == 2
    assert json.loads(shell("predict photos --json 2>&-").stdout)[1]["error"]
    assert shell("predict none --json --csv a --jsonl b 2>&-").stdout == ""


def test_stdin_is_closed(shell: Any):
    done = shell("predict - <&-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "stdin is closed" in done.stderr


def test_a_reader_may_leave(shell: Any, tmp_path: Path):
    done = shell("predict - < many.txt | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "photos/1 红.jpg: red 100.0%\n", "")
    done = shell("sed 's/1 红/none/' many.txt | predict - --csv OUT 2>&1 | head -1")
    assert done.stdout == "photos/none.jpg: no such file\n"
    assert (tmp_path / "out").read_text().count("\n") == 4001  # it is written to the end


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(shell: Any):
    done = shell("predict photos > /dev/full")
    assert done.returncode == 2 and "No space left on device" in done.stderr


LOCALES = {
    "PYTHONUTF8=0": True,
    "LC_ALL=C": True,
    "LC_ALL=C PYTHONUTF8=0": True,
    "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0": True,
    "PYTHONIOENCODING=ascii": False,
    "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii:strict": False,
}


@pytest.mark.parametrize("locale", LOCALES)
def test_names_survive_every_locale(locale: str, shell: Any, tmp_path: Path):
    environment = dict(word.split("=", 1) for word in locale.split())
    done = shell("ls photos | sed s:^:photos/: | predict - --csv OUT --json", **environment)
    assert done.returncode == 1 and done.stderr == ""
    paths = [os.fsencode(row["path"]).decode() for row in json.loads(done.stdout)]
    assert sorted(paths) == ROWS
    with (tmp_path / "out").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == paths
    done = shell("predict photos", **environment)
    assert done.stdout.count("\n") == 2 and done.stderr.count("\n") == 1
    assert ("photos/3 绿.jpg: 绿, green" in done.stdout) is LOCALES[locale]


def test_ctrl_c_is_one_line_and_does_not_wait_for_servers(folder: Path, web: WebServer, tmp_path: Path):
    addresses = [f"{web.url}/ok.jpg", *(f"{web.url}/silent/{k}.jpg" for k in range(9))]
    words = ["predict", str(folder / "model.onnx"), *addresses, "--allow-private-hosts", "--csv", "out.csv"]
    program = [sys.executable, "-m", "fieldmark.cli", *words]
    path = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())}
    with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=path) as process:
        n_threads = min(9, runtime.available_cpus())  # each waits for one of them
        wait_until(lambda: sum(path.startswith("/silent/") for path in [*web.requests]) >= n_threads, 60)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 2 and said.count("\n") == 1 and said.startswith("fieldmark: interrupted"), said


def test_ctrl_c_while_it_starts_is_one_line(folder: Path):
    """Before the modules are there."""
    code = (
        "import builtins, runpy, sys\n"
        "real = builtins.__import__\n"
        "def importing(name, *others):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *others)\n"
        "builtins.__import__ = importing\n"
        "from fieldmark.cli.__main__ import main\n"
        "main()\n"
    )
    path = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert (done.returncode, done.stderr) == (2, "fieldmark: interrupted\n")
