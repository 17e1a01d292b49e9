"""What an audit costs as there are more photos: 1,000, 10,000 and 100,000 distinct ones of about 256 pixels.

    python benchmarks/audit.py ../shared/data/trashnet --photos 1000 10000 100000

The photos are those of benchmarks/cost_curve.py. A row shows milliseconds a photo of `check --quick` from start to end,
the most memory of its process, and the seconds of the search for near-duplicates alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cost_curve import make

SEARCH = """
import json, sys, time
from fieldmark.audit import duplicates
from fieldmark.cli import main
clusters, took = duplicates.cluster_duplicates, []
def timed(*args):
    began = time.monotonic()
    found = clusters(*args)
    took.append(time.monotonic() - began)
    return found
duplicates.cluster_duplicates = timed
file = sys.argv.pop(1)
try:
    main.main()
finally:
    open(file, "w").write(json.dumps(took))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--photos", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--folder", type=Path, help="where the photos are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for photos in make(options.source, sorted(options.photos), Path(folder)):
            number, took = int(photos.name.removeprefix("photos")), Path(folder) / "took.json"
            words = [sys.executable, "-c", SEARCH, str(took), "check", str(photos), "--quick", "--json"]
            began = time.monotonic()
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
            assert os.waitstatus_to_exitcode(status) in (0, 1), f"check ended with {status}"
            print(
                f"{number:8,} photos: {seconds:6.1f} s, {1000 * seconds / number:5.2f} ms a photo,"
                f" {usage.ru_maxrss / 1024:6.0f} MiB, near-duplicates {took.read_text()} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
