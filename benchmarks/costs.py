"""What a photo costs, in time of one core and in bytes, where it lies in which form: the constants of docs/scale.md.

    python benchmarks/costs.py PHOTOS --network efficientnet_lite0

One core, some hundred photos, medians of three rounds: reading and decoding as the audit does, the frozen layers, a
training step of phase 2 (frozen prefix and trained part; its batch divided), an answer of the exported file with its
decoding, listing shards. Of look-alikes: all pairs of so many hashes, which grows with the square.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})  # before numpy and torch count the cores

import numpy as np  # noqa: E402
import torch  # noqa: E402
from predict import exported  # noqa: E402

from fieldmark import devices  # noqa: E402
from fieldmark.blueprint import named, network_of, preprocessing  # noqa: E402
from fieldmark.finetune import Trainer  # noqa: E402
from fieldmark.pack import pack  # noqa: E402
from fieldmark.photos import alike  # noqa: E402
from fieldmark.photos.audit import audit  # noqa: E402
from fieldmark.photos.inputs import read  # noqa: E402
from fieldmark.plan import costs  # noqa: E402
from fieldmark.prepare import prepare  # noqa: E402
from fieldmark.progress import Reporter  # noqa: E402
from fieldmark.recipe import Recipe  # noqa: E402


def milliseconds(work: Callable[[], object], photos: int, rounds: int = 3) -> str:
    """A photo's, as median and spread of the rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began) / photos)
    return f"{statistics.median(times):.3f} ms ({min(times):.3f} to {max(times):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--network", default="efficientnet_lite0")
    parser.add_argument("--hashes", type=int, default=20_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    quiet = Reporter(quiet=True)
    os.environ["FIELDMARK_CACHE_GB"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        catalog, recipe = read(asked.photos), named(Recipe(backbone=asked.network), print)
        n = len(catalog.photos)
        contents = [catalog.contents(photo) for photo in catalog.photos]
        print(f"{asked.photos}: {n:,} photos, {asked.network}, one core")
        print(f"a file: {statistics.fmean(map(len, contents)):,.0f} bytes")

        packed = pack(asked.photos, home / "shards", quiet)
        print(
            f"in shards: {packed['bytes'] / n:,.0f} bytes; listing them:",
            milliseconds(lambda: read(home / "shards"), n),
        )
        print("packing:", milliseconds(lambda: pack(asked.photos, home / f"s{time.monotonic_ns()}", quiet), n))

        network = network_of(recipe, len(catalog.classes))
        looks = preprocessing(network, recipe)
        (home / "run" / "resume").mkdir(parents=True)
        print("audit with decoding:", milliseconds(lambda: audit(catalog, shorter=looks["size"], workers=1), n))
        table = prepare(catalog, looks, recipe, home / "run", quiet)
        size = statistics.fmean(table.data.pack[k].nbytes for k in range(len(table.data.pack)))
        print(f"decoded at {looks['size']} px: {size:,.0f} bytes")

        trainer = Trainer(network, table.data, recipe, home / "run" / "resume", quiet, devices.fabric(recipe))
        train, val = trainer.routine.frozen.features(quiet, lambda _: False)
        print(f"features: {train[0].nbytes:,} bytes; the frozen layers, all of them:", end=" ")

        def again() -> None:
            for file in (home / "run" / "resume").glob("*.npy"):
                file.unlink()
            trainer.routine.frozen.features(quiet, lambda _: False)

        print(milliseconds(again, len(train) + len(val)))
        trainer.routine.enter(2)
        steps = [costs(trainer, recipe)[0] / recipe.batch for _ in range(3)]
        print(f"training, phase 2: {1000 * statistics.median(steps):.1f} ms ({recipe.batch} photos a step)")

        classifier = exported(asked.network, home)
        some = contents[:: max(1, n // 300)]
        classifier.predict(some[:5])
        print("an answer:", milliseconds(lambda: [classifier.look(one) for one in some], len(some)))

        rng = np.random.default_rng(0)
        hashes = rng.integers(0, 2**63, (asked.hashes, 2)).astype(np.uint64)
        thumbnails = rng.integers(0, 256, (asked.hashes, alike.SIDE, alike.SIDE, 3), np.uint8)
        began = time.perf_counter()
        alike.clusters(np.arange(asked.hashes), hashes, thumbnails)
        took = time.perf_counter() - began
        print(f"look-alikes among {asked.hashes:,}: {took:.2f} s, {1e9 * took / (asked.hashes**2 / 2):.2f} ns a pair")


if __name__ == "__main__":
    main()
