"""A session of `fieldmark teach` with a simulated person, who answers as the labels of elpv-dataset say."""

import contextlib
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

TOKEN = "picture"
COMMAND = "fieldmark teach cells --out taught"


def true_labels() -> dict[str, str]:
    """File name -> class of each solar cell."""
    package = find_spec("elpv_dataset")
    assert package and package.origin
    with (Path(package.origin).parent / "data" / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter=" ", skipinitialspace=True) if row]
    return {Path(row[0]).name: "defective" if float(row[1]) > 0.5 else "functional" for row in rows}


@contextlib.contextmanager
def taught(folder: Path, answers: int) -> Iterator[str]:
    """The address of the page after so many answers; the features are kept for the next time."""
    session = folder / "taught"
    (session / "answers.jsonl").unlink(missing_ok=True)
    words = [sys.executable, "-m", "fieldmark.cli", *shlex.split(COMMAND)[1:], "--port", "0", "--token", TOKEN]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().split()[1]
        try:
            address = url.partition("/#")[0]
            _wait_for_images(address)
            _answer(address, answers)
            yield url
        finally:
            server.terminate()


def _wait_for_images(address: str) -> None:
    while (reading := _call(address, "state")["reading"])["done"] < reading["total"]:
        time.sleep(1)


def _answer(address: str, count: int) -> None:
    truth, done = true_labels(), 0
    while done < count:
        questions = _call(address, "next?n=1&author=a")["questions"]
        if not questions:
            return
        body = [{"id": each["id"], "label": truth[Path(each["path"]).name]} for each in questions]
        metrics = _call(address, "answers", {"author": "a", "answers": body, "next": 0})["metrics"]
        done += 1
        if done % 100 == 0:
            print(f"{done} answers, {metrics['labelled']} labelled, accuracy {metrics['accuracy']}", flush=True)


def _call(address: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{address}/{path}", data, headers)) as response:
        return json.loads(response.read())


def copy_cells(folder: Path) -> None:
    """The cells in one folder, without their classes."""
    package = find_spec("elpv_dataset")
    assert package and package.origin
    folder.mkdir(parents=True)
    for name in true_labels():
        source = Path(package.origin).parent / "data" / "images" / name
        shutil.copyfile(source, folder / name)


if __name__ == "__main__":  # a session from the command line: FOLDER ANSWERS
    work = Path(sys.argv[1])
    if not (work / "cells").exists():
        copy_cells(work / "cells")
    os.chdir(work)
    with taught(work, int(sys.argv[2])) as page:
        print(page)
        sys.stdin.read()
