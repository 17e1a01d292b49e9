"""The main job, whole and several times: accuracy, time and peak memory over split seeds, as mean +- sd.

    python benchmarks/seeds.py ../shared/data/trashnet --budget 5m --seeds 5

Each seed draws its own split and its own random numbers; each run is a process of its own, from start to finish.
Further options go to `fieldmark train`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from suite import run_process


def run(photos: str, seed: int, options: list[str], folder: Path) -> dict[str, float]:
    """One training in a process of its own. -> test and validation accuracy, seconds, peak memory in GiB."""
    command = [sys.executable, "-m", "fieldmark.cli", "train", photos, "--out", str(folder / f"seed{seed}")]
    ended = run_process([*command, "--seed", str(seed), "--json", *options], folder / "log.txt")
    metrics = json.loads(ended.stdout)
    accuracy = {name: metrics[name]["accuracy"] for name in ("test", "validation")}
    return {**accuracy, "seconds": ended.seconds, "GiB": ended.GiB}


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
