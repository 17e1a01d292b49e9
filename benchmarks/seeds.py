"""The main job, whole and several times: accuracy, time and peak memory over split seeds, as mean +- sd.

    python benchmarks/seeds.py ../shared/data/trashnet --budget 5m --seeds 5

Each seed draws its own split and its own random numbers; each run is a process of its own, from start to finish.
Further options go to `fieldmark train`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(photos: str, seed: int, options: list[str], folder: Path) -> dict[str, float]:
    """One training in a process of its own. -> test and validation accuracy, seconds, peak memory in GiB."""
    out = folder / f"seed{seed}"
    command = [sys.executable, "-m", "fieldmark.cli", "train", photos, "--out", str(out), "--seed", str(seed), "--json"]
    began = time.monotonic()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    metrics = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}"
    return {
        "test": metrics["test"]["accuracy"],
        "validation": metrics["validation"]["accuracy"],
        "seconds": time.monotonic() - began,
        "GiB": usage.ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--seeds", type=int, default=5)
    arguments, options = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            rows.append(run(arguments.photos, seed, options, Path(folder)))
            print(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:10} {statistics.fmean(values):.4f} +- {spread:.4f}  ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()
