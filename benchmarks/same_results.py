"""Two checkouts of the project, the same commands in both: is every result the same?

    python benchmarks/same_results.py BEFORE AFTER --photos DIR [--photos DIR2 ...] --work DIR [--python PY] [--quick]

Every verb of the command line runs in both checkouts: trainings and checks on the whole folders, the other verbs with
the trained classifiers on small copies that are made below --work; with --quick everything runs on the small copies.
All that the verbs print and write is compared: JSON, CSV and settings value by value, arrays and weights bit for bit,
ONNX files by their answers to the same pixels, pictures by their bytes. Times and facts about the machine are left out.
Texts for people may be reworded: they are listed with both wordings. Exit code 1 when anything else differs.

Results stay below --work under commit, contents and commands, and are not computed again: without AFTER, those of
BEFORE are computed for later. A checkout against itself runs twice. The bits depend on the number of threads as well.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from same_files import rows, show

TOOL = """
zoo              zoo --json
zoo-text         zoo --like efficientnet
zoo-network      zoo efficientnet_lite0+after=-1:mask --json
zoo-added        zoo resnet50 --attention cbam --head bilinear(reduced=64) --classes 4 --json
bench            bench efficientnet_lite0 --image-size 64 --json
no-photos        check nowhere --json
no-network       zoo resnet51 --json
no-model         predict nowhere photo.jpg --json
no-number        train nowhere --out no-number/run --epochs many
no-pair          compare nowhere --out no-pair/runs --network resnet18
"""
PHOTOS = """
look             look {small} --out look/page --count 6 --augment strong --json
check            check {whole} --out check/page --json
check-quick      check {small} --quick --lang zh --out check-quick/page --json
train            train {whole} --out train/run --epochs 1 --seed 0 --json
train-again      train {whole} --out train/run --resume --json
train-refused    train {whole} --out train/run --json
options          train {small} --out options/run --epochs 3 --image-size 128 --start-size 64 --unfreeze gradual
                 --optimizer adamw --augment strong --mixup 0.4 --cutmix 1 --imbalance weights --ema 0.9 --find-lr
                 --after=-1:mask --head bilinear(reduced=16) --lang zh --seed 3 --json
scratch          train {small} --out scratch/run --backbone resnet18 --weights none --channels 1 --standardise
                 --image-size 32 --imbalance sampling --accumulate 2 --schedule steps --monitor loss --epochs 2 --json
folds            train {small} --out folds/run --folds 2 --epochs 0 --image-size 128 --json
pack             pack {small} --shards pack/shards --seed 1 --json
stream           train pack/shards --out stream/run --stream --epochs 1 --image-size 128 --steps-per-epoch 3 --json
evaluate         evaluate train/run --json
evaluate-folder  evaluate train/run {small} --json
evaluate-tta     evaluate train/run {sides} --tta --json
evaluate-text    evaluate options/run
predict          predict train/run {few} --top 3 --csv predict/predictions.csv --json
predict-plain    predict train/run {few} --engine plain
predict-stdin    predict train/run - --jsonl predict-stdin/predictions.jsonl
predict-parquet  predict options/run {few} --parquet predict-parquet/rows --json
predict-heatmap  predict train/run {few} --heatmap predict-heatmap/maps --json
explain          explain train/run {two} --method all --nearest 2 --out explain/page --json
explain-sheet    explain train/run --out explain-sheet/page --json
export           export train/run --out export/files --openvino --json
export-int8      export train/run {sides} --out export-int8/files --int8 --json
export-int8-own  export train/run --out export-int8-own/files --int8 --json
report           report scratch/run --lang zh --json
compare          compare {small} --out compare/runs --network efficientnet_lite0 --seeds 1 --epochs 1 --image-size 128
                 --network efficientnet_lite0+after=-1:mask --json
compare-runs     compare compare/runs/efficientnet_lite0-0 compare/runs/efficientnet_lite0_after_-1_mask-0
                 --out compare-runs/page --json
search           search {small} --trials 2 --out search/trials --epochs 1 --image-size 128 --json
serve            serve train/run --port 0 --json
"""
SIDES = ("train", "val", "test")


# ---- photos


def photos_in(folder: Path, classes: int | None = None) -> Iterator[list[Path]]:
    """The sorted photos of each class of one split."""
    for one in sorted(path for path in folder.iterdir() if path.is_dir())[:classes]:
        yield sorted(path for path in one.iterdir() if path.is_file())


def small_copy(whole: Path, to: Path) -> None:
    """The first photos of some classes, about 240, with one duplicate, one conflict and one broken photo."""
    splits = [side for side in SIDES if (whole / side).is_dir()] or ["."]
    for side in splits:
        chosen = list(photos_in(whole / side, 8))
        for photos in chosen:
            copy(photos[: 240 // (len(chosen) * len(splits))], to / side / photos[0].parent.name)
    first, second = (photos for _, photos in zip(range(2), photos_in(to / splits[0]), strict=False))
    shutil.copyfile(first[0], first[0].with_name("duplicate.jpg"))
    shutil.copyfile(first[1], second[0].with_name("conflict.jpg"))
    second[0].with_name("broken.jpg").write_bytes(second[0].read_bytes()[:1000])


def sides_copy(whole: Path, to: Path) -> None:
    """Photos of the same classes in train/ and val/, enough of them to judge a network in 8 bits."""
    chosen = list(photos_in(whole / "train" if (whole / "train").is_dir() else whole, 8))
    for photos in chosen:
        copy(photos[:8], to / "train" / photos[0].parent.name)
        copy(photos[8 : 8 + 240 // len(chosen)], to / "val" / photos[0].parent.name)


def few_copy(whole: Path, to: Path) -> None:
    """The last photos of some classes, at most 32, in one folder; one photo of 16 bits and a broken one."""
    to.mkdir(parents=True)
    side = next((side for side in reversed(SIDES) if (whole / side).is_dir()), ".")
    for photo in (path for photos in photos_in(whole / side, 8) for path in photos[-4:]):
        shutil.copyfile(photo, to / f"{photo.parent.name}-{photo.name}")
    ramp = np.add.outer(np.arange(300), np.arange(400)).astype(">u2") * 90
    (to / "~grey.pgm").write_bytes(b"P5\n400 300\n65535\n" + ramp.tobytes())
    (to / "~broken.jpg").write_bytes(b"\xff\xd8 no photo")


def copy(photos: list[Path], to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        shutil.copyfile(photo, to / photo.name)


def prepared(whole: Path, work: Path, quick: bool) -> dict[str, str]:
    """The folders that the commands name; the copies are made once."""
    folders = {"whole": whole}
    for name, make in {"small": small_copy, "sides": sides_copy, "few": few_copy}.items():
        folders[name] = work / "photos" / f"{whole.name}-{name}"
        if not folders[name].exists():
            half = folders[name].with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            make(whole, half)
            half.rename(folders[name])
    named = {name: str(folder) for name, folder in folders.items()}
    two = sorted(folders["few"].iterdir())[:2]
    return named | ({"whole": named["small"]} if quick else {}) | {"two": "\n".join(map(str, two))}


# ---- running


@dataclass(frozen=True)
class Half:
    """One checkout, and how its program is run."""

    checkout: Path
    python: str
    work: Path

    @cached_property
    def contents(self) -> str:
        """Digest of all files of the package."""
        told, package = hashlib.sha256(), self.checkout / "fieldmark"
        for file in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            told.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes() + b"\0")
        return told.hexdigest()

    def folder(self, group: str, commands: dict[str, list[str]]) -> Path:
        """Where the results of these commands are."""
        asked = ["git", "-C", str(self.checkout), "rev-parse", "--short=10", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "no-commit"
        parts = [self.contents, self.python, len(os.sched_getaffinity(0)), commands]
        return self.work / f"{commit}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}" / group

    def environment(self, here: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FIELDMARK_")}
        own = {"XDG_CACHE_HOME": str(here / "cache"), "FIELDMARK_CACHE": str(here / "cache" / "fieldmark")}
        own |= {"HF_HUB_OFFLINE": "1", "LANG": "C.UTF-8", "COLUMNS": "120", "TERM": "dumb"}
        path = os.pathsep.join(filter(None, [str(self.checkout), kept.get("PYTHONPATH")]))
        return kept | own | {"PYTHONPATH": path}

    def run(self, commands: dict[str, list[str]], here: Path, photos: Path | None) -> None:
        """All commands, each with a folder of its own in `here`; nothing where they have run before."""
        if (here / "finished.json").exists():
            print(f"{here}: computed before", file=sys.stderr)
            return
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        env, spent = self.environment(here), dict[str, float]()
        asked = [self.python, "-c", "import fieldmark; print(fieldmark.__file__)"]
        found = subprocess.run(asked, cwd=here, env=env, capture_output=True, text=True).stdout.strip()
        if not Path(found).is_relative_to(self.checkout):
            raise SystemExit(f"{self.python} does not run the program of {self.checkout} but {found or 'none'}")
        for name, words in commands.items():
            began = time.monotonic()
            (here / name).mkdir()
            code = execute([self.python, "-m", "fieldmark.cli", *words], here, env, here / name, photos)
            spent[name] = round(time.monotonic() - began, 1)
            print(f"{here}: {name} ended with {code} after {spent[name]} s", file=sys.stderr, flush=True)
        shutil.rmtree(here / "cache", ignore_errors=True)
        (here / "finished.json").write_text(json.dumps({"checkout": str(self.checkout), "seconds": spent}, indent=1))


def execute(command: list[str], here: Path, env: dict[str, str], folder: Path, photos: Path | None) -> int:
    """Run one command; its output and exit code go into the folder. -> the exit code"""
    out, listed = folder / ("stdout.json" if "--json" in command else "stdout.txt"), b""
    if photos:
        listed = "".join(f"{file}\n" for file in sorted(photos.iterdir())).encode()
    with out.open("wb") as stdout, (folder / "stderr.txt").open("wb") as stderr:
        if "serve" in command and photos:
            code = serve(command, here, env, folder, photos, stderr)
        else:
            code = subprocess.run(command, cwd=here, env=env, input=listed, stdout=stdout, stderr=stderr).returncode
    (folder / "exit.json").write_text(str(code))
    return code


def serve(command: list[str], here: Path, env: dict[str, str], folder: Path, few: Path, stderr: Any) -> int:
    """Start the server, ask it everything, and end it. -> its exit code"""
    one, two, three, *_, broken, grey = (file.read_bytes() for file in sorted(few.iterdir()))
    sent: list[list[bytes] | None] = [[one], [two], [three], [grey], [broken], [one, broken], [], None]
    asked = [("POST", "/predict", photos) for photos in sent] + [("POST", "/predict?evidence=true", [one])]
    pages = (
        "/",
        "/base.css",
        "/page.css",
        "/page.js",
        "/card",
        "/health",
        "/openapi.json",
        "/nothing",
        "/predict",
        "/metrics",
    )
    asked += [("GET", path, None) for path in pages]
    with subprocess.Popen(command, cwd=here, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        assert process.stdout
        told, found = "", list[dict[str, Any]]()
        while not told.endswith("}\n") and (line := process.stdout.readline()):
            told += line
        try:
            host = json.loads(told)["url"].removeprefix("http://") if told else ""
            found = [{"request": f"{verb} {path}", **ask(host, verb, path, body)} for verb, path, body in asked if host]
        finally:
            process.send_signal(signal.SIGTERM)
    (folder / "responses.json").write_text(json.dumps(found))
    return process.returncode


def ask(host: str, verb: str, path: str, photos: list[bytes] | None) -> dict[str, Any]:
    """One request with photos. -> status, headers and body of the response"""
    body, sent = b"", {}
    if photos is not None:
        head = b'--edge\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n\r\n'
        body = b"".join(head + photo + b"\r\n" for photo in photos) + b"--edge--\r\n"
        sent = {"Content-Type": "multipart/form-data; boundary=edge"}
    time.sleep(0.1)  # a request is counted once its response has gone out
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request(verb, path, body, sent)
    response = connection.getresponse()
    text, kind = response.read().decode(), response.headers.get_content_type()
    left_out = ("date", "content-length", "etag", "last-modified")
    headers = {name.lower(): value for name, value in response.headers.items() if name.lower() not in left_out}
    if path == "/metrics":
        counters = sorted(line for line in text.splitlines() if not re.search("^#|_created|_seconds", line))
        return {"status": response.status, "headers": headers, "counters": counters}
    told = {"body": json.loads(text)} if kind == "application/json" else {"text": text}
    return {"status": response.status, "headers": headers, **told}


# ---- from start to finish


def commands(plan: str, folders: dict[str, str]) -> dict[str, list[str]]:
    """Lines of a plan -> name of each command and its words."""
    lines = re.sub(r"\n +", " ", plan.strip()).splitlines()
    each = [[part for word in line.split() for part in word.format(**folders).split("\n")] for line in lines]
    return {name: words for name, *words in each}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?")
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="what runs both programs")
    parser.add_argument("--quick", action="store_true", help="small copies of the photos alone")
    asked = parser.parse_args()
    work, python = asked.work.resolve(), os.path.abspath(asked.python)  # a virtual environment's own name of it
    halves = [Half(checkout.resolve(), python, work) for checkout in (asked.before, asked.after) if checkout]
    plans: list[tuple[str, dict[str, list[str]], Path | None]] = [("tool", commands(TOOL, {}), None)]
    for whole in asked.photos:
        folders = prepared(whole.resolve(), work, asked.quick)
        plans.append((whole.resolve().name, commands(PHOTOS, folders), Path(folders["few"])))
    at = [[half.folder(name, words) for name, words, _ in plans] for half in halves]
    if len(at) == 2 and at[0] == at[1]:
        at[1] = [here.with_name(f"{here.name}-again") for here in at[0]]
    for half, places in zip(halves, at, strict=True):
        for (_, words, few), here in zip(plans, places, strict=True):
            half.run(words, here, few)
    if len(at) < 2:
        return 0
    checkouts = halves[0].checkout, halves[1].checkout
    table = [row for pair in zip(*at, strict=True) for row in rows(pair, checkouts)]
    show(table)
    return int(any(row.verdict == "DIFFERENT" for row in table))


if __name__ == "__main__":
    sys.exit(main())
