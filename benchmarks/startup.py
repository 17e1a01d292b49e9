"""Seconds from the start of a process to its end, of commands that do nothing: the least of several, in turn.

    python benchmarks/startup.py [--rounds 5]

`--help` imports neither numpy, pydantic nor torch (tests/cli/test_main.py holds that), and is there in less than 0.4 s.
"""

import argparse
import subprocess
import sys
import time

PROGRAMS = {
    "python": ["-c", ""],
    "fieldmark --help": ["-m", "fieldmark.cli", "--help"],
    "fieldmark train --help": ["-m", "fieldmark.cli", "train", "--help"],
    "import fieldmark": ["-c", "import fieldmark"],
    "import fieldmark.inference.classifier": ["-c", "import fieldmark.inference.classifier"],
    "import fieldmark.pipeline.train": ["-c", "import fieldmark.pipeline.train"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds = dict[str, list[float]]()
    for _ in range(rounds):
        for name, words in PROGRAMS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            seconds.setdefault(name, []).append(time.perf_counter() - began)
    for name, measured in seconds.items():
        print(f"{min(measured):6.2f} s  {name}")


if __name__ == "__main__":
    main()
