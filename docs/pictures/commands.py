"""Commands of `fieldmark`, run in a folder of the work directory: trainings are kept, pages are written anew."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from urllib.request import urlopen

from datasets import FOLDERS

from fieldmark.cli.main import app
from fieldmark.core.progress import log_to_stderr

FIELDMARK = [sys.executable, "-m", "fieldmark.cli"]
COLUMNS = 100
"""Width of the terminal."""


def make_images(folder: Path, data: Path | None) -> None:
    """The images of a folder, unless they are there."""
    done = folder / ".images"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        FOLDERS[folder.name](folder, data)
        done.touch()


def run_once(folder: Path, command: str) -> str:
    """What the command printed: now, or when it ran first."""
    transcript = folder / (re.sub(r"[^\w.=-]+", "_", command) + ".txt")
    if not transcript.exists():
        print(f"{folder.name}: {command}", flush=True)
        words = [*FIELDMARK, *shlex.split(command)[1:]]
        shutil.rmtree(output_of(folder, command), ignore_errors=True)
        environment = os.environ | {"FIELDMARK_CACHE": str(folder / "cache"), "COLUMNS": str(COLUMNS)}
        done = subprocess.run(
            words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode == 2:
            raise SystemExit(f"{command}\n{done.stdout}")
        transcript.write_text(done.stdout, encoding="utf-8")
    return transcript.read_text(encoding="utf-8")


def run_again(folder: Path, command: str) -> str:
    """What a command prints that writes pages; it runs in this process, which has loaded PyTorch already."""
    if "--out" in command:
        shutil.rmtree(output_of(folder, command), ignore_errors=True)
    printed = StringIO()
    streams = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
    with contextlib.chdir(folder), streams[0], streams[1], log_to_stderr():
        code = app(shlex.split(command)[1:], standalone_mode=False)
    if code == 2:
        raise SystemExit(f"{command}\n{printed.getvalue()}")
    return printed.getvalue()


@contextlib.contextmanager
def served(folder: Path, run: str) -> Iterator[str]:
    """The address of `fieldmark serve RUN` while the block runs."""
    words = [*FIELDMARK, "serve", run, "--port", "0"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().split()[1]
        try:
            with urlopen(f"{url}/health"):
                yield url
        finally:
            server.terminate()


def output_of(folder: Path, command: str) -> Path:
    """The folder that a command writes into; that of `fieldmark report run` is `run`."""
    words = shlex.split(command)
    return folder / (words[words.index("--out") + 1] if "--out" in words else words[2])
