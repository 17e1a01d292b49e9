"""Ray against the plain predictor: rows, photos a second, memory of the process that asks, and a worker that dies.

    python benchmarks/cluster.py RUN PHOTOS --photos 20000

PHOTOS are copied (hard links) until there are so many. One after the other, each by the command that people type:
plain; Ray; Ray with a predictor killed in the middle. What it takes until the first answer (Ray's start) stands by
itself: the rates are from the first to the last answer.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fieldmark.data.locate import find_images


def copies(photos: str, many: int, folder: Path) -> None:
    """So many files, in folders of a thousand."""
    files = [path for path, _ in find_images([photos])]
    for k, file in enumerate(islice(cycle(files), many)):
        place = folder / f"{k // 1000:03}" / f"{k:06}{Path(file).suffix}"
        place.parent.mkdir(exist_ok=True)
        try:
            os.link(file, place)
        except OSError:  # another file system
            place.write_bytes(Path(file).read_bytes())


def memory(pid: int) -> float:
    """MiB that a process holds now."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def predictors() -> list[int]:
    """The processes in which Ray judges."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes().startswith(b"ray::MapWorker(MapBatches(_Judge))"):
                found.append(int(file.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def timed(words: list[str], answers: Path, many: int, kill: bool) -> dict[str, Any]:
    """Run the command. -> when rows came, what was held."""
    began, first, held, killed = time.monotonic(), 0.0, list[float](), False
    process = subprocess.Popen([*words, "--csv", str(answers)], stderr=subprocess.PIPE, text=True)
    said = list[str]()
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    rows = first_rows = 0
    while process.poll() is None:
        time.sleep(0.5)
        rows = lines(answers)
        if rows > 1 and not first:
            first, first_rows = time.monotonic(), rows
        try:
            held.append(memory(process.pid))
        except OSError:
            break
        if kill and not killed and rows > many / 2 and (there := predictors()):
            os.kill(there[0], signal.SIGKILL)
            killed = True
    process.wait()
    reader.join()
    with answers.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        paths = [row["path"] for row in csv.DictReader(opened)]
    fifth = max(1, len(held) // 5)
    return {
        "exit": process.returncode,
        "rows": len(paths),
        "photos": len(set(paths)),
        "start_s": first - began,
        "rate": (len(paths) - first_rows) / (time.monotonic() - first),
        "held": (max(held[fifth : 2 * fifth]), max(held[-fifth:])),
        "killed": killed,
        "said": [line for line in said if line.strip()][:3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("photos")
    parser.add_argument("--photos", dest="many", type=int, default=20_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path(asked.run).parent) as folder:
        (root := Path(folder) / "photos").mkdir()
        copies(asked.photos, asked.many, root)
        plain = 0.0
        for name, engine, kill in (("plain", "plain", False), ("ray", "ray", False), ("ray, one killed", "ray", True)):
            words = [sys.executable, "-m", "fieldmark.cli", "predict", asked.run, str(root), "--engine", engine]
            found = timed(words, Path(folder) / f"{name}.csv", asked.many, kill)
            rate = found["rate"]
            plain = plain or rate
            early, late = found["held"]
            print(
                f"{name}: exit {found['exit']}, {found['rows']:,} rows of {found['photos']:,} photos, first after"
                f" {found['start_s']:.1f} s, {rate:.1f} photos/s ({rate / plain:.2f} of plain), asking process"
                f" {early:.0f} MiB early and {late:.0f} MiB late{', killed one' if found['killed'] else ''}",
                *found["said"],
                flush=True,
            )


if __name__ == "__main__":
    main()
