"""Fieldmark beside fastai, timm's train.py and a plain loop: test accuracy and seconds of each, as mean +- sd.

    python benchmarks/time_to_accuracy.py --work RUNS --fastai-python FASTAI/bin/python --timm-train train.py
    python benchmarks/time_to_accuracy.py --work RUNS --only fieldmark --fieldmark "--budget 90s" --data trashnet
    python benchmarks/time_to_accuracy.py --work RUNS --table                          # what has been measured so far

All start from the same EfficientNet-Lite0 weights and get Fieldmark's leak-free split of each seed, without the photos
that it puts in quarantine. Each training is a process of its own and is timed from its start to its end: imports,
decoding, training and testing. Contenders follow one another in an order that rotates with the seed, so that a slow
hour hits all alike. Rows go to RUNS/rows.jsonl, one by one; what is there already is not repeated. How each opponent
trains stands in benchmarks/opponents/, and where the file for --timm-train comes from.
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

OPPONENTS = Path(__file__).parent / "opponents"
PHOTOS = Path(__file__).parents[2] / "shared" / "data"
SETTINGS = {"fieldmark": ["--budget 2m", "--budget 5m"], "fastai": [""], "timm": [""], "plain": ["--seconds 600"]}
PACKAGES = ("fieldmark", "torch", "torchvision", "timm", "fastai", "numpy", "pillow")
SIDES = ("train", "val", "test")
ENVIRONMENT = dict(os.environ)  # as it is before `import fieldmark` says how threads wait: opponents run as installed
Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    name: str
    options: str

    def __str__(self) -> str:
        return f"{self.name} {self.options}".strip()


@dataclass(frozen=True)
class Task:
    """A set of photos and its split of one seed."""

    data: str
    photos: Path
    seed: int
    tree: Path  # train/, val/ and test/ of class folders, beside split.csv
    weights: Path
    cache: Path | None  # of packed photos; None: an empty one for each training


# ---- what all get


def weights(work: Path) -> Path:
    """EfficientNet-Lite0's weights of the pip package, under timm's names."""
    file = work / "lite0.safetensors"
    if not file.exists():
        from safetensors.torch import save_file

        from fieldmark.models.published import PUBLISHED_WEIGHTS

        row = PUBLISHED_WEIGHTS["efficientnet_lite0"]
        tensors = row.convert(row.fetch())
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def few(photos: Path, most: int, out: Path) -> Path:
    """A tree of links to at most so many photos of each folder."""
    if not out.exists():
        half = out.with_suffix(".half")
        for folder in filter(Path.is_dir, photos.rglob("*")):
            for file in sorted(filter(Path.is_file, folder.iterdir()))[:most]:
                link(file, half / file.relative_to(photos))
        half.rename(out)
    return out


def link(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(file.resolve())


def split(photos: Path, seed: int, tree: Path, store: Path) -> Path:
    """Fieldmark's split of the seed as a tree of links; `store` keeps the packed photos for the next seed."""
    if (tree / "split.csv").exists():
        return tree
    shutil.rmtree(tree, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = ["--out", out, "--seed", seed, "--frozen-epochs", 1, "--epochs", 0, "--json"]
        command = [sys.executable, "-m", "fieldmark.cli", "train", photos, *options]
        environment = ENVIRONMENT | {"FIELDMARK_CACHE": str(store)}
        subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.DEVNULL)
        for path, label, side in sides(out):
            link(photos / path, tree / side / label / path.replace("/", "_"))
        shutil.copyfile(out / "split.csv", tree / "split.csv")
    classes = [{folder.name for folder in (tree / side).iterdir()} for side in SIDES]
    assert classes[0] == classes[1] == classes[2], f"{tree}: a class has no photo on some side; take more photos"
    return tree


def sides(run: Path) -> set[tuple[str, str, str]]:
    """(path, label, side) of every photo."""
    with (run / "split.csv").open(encoding="utf-8", newline="") as file:
        return {(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)}


# ---- one training


def command(contender: Contender, task: Task, out: Path, options: argparse.Namespace) -> list[str]:
    common = [str(task.tree), "--weights", str(task.weights), "--seed", str(task.seed)]
    match contender.name:
        case "fieldmark":
            words = ["-m", "fieldmark.cli", "train", str(task.photos), "--out", str(out), "--seed", str(task.seed)]
            words = [sys.executable, *words, "--json"]
        case "fastai":
            words = [options.fastai_python, str(OPPONENTS / "by_fastai.py"), *common]
        case "timm":
            words = [sys.executable, str(OPPONENTS / "by_timm.py"), *common, "--script", options.timm_train]
        case _:
            words = [sys.executable, str(OPPONENTS / "plain.py"), *common]
    return [*words, *shlex.split(contender.options)]


def environment(contender: Contender, store: Path) -> dict[str, str]:
    match contender.name:
        case "fieldmark":
            return ENVIRONMENT | {"FIELDMARK_CACHE": str(store)}
        case "plain":
            return {"OMP_WAIT_POLICY": "passive"} | ENVIRONMENT
    return ENVIRONMENT


def train(contender: Contender, task: Task, options: argparse.Namespace) -> Row:
    """One training from start to end. -> its row; `GiB` is the peak memory of its largest process."""
    load = os.getloadavg()[0]
    log = options.work / f"{task.data}-{task.seed}-{contender}.log".replace("/", "_").replace(" ", "_")
    with tempfile.TemporaryDirectory(dir=options.work) as folder, log.open("wb") as errors:
        out = Path(folder) / "run"
        words, store = command(contender, task, out, options), task.cache or Path(folder) / "cache"
        began = time.monotonic()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, env=environment(contender, store))
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{contender} ended with {process.returncode}: see {log}")
        figures = json.loads(said)
        if contender.name == "fieldmark":
            assert sides(out) == sides(task.tree), f"{contender} drew another split than {task.tree} has"
            figures = {key: figures[key]["accuracy"] for key in ("test", "validation")} | {"n": figures["test"]["n"]}
    tested = sum(side == "test" for _, _, side in sides(task.tree))
    assert figures["n"] == tested, f"{contender} tested {figures['n']} photos of {tested}"
    row = {"data": task.data, "seed": task.seed, "seconds": seconds, "GiB": usage.ru_maxrss / 2**20}
    return asdict(contender) | row | figures | {"load": load, "versions": versions(words[0])}


@cache
def versions(python: str) -> dict[str, str]:
    """Of the packages that an interpreter has."""
    code = (
        "import json, sys; from importlib.metadata import distributions as all;"
        "print(json.dumps({d.name.lower(): d.version for d in all() if d.name.lower() in sys.argv[1:]}))"
    )
    return json.loads(subprocess.run([python, "-I", "-c", code, *PACKAGES], check=True, capture_output=True).stdout)


# ---- the table


def spread(values: list[float], digits: int, scale: float = 1.0) -> str:
    values = [scale * value for value in values]
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} +- {sd:.{digits}f}"


def table(rows: list[Row]) -> Iterator[str]:
    """Each contender's figures, then each opponent against each setting of Fieldmark on the seeds that both have."""
    for data in sorted({row["data"] for row in rows}):
        by: dict[Contender, dict[int, Row]] = {}
        for row in rows:
            if row["data"] == data:
                by.setdefault(Contender(row["name"], row["options"]), {})[row["seed"]] = row
        yield f"\n{data:40} test accuracy, %  seconds          GiB   each seed: accuracy in seconds"
        for contender, runs in by.items():
            accuracy, seconds, memory = ([run[key] for run in runs.values()] for key in ("test", "seconds", "GiB"))
            each = ", ".join(f"{100 * run['test']:.1f} in {run['seconds']:.0f}" for _, run in sorted(runs.items()))
            figures = f"{spread(accuracy, 1, 100):17} {spread(seconds, 0):16} {max(memory):4.1f}"
            yield f"{contender!s:40} {figures}   {each}"
        for other, ours in product(by, by):
            both = sorted(by[other].keys() & by[ours].keys())
            if both and ours.name.startswith("fieldmark") and not other.name.startswith("fieldmark"):
                ratio = [by[other][seed]["seconds"] / by[ours][seed]["seconds"] for seed in both]
                gain = [by[ours][seed]["test"] - by[other][seed]["test"] for seed in both]
                yield f"  {ours}: {spread(gain, 1, 100)} points over {other}, which takes {spread(ratio, 1)} x its time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "time_to_accuracy")
    parser.add_argument("--data", action="append", help="a folder of --photos; several by several --data")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="where the folders of photos lie")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=SETTINGS, action="append")
    parser.add_argument("--fieldmark", action="append", help="options of `fieldmark train`; several by several")
    parser.add_argument("--timm", action="append", help="options of train.py beside LINE in opponents/by_timm.py")
    parser.add_argument("--plain", action="append", help="options of opponents/plain.py")
    parser.add_argument("--fastai-python", help="the interpreter that has fastai and timm; fastai is left out without")
    parser.add_argument("--timm-train", help="timm's train.py; timm is left out without")
    parser.add_argument("--warm", action="store_true", help="Fieldmark finds the photos packed by an earlier run")
    parser.add_argument("--photos-per-class", type=int, help="a few of each class, to try it out")
    parser.add_argument("--table", action="store_true", help="train nothing; say what has been measured")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "rows.jsonl"
    rows: list[Row] = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not options.table:
        compete(options, rows, file)
    print("\n".join(table(rows)))


def compete(options: argparse.Namespace, rows: list[Row], file: Path) -> None:
    """All trainings that have no row yet, seed after seed."""
    contenders = []
    for name in options.only or SETTINGS:
        needed = {"fastai": "fastai_python", "timm": "timm_train"}.get(name)
        if needed and not getattr(options, needed):
            print(f"{name} is left out: it needs --{needed.replace('_', '-')}", flush=True)
        else:
            contenders += [Contender(name, words) for words in getattr(options, name, None) or SETTINGS[name]]
    done = {(row["name"], row["options"], row["data"], row["seed"]) for row in rows}
    published, store = weights(options.work), options.work / "cache"
    for seed, name in product(range(options.seeds), options.data or ["trashnet", "birds100"]):
        photos, data = options.photos.resolve() / name, name
        if options.photos_per_class:
            data = f"{name}-{options.photos_per_class}"
            photos = few(photos, options.photos_per_class, options.work / "few" / data)
        tree = split(photos, seed, options.work / "trees" / data / str(seed), store)
        task = Task(data, photos, seed, tree, published, store if options.warm else None)
        turn = seed % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            warm = options.warm and contender.name == "fieldmark"
            kept = Contender("fieldmark, warm", contender.options) if warm else contender
            if (kept.name, kept.options, data, seed) in done:
                continue
            try:
                row = train(contender, task, options) | asdict(kept)
            except RuntimeError as error:  # the others' hours are not lost for it
                print(error, flush=True)
                continue
            rows.append(row)
            with file.open("a", encoding="utf-8") as all_rows:
                all_rows.write(json.dumps(row) + "\n")
            print(f"{data} {seed} {kept}: {100 * row['test']:.1f} % in {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
