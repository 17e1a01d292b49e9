"""Fieldmark's linear probe and fine-tuning beside a plain loop, fastai and timm on many data sets, as mean +- sd.

    python benchmarks/suite.py --fastai-python FASTAI/bin/python          # all data sets, all contenders, three seeds
    python benchmarks/suite.py --only probe 1m --sets trashnet --seeds 5
    python benchmarks/suite.py --sets "MY_IMAGES --group-by 'patient(\\d+)'" --fieldmark "--budget 2m --quality good"
    python benchmarks/suite.py --only probe --checkout ../before --name before --rows pairs.jsonl
    python benchmarks/suite.py --table                                    # into docs/benchmarks.md; trains nothing

All contenders start from the same EfficientNet-Lite0 weights and get the same split, which Fieldmark draws once for
each data set and seed, without the images that it cannot read. Each training is a process of its own, is timed from its
start to its end (imports, decoding, training, testing), and finds nothing cached. Contenders follow one another in an
order that rotates with the seed, so that a slow hour hits all alike; how each opponent trains stands in
benchmarks/opponents/.

A row is written when a training has ended. A row that is there already, of the same code, settings and split, is not
run again, so a suite that was killed is continued by the same command. With --checkout each Fieldmark contender is run
by that code as well, right before or after our own, and the table says the median ratio of their times.
"""

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import chain, product
from pathlib import Path

from suite_data import (
    ARCHIVES,
    SETS,
    ImageSet,
    draw_split,
    find_sets,
    hash_split,
    place_in_tree,
    read_csv,
    read_groups,
    read_split,
    split_words,
    tree_name,
)
from suite_table import FIELDMARK, OTHERS, Row, binomial_error, make_page_block, row_key, write_page

ROOT = Path(__file__).resolve().parents[1]
OPPONENTS = ROOT / "benchmarks" / "opponents"
ENVIRONMENT = dict(os.environ)  # as it is before `import fieldmark` says how threads wait: opponents run as installed
PACKAGES = ("fieldmark", "torch", "torchvision", "timm", "fastai", "numpy", "pillow", "onnxruntime")
SCRIPTS = {"plain": "plain.py", "fastai": "by_fastai.py", "timm": "by_timm.py"}


# ---- what is compared


@dataclass(frozen=True)
class Contender:
    """Some code with its options; the same name and options mean the same line of the table.

    Attributes:
        checkout: where the code of a Fieldmark lies; None for the others.
    """

    name: str
    options: str
    python: str
    checkout: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.options}".strip()


@dataclass(frozen=True)
class Task:
    """A data set and its split of one seed.

    Attributes:
        tree: train/, val/ and test/ of class folders with links, beside split.csv and groups.json.
    """

    images: ImageSet
    seed: int
    tree: Path


# ---- which code it is


@cache
def hash_code(folder: Path, pattern: str = "**/*.py") -> str:
    """Hash of the Python below a folder without comments, docstrings and layout, and of its recipes."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob(pattern), *folder.glob("recipes/*.yaml")]):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(strip_docstrings(file.read_text(encoding="utf-8")) if file.suffix == ".py" else file.read_bytes())
    return digest.hexdigest()[:12]


def strip_docstrings(source: str) -> bytes:
    """The syntax tree of a module, without what only people read."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # strings that stand alone: docstrings, those of attributes too
            body[:] = [part for part in body if not is_string(part)]
    return ast.dump(tree).encode()


def is_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@cache
def describe_commit(checkout: Path) -> str:
    """The commit, with a + where its Python differs; empty outside git."""
    commit, changes = (
        subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True).stdout.strip()
        for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--", "fieldmark", "benchmarks"])
    )
    return commit + "+" * bool(changes)


@cache
def read_versions(python: str) -> dict[str, str]:
    """Of the packages that an interpreter has."""
    code = (
        "import json, sys; from importlib.metadata import distributions as all;"
        "print(json.dumps({d.name.lower(): d.version for d in all() if d.name.lower() in sys.argv[1:]}))"
    )
    return json.loads(subprocess.run([python, "-I", "-c", code, *PACKAGES], check=True, capture_output=True).stdout)


def code_of(contender: Contender) -> str:
    if contender.checkout:
        return hash_code(contender.checkout / "fieldmark")
    return hash_code(OPPONENTS, SCRIPTS[contender.name]) if contender.name in SCRIPTS else ""


def describe_machine() -> str:
    """Processor, whether it computes in bfloat16 (training then takes half of the time), and cores."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.replace("\t", "").splitlines() if ":" in line)
    name = fields.get("model name", platform.machine()).strip()
    model = (
        f"{name} family {fields.get('cpu family', '').strip()} model {fields.get('model', '').strip()}"
        if text
        else name
    )
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(fields.get("flags", "").split())
    return f"{model}, {'bfloat16' if has_bf16 else 'no bfloat16'}, {os.cpu_count()} cores"


# ---- one training


def save_weights(work: Path) -> Path:
    """EfficientNet-Lite0's weights of the pip package, under timm's names."""
    file = work / "lite0.safetensors"
    if not file.exists():
        from safetensors.torch import save_file

        from fieldmark.core.io import atomic_path
        from fieldmark.models.published import PUBLISHED_WEIGHTS

        published = PUBLISHED_WEIGHTS["efficientnet_lite0"]
        tensors = published.convert(published.fetch())
        with atomic_path(file) as half:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, half)
    return file


def make_command(contender: Contender, task: Task, out: Path, options: argparse.Namespace) -> list[str]:
    if contender.checkout:
        command = [contender.python, "-m", "fieldmark.cli", "train", str(task.images.folder), "--json"]
        command += ["--out", str(out), "--seed", str(task.seed), *split_words(task.images.options)]
        command += ["--split-file", str(task.tree / "split.csv"), "--allow-leaks"]
    else:
        command = [contender.python, str(OPPONENTS / SCRIPTS[contender.name]), str(task.tree), "--out", str(out)]
        command += ["--weights", str(options.work / "lite0.safetensors"), "--seed", str(task.seed)]
        if contender.name == "timm" and options.timm_train:
            command += ["--script", str(options.timm_train)]
    return [*command, *split_words(contender.options)]


def make_environment(contender: Contender, cache_folder: Path) -> dict[str, str]:
    if contender.checkout:
        return ENVIRONMENT | {"PYTHONPATH": str(contender.checkout), "FIELDMARK_CACHE": str(cache_folder)}
    if contender.name == "plain":  # it sets its process up as Fieldmark does
        return {"OMP_WAIT_POLICY": "passive"} | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    return ENVIRONMENT


@dataclass(frozen=True)
class Ended:
    """What a process cost; `GiB` is the peak memory of its largest process."""

    stdout: bytes
    seconds: float
    GiB: float


def run_process(
    command: Sequence[str], log: Path, folder: Path | None = None, environment: dict[str, str] | None = None
) -> Ended:
    """Run a command, in a folder if one is given.

    Raises:
        RuntimeError: it failed; its messages are in `log`.
    """
    with log.open("wb") as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=environment, start_new_session=True
        )
        assert process.stdout is not None
        try:
            with process.stdout as pipe:
                stdout = pipe.read()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that it started
            process.wait()
            raise
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command[:5])} ... ended with {process.returncode}: see {log}")
    return Ended(stdout, seconds, usage.ru_maxrss / 2**20)


def train(contender: Contender, task: Task, options: argparse.Namespace) -> Row:
    """One training from start to end -> its row."""
    load = os.getloadavg()[0]
    name = f"{task.images.name}-{task.seed}-{contender}.log".replace("/", "_").replace(" ", "_")
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.work) as folder:
        out = Path(folder) / "out"
        environment = make_environment(contender, Path(folder) / "cache")
        ended = run_process(make_command(contender, task, out, options), options.work / name, Path(folder), environment)
        figures = read_run(out, task) if contender.checkout else read_predictions(out, task)
    count = Counter(label for _, label, split in read_split(task.tree / "split.csv") if split == "train")
    shares = [n / count.total() for n in count.values()]
    return {
        **identify(contender, task),
        "commit": describe_commit(contender.checkout or ROOT),
        "date": date.today().isoformat(),
        "seconds": ended.seconds,
        "GiB": ended.GiB,
        "load": load,
        "classes": len(count),
        "chance_loss": -sum(share * math.log(share) for share in shares),
        "machine": describe_machine(),
        "versions": read_versions(contender.python),
        **figures,
    }


def identify(contender: Contender, task: Task) -> Row:
    """What makes a row another one."""
    return {
        "set": task.images.name,
        "set_options": task.images.options,
        "contender": contender.name,
        "options": contender.options,
        "seed": task.seed,
        "code": code_of(contender),
        "split": hash_split(task.tree / "split.csv"),
    }


def read_run(run: Path, task: Task) -> Row:
    """The figures of a Fieldmark run, and its epochs."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    if read_split(run / "split.csv") != read_split(task.tree / "split.csv"):
        raise RuntimeError(f"{run} has another split than {task.tree}")
    predicted = {
        place_in_tree(row["path"], row["label"], "test"): row["predicted"] for row in read_csv(run / "predictions.csv")
    }
    test, validation = measure(predicted, "test", task), metrics["validation"]
    if not math.isclose(test["accuracy"], metrics["test"]["accuracy"]):
        raise RuntimeError(f"{run}: predictions.csv and metrics.json differ in the test accuracy")
    history = [
        {name: float(f"{float(value):.5g}") for name, value in row.items() if value}
        for row in read_csv(run / "history.csv")
    ]
    kept = ("n", "accuracy", "balanced_accuracy", "loss", "sensitivity")
    chosen = metrics["test"].get("at_threshold") or {}  # of two classes
    at_threshold = {f"{name}_at_threshold": chosen[name] for name in ("sensitivity", "specificity") if name in chosen}
    return {
        "test": test | {"loss": metrics["test"]["loss"]} | at_threshold,
        "validation": {name: validation[name] for name in kept if validation.get(name) is not None}
        | {"se": binomial_error(validation["accuracy"], validation["n"])},
        "probe_validation_accuracy": next((r["val_accuracy"] for r in reversed(history) if r["phase"] == 1), None),
        "best_epoch": metrics["best_epoch"],
        "seconds_by_part": {name: round(value, 2) for name, value in metrics["seconds"].items()},
        "epochs": history,
    }


def read_predictions(file: Path, task: Task) -> Row:
    """The figures of an opponent, from the CSV that it wrote."""
    rows, figures = read_csv(file), {}
    labels = {place.partition("/")[2].partition("/")[2]: place for place in read_groups(task.tree)}
    for split, name in (("test", "test"), ("val", "validation")):
        of_split = [row for row in rows if row["split"] == split]
        predicted = {labels[row["file"]]: row["predicted"] for row in of_split}
        losses = [-math.log(max(float(row["true_probability"]), 1e-12)) for row in of_split]
        figures[name] = measure(predicted, split, task) | {"loss": statistics.fmean(losses)}
    return figures


def measure(predicted: dict[str, str], split: str, task: Task) -> Row:
    """Metrics of the class predicted for each image of a split; places in the tree -> classes.

    `se` is the standard error of the accuracy, in which near-duplicates and images of a group count together.
    """
    group_of_place = {place: g for place, g in read_groups(task.tree).items() if place.startswith(f"{split}/")}
    if predicted.keys() != group_of_place.keys():
        raise RuntimeError(f"{len(predicted)} images of the {len(group_of_place)} of {split} were predicted")
    right, by_group = defaultdict[str, list[bool]](list), defaultdict[int, list[bool]](list)
    for place, label in predicted.items():
        true = place.split("/")[1]
        right[true].append(label == true)
        by_group[group_of_place[place]].append(label == true)
    n = len(predicted)
    accuracy = sum(map(sum, right.values())) / n
    recalls = {label: sum(values) / len(values) for label, values in right.items()}
    squares = sum((sum(values) - accuracy * len(values)) ** 2 for values in by_group.values())
    of_groups = len(by_group) / max(1, len(by_group) - 1)
    figures = {
        "n": n,
        "groups": len(by_group),
        "accuracy": accuracy,
        "se": math.sqrt(of_groups * squares) / n,
        "balanced_accuracy": statistics.fmean(recalls.values()),
    }
    if len(recalls) == 2:
        rarer = min(sorted(right), key=lambda label: len(right[label]))
        figures["sensitivity"] = recalls[task.images.positive or rarer]
    return figures


# ---- rows


def read_rows(file: Path) -> list[Row]:
    """The rows of a file; a line that a full disk cut off is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{file}: a line that is no row is left out: {line[:60]}", flush=True)
    return rows


def append_row(file: Path, row: Row) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    is_cut = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as handle:
        handle.write("\n" * (is_cut and file.stat().st_size > 0) + json.dumps(row) + "\n")


# ---- all trainings


def find_contenders(options: argparse.Namespace) -> Iterator[list[Contender]]:
    """Each Fieldmark contender, by our own code and that of --checkout; then each opponent."""
    sources = [("fieldmark", sys.executable, ROOT)]
    if options.checkout:
        sources.append((options.name, options.python or sys.executable, options.checkout.resolve()))
    chosen = options.only or ([] if options.fieldmark else [*FIELDMARK, *OTHERS])
    lines = [FIELDMARK[name] for name in chosen if name in FIELDMARK] + (options.fieldmark or [])
    for line in lines:
        yield [Contender(name, line, python, checkout) for name, python, checkout in sources]
    for name in (name for name in chosen if name in OTHERS):
        if name == "fastai" and not options.fastai_python:
            print("fastai is left out: it needs --fastai-python", flush=True)
            continue
        line = getattr(options, name, None)
        python = options.fastai_python if name == "fastai" else sys.executable
        yield [Contender(name, OTHERS[name] if line is None else line, python)]


def check_checkout(contender: Contender) -> None:
    """Fail if an interpreter does not import the code of the checkout."""
    command = [contender.python, "-c", "import fieldmark; print(fieldmark.__file__)"]
    with tempfile.TemporaryDirectory() as folder:
        environment = make_environment(contender, Path(folder))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if Path(done.stdout.strip()) != (contender.checkout or ROOT) / "fieldmark" / "__init__.py":
        sys.exit(f"{contender.python} does not import fieldmark from {contender.checkout}: {done.stderr.strip()}")


def run_all(options: argparse.Namespace) -> None:
    """All trainings that have no row yet, seed after seed."""
    contenders = list(find_contenders(options))
    for contender in chain.from_iterable(contenders):
        if contender.checkout:
            check_checkout(contender)
    from fieldmark.core.errors import FieldmarkError

    images = list(find_sets(options.sets or list(SETS), options.data.resolve(), options.work, options.images_per_class))
    save_weights(options.work)
    done = {row_key(row) for row in read_rows(options.rows)}
    for seed, one in product(range(options.seeds), images):
        try:
            task = Task(one, seed, draw_split(one, seed, options.work / "trees" / tree_name(one) / str(seed)))
        except FieldmarkError as error:
            print(f"{one.name} is left out: {error}", flush=True)
            continue
        for contender in in_turn(contenders, seed):
            if not contender.checkout and seed >= options.opponent_seeds:
                continue
            if row_key(identify(contender, task)) in done:
                continue
            try:
                row = train(contender, task, options)
            except (RuntimeError, OSError) as error:  # the others' hours are not lost for it
                print(error, flush=True)
                continue
            append_row(options.rows, row)
            accuracy, seconds = 100 * row["test"]["accuracy"], row["seconds"]
            print(f"{one.name} {seed} {contender}: {accuracy:.1f} % in {seconds:.0f} s", flush=True)


def in_turn(contenders: list[list[Contender]], seed: int) -> list[Contender]:
    """Another one first for each seed; those that are run by two checkouts stay side by side."""
    turn = seed % max(1, len(contenders))
    rotated = contenders[turn:] + contenders[:turn]
    return [contender for several in rotated for contender in (several[::-1] if seed % 2 else several)]


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", help=f"names ({', '.join([*SETS, *ARCHIVES])}) or folders with options")
    parser.add_argument("--only", nargs="+", choices=[*FIELDMARK, *OTHERS], help="these contenders alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--opponent-seeds", type=int, default=1, help="seeds of the others, whose hours are long")
    parser.add_argument("--fieldmark", action="append", metavar="OPTIONS", help="a contender: options of its training")
    parser.add_argument("--plain", metavar="OPTIONS", help="of opponents/plain.py")
    parser.add_argument("--timm", metavar="OPTIONS", help="of train.py beside LINE in opponents/by_timm.py")
    parser.add_argument("--fastai", metavar="OPTIONS", help="of opponents/by_fastai.py")
    parser.add_argument("--fastai-python", help="the interpreter that has fastai and timm; fastai is left out without")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, to run the script itself")
    parser.add_argument("--checkout", type=Path, help="other code of Fieldmark, to run beside ours")
    parser.add_argument("--name", default="before", help="what its rows are called")
    parser.add_argument("--python", help="its interpreter, where it needs another environment")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where the data sets lie")
    parser.add_argument("--images-per-class", type=int, help="a few of each folder, to try it out")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "suite", help="splits, weights and logs")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "benchmarks.jsonl")
    parser.add_argument("--table", action="store_true", help="train nothing; write the table of the rows into --page")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    return parser.parse_args(words)


def main() -> None:
    options = parse_arguments()
    if not options.table:
        options.work = options.work.resolve()
        options.work.mkdir(parents=True, exist_ok=True)
        sys.path.insert(0, str(ROOT))  # the splits are drawn by the code that the rows name
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; the same command goes on"))
        run_all(options)
        print(make_page_block(read_rows(options.rows)))
    else:
        write_page(options.page, read_rows(options.rows))


if __name__ == "__main__":
    main()
