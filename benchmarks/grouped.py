"""What a random split flatters: accuracy with it and with the split that keeps look-alikes on one side, side by side.

    python benchmarks/grouped.py ../shared/data/trashnet --seeds 3

Both splits are stratified and as large; each training is a process of its own. Further options go to `fieldmark train`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fieldmark.data.readers import read_catalog
from fieldmark.data.splits import assign_splits, write_split_file


def train(photos: Path, out: Path, words: list[str]) -> float:
    """-> test accuracy."""
    command = [sys.executable, "-m", "fieldmark.cli", "train", str(photos), "--out", str(out), "--json", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)["test"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options, further = parser.parse_known_args()
    catalog = read_catalog(options.photos)
    found: dict[str, list[float]] = {"random": [], "grouped": []}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            sides = Path(folder) / "split.csv"
            write_split_file(sides, catalog, assign_splits(catalog, range(len(catalog.photos)), seed=seed))
            words = ["--seed", str(seed), *further]
            alone = ["--split-file", str(sides), "--allow-leaks"]
            found["random"].append(train(options.photos, Path(folder) / "random", [*words, *alone]))
            found["grouped"].append(train(options.photos, Path(folder) / "grouped", words))
        print(
            f"seed {seed}: " + ", ".join(f"{name} {100 * values[-1]:.1f} %" for name, values in found.items()),
            flush=True,
        )
    for name, values in found.items():
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:8} {100 * statistics.fmean(values):.1f} +- {100 * sd:.1f} %")


if __name__ == "__main__":
    main()
