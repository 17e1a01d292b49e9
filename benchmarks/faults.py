"""Inputs from bug reports: what Fieldmark prints for each, compared with the right answer, as a table.

    python benchmarks/faults.py --inputs ../shared/faults/make.sh    # prints the table; exit code 1 if one is wrong
    python benchmarks/faults.py --inputs ../shared/faults/make.sh --page docs/lab/faults.md

The script makes the inputs in a folder of its own and says what Fieldmark did with them when they were collected: the
column "before". Each case runs commands and tests their exit code and what they print.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- The table: python benchmarks/faults.py -->", "<!-- The table ends. -->")


@dataclass(frozen=True)
class Case:
    """A command on one input.

    Attributes:
        name: of the input, as in the table.
        block: the first word of the description that the script prints of it.
        command: words after `fieldmark`, in the folder of the inputs.
        code: the right exit code.
        says: a pattern that is in the output; the line with it is shown.
        never: a pattern that is not in it.
        stdin: a file.
        prepare: commands that run before, in the same folder.
    """

    name: str
    block: str
    command: str
    code: int
    says: str
    never: str = "Traceback|internal error"
    stdin: str | None = None
    prepare: tuple[str, ...] = ()


QUICK = "--quick"
TRAINED = "train base --out R --epochs 0 --image-size 64"
CASES = (
    Case("camera", "camera", "train camera --out C --epochs 1 --image-size 96", 0, r"Test .* on 12 images$"),
    Case("splits-a", "splits-a", "check splits-a --quick --json", 0, r'"glass": 16', r"test_set\": \d"),
    Case(
        "splits-b",
        "splits-a",
        "check splits-b --quick",
        2,
        "have no labels, since these folders are named",
    ),
    Case("splits-c", "splits-a", "check splits-c --quick", 0, "8 photos in unlabeled left out: they have no label"),
    Case("splits-d", "splits-a", "check splits-d --quick", 1, "id is read as path, breed is read as label"),
    Case("splits-e", "splits-a", "check splits-e --quick --json", 0, '"玻璃": 12', "训练集"),
    Case("splits-f", "splits-a", "check splits-f --quick --json", 0, r'"glass": 12', "test_set"),
    Case("splits-g", "splits-a", "check splits-g --quick", 0, 'class "glass" of the test images is taken as "Glass"'),
    Case("copy", "copy", "evaluate R copy", 1, r"\d+ of 90 images were used to train R", prepare=(TRAINED,)),
    Case("copy.zip", "copy", "evaluate R copy.zip", 1, r"\d+ of 90 images were used to train R"),
    Case(
        "base, weights of another split",
        "base",
        "train base --out B --epochs 0 --image-size 64 --seed 1 --weights R/bundle/model.safetensors",
        0,
        r"initial weights were trained on \d+ images of these, which stay among the training images",
    ),
    Case("gbk.csv", "gbk.csv", "check gbk.csv --quick", 0, r"read as GBK \(玻璃, 金属, 纸\)", "\ufffd"),
    Case("utf16.csv", "gbk.csv", "check utf16.csv --quick --json", 0, '"玻璃": 8'),
    Case("semicolons.csv", "gbk.csv", "check semicolons.csv --quick --json", 0, '"玻璃": 8'),
    Case("tabs.tsv", "gbk.csv", "check tabs.tsv --quick --json", 0, '"玻璃": 8'),
    Case("blank.csv", "gbk.csv", "check blank.csv --quick --json", 0, '"玻璃": 8'),
    Case("is_valid.csv", "gbk.csv", "check is_valid.csv --quick", 0, "is_valid is read as split"),
    Case("gbk.zip", "gbk.csv", "check gbk.zip --quick", 0, r"read as GBK: 猫, 狗"),
    Case("decisions.csv", "decisions.csv", "check base --quick --apply decisions.csv", 0, "1 photo excluded"),
    Case("list.txt", "list.txt", "predict R - --csv o.csv", 1, "no-such-host.invalid/a.jpg: .*", stdin="list.txt"),
    Case("list.txt, resumed", "list.txt", "predict R - --csv o.csv --resume", 1, ".*", stdin="list.txt"),
    Case("noname", "noname", "check noname --quick --json", 1, '"a": 3'),
    Case("five.tif", "five.tif", "predict R five.tif", 1, "channels", "truncated"),
    Case("float.tif", "five.tif", "predict R float.tif", 1, "float", "truncated"),
    Case("108mp.jpg", "108mp.jpg", "predict R 108mp.jpg", 0, "108mp.jpg: (glass|metal|paper)"),
    Case("same", "same", "check same --quick", 1, "sets? of identical files", ".{600}"),
)


@dataclass(frozen=True)
class Outcome:
    """What a case came to: the line that it was recognised by, or what was printed instead."""

    case: Case
    is_right: bool
    line: str


def run(words: str, folder: Path, stdin: str | None = None) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "1000", "NO_COLOR": "1"}
    with (folder / stdin).open("rb") if stdin else open(os.devnull, "rb") as source:
        done = subprocess.run(
            [sys.executable, "-m", "fieldmark.cli", *words.split()],
            cwd=folder,
            env=environment,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def try_case(case: Case, folder: Path) -> Outcome:
    for words in case.prepare:
        code, text = run(words, folder)
        if code:
            return Outcome(case, False, f"{words}: {text.strip().splitlines()[-1]}")
    code, text = run(case.command, folder, case.stdin)
    lines = text.strip().splitlines() or [""]
    line = next((line for line in lines if re.search(case.says, line)), None)
    is_right = code == case.code and line is not None and not re.search(case.never, text)
    return Outcome(case, is_right, (line or lines[-1]).strip())


def read_descriptions(text: str) -> dict[str, str]:
    """What the script says of each block: first word -> the line after `now:`."""
    blocks = re.findall(r"^(\S+?)[,: ].*?\n\s+try:.*\n\s+now:\s+(.*)", text, re.MULTILINE)
    return {name.rstrip(":"): now for name, now in blocks}


def table_lines(outcomes: list[Outcome], before: dict[str, str]) -> Iterator[str]:
    yield "| input | command | before | now | exit code |"
    yield "|---|---|---|---|---|"
    for outcome in outcomes:
        case = outcome.case
        line = re.sub(r"/\S*/", "", outcome.line)[:160].replace("|", "\\|")
        mark = "" if outcome.is_right else " WRONG"
        yield f"| {case.name} | `{case.command}` | {before.get(case.block, '')} | {line}{mark} | {case.code} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, required=True, help="the script that makes the inputs")
    parser.add_argument("--page", type=Path, help="write the table between the marks of this page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        folder = Path(root) / "inputs"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        made = subprocess.run(
            ["bash", options.inputs, folder],
            env=os.environ | {"PATH": path},
            check=True,
            capture_output=True,
            text=True,
        )
        outcomes = [try_case(case, folder) for case in CASES]
    lines = list(table_lines(outcomes, read_descriptions(made.stdout)))
    print("\n".join(lines))
    if options.page:
        before, _, rest = options.page.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        block = "\n".join([MARKS[0], "", *lines, "", f"{date.today().isoformat()}.", "", MARKS[1]])
        options.page.write_text(before + block + after, encoding="utf-8")
    sys.exit(any(not outcome.is_right for outcome in outcomes))


if __name__ == "__main__":
    main()
