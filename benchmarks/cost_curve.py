"""What a photo costs as there are more of them: 1,000, 10,000 and more distinct photos through a whole training.

    python benchmarks/cost_curve.py ../shared/data/trashnet --photos 1000 10000 100000 --out curve.json

Each photo is a cut-out of a real one, turned and shaded by its number, so that no two are copies. A row shows
milliseconds a photo by part (metrics.json's `seconds`), the most anonymous memory of the process, and the longest time
from the start of an epoch to its first step. With `--again` every size runs twice: the second run finds all photos in
the cache. Further options go to `fieldmark train`. A hundred thousand take about 30 GB in `--folder`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

QUICK = ["--epochs", "1", "--steps-per-epoch", "4"]
# The real command, which writes down how long each epoch took to come to its first step.
TIMED = """
import json, sys, time
from fieldmark.cli import main
from fieldmark.training import trainer
file, waits, began = sys.argv.pop(1), [], []
mode, step = trainer.set_train_mode, trainer.Trainer._train_step
def set_train_mode(*args, **kwargs):
    began.append(time.monotonic())
    return mode(*args, **kwargs)
def first_step(*args, **kwargs):
    if began:
        waits.append(time.monotonic() - began.pop())
    return step(*args, **kwargs)
trainer.set_train_mode, trainer.Trainer._train_step = set_train_mode, first_step
try:
    main.main()
finally:
    with open(file, "w") as written:
        json.dump(waits, written)
"""


def make(photos: Path, sizes: list[int], folder: Path) -> list[Path]:
    """A folder of so many photos for each size, the smaller ones from links into the largest."""
    sources = sorted(path for path in photos.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    random.Random(0).shuffle(sources)  # so that few photos are of all classes too
    folders = [folder / f"photos{size}" for size in sizes]
    for label in {source.parent.name for source in sources}:
        for made in folders:
            (made / label).mkdir(parents=True, exist_ok=True)

    def cut(first: int) -> None:
        """Every photo that comes from one source."""
        with Image.open(sources[first]) as opened:
            source = opened.convert("RGB")
        for number in range(first, max(sizes), len(sources)):
            name = Path(sources[first].parent.name, f"{number:07}.jpg")
            _variant(source, number).save(folders[-1] / name, quality=85)
            for size, made in zip(sizes[:-1], folders, strict=False):
                if number < size:
                    os.link(folders[-1] / name, made / name)

    with ThreadPoolExecutor() as pool:
        list(pool.map(cut, range(len(sources))))
    return folders


def _variant(source: Image.Image, number: int) -> Image.Image:
    """A cut-out of 30 to 70 % of each side, 320 x 240 pixels."""
    rng = np.random.default_rng(number)
    w, h = (int(side * rng.uniform(0.3, 0.7)) for side in source.size)
    x, y = (int(rng.integers(0, side - part)) for side, part in zip(source.size, (w, h), strict=True))
    image = source.resize((320, 240), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))


def run(photos: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """One training in a process of its own."""
    waits = out.with_suffix(".waits")
    command = [sys.executable, "-c", TIMED, str(waits), "train", str(photos), "--out", str(out), "--json", *options]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = [0]
        threading.Thread(target=_watch, args=(process.pid, peak), daemon=True).start()
        answer, errors = process.communicate()
    assert process.returncode == 0, errors
    return {
        "seconds": json.loads(answer)["seconds"],
        "wall": time.monotonic() - began,
        "anonymous_mb": peak[0] / 1024,
        "epoch_starts": json.loads(waits.read_text()),
    }


def _watch(process: int, peak: list[int]) -> None:
    """Keep the most kB of anonymous memory that the process has had, as long as it lives."""
    while True:
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            peak[0] = max(peak[0], next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
        except (OSError, StopIteration):
            return
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="real photos in class folders")
    parser.add_argument("--photos", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--again", action="store_true", help="run every size a second time, on the filled cache")
    parser.add_argument("--folder", type=Path, help="where there is room; without it, the usual temporary folder")
    parser.add_argument("--out", type=Path, help="everything measured, as JSON")
    arguments, options = parser.parse_known_args()
    sizes, rows = sorted(arguments.photos), []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folders = make(arguments.source, sizes, Path(temporary))
        for size, folder in zip(sizes, folders, strict=True):
            os.environ["FIELDMARK_CACHE"] = str(Path(temporary, f"cache{size}"))
            os.environ.setdefault("FIELDMARK_CACHE_GB", "1000")
            for again in range(1 + arguments.again):
                row = run(folder, Path(temporary, f"run{size}-{again}"), options or QUICK)
                rows.append({"photos": size, "again": bool(again), **row})
                if len(rows) == 1:
                    print(
                        "  photos  "
                        + "".join(f"{part:>10}" for part in row["seconds"])
                        + "     total  MB anon  epoch s"
                    )
                parts = "".join(f"{1000 * seconds / size:10.2f}" for seconds in row["seconds"].values())
                told = f"{1000 * row['wall'] / size:10.2f} {row['anonymous_mb']:8.0f} {max(row['epoch_starts']):8.2f}"
                print(f"{size:8,}{'* ' if again else '  '}{parts}{told}", flush=True)
    print("milliseconds a photo; * with all photos in the cache")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
