"""What a photo costs, in time of one core and in bytes, where it lies in which form; and what very many of them need.

    taskset -c 0 python benchmarks/costs.py PHOTOS --network efficientnet_lite0

The constants and the table of docs/lab/scale.md. One core, all photos of the folder, medians of three rounds with their
spread: packing and listing shards; reading and decoding as the audit does; the frozen layers; a training step of
phase 2, divided by its photos; an answer of the exported file, decoding included. Many photos are taken to cost as much
each, but for the search for look-alikes, which grows with the square of their number (benchmarks/audit.py).
"""

import argparse
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from predict import exported

from fieldmark.audit.audit import audit_catalog
from fieldmark.core.progress import Reporter
from fieldmark.data.pack import write_shards
from fieldmark.data.readers import read_catalog
from fieldmark.pipeline.prepare import prepare_data
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import distributed
from fieldmark.training.budget import measure_costs
from fieldmark.training.model_factory import build_network, make_preprocessing, resolve_recipe
from fieldmark.training.trainer import Trainer

CORES, DAY = 32, 24.0
"""Of a machine, and hours in which a job is to be done."""


def milliseconds(what: str, work: Callable[[], object], photos: int, rounds: int = 3) -> float:
    """A photo's, the median of the rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began) / photos)
    print(f"{what}: {statistics.median(times):.3f} ms a photo ({min(times):.3f} to {max(times):.3f})", flush=True)
    return statistics.median(times)


def constants(photos: str, name: str, home: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds and bytes of a photo."""
    quiet = Reporter(quiet=True)
    catalog, recipe = read_catalog(photos), resolve_recipe(Recipe(backbone=name), print)
    n, contents = len(catalog.photos), [catalog.read_bytes(photo) for photo in catalog.photos]
    print(f"{photos}: {n:,} photos; {name}; one core of {os.cpu_count()}")
    size, took = {"file": statistics.fmean(map(len, contents))}, dict[str, float]()

    took["packing"] = milliseconds("packing", lambda: write_shards(photos, home / f"s{time.monotonic_ns()}", quiet), n)
    size["in shards"] = write_shards(photos, home / "shards", quiet).n_bytes / n
    took["listing"] = milliseconds("listing shards", lambda: read_catalog(home / "shards"), n)
    tracemalloc.start()
    listed = read_catalog(home / "shards")
    size["its row in memory"] = tracemalloc.get_traced_memory()[0] / len(listed.photos)
    tracemalloc.stop()

    network = build_network(recipe, len(catalog.classes))
    looks = make_preprocessing(network, recipe)
    (home / "run" / "resume").mkdir(parents=True)
    took["audit"] = milliseconds("audit", lambda: audit_catalog(catalog, shorter=looks["size"], workers=1), n)
    table = prepare_data(catalog, looks, recipe, home / "run", quiet)
    pack_ = table.data.images
    size[f"decoded, {looks['size']} px"] = statistics.fmean(pack_[k].nbytes for k in range(len(pack_)))

    trainer = Trainer(network, table.data, recipe, home / "run" / "resume", quiet, distributed.make_fabric(recipe))

    def features() -> tuple[np.ndarray, np.ndarray]:
        for file in (home / "run" / "resume").glob("*.npy"):
            file.unlink()
        return trainer.phase_builder.frozen_features.compute_features(quiet)

    train, val = features()
    size["features"] = train[0].nbytes
    took["features"] = milliseconds("frozen layers", features, len(train) + len(val))
    trainer.phase_builder.enter_phase(2)
    steps = sorted(1000 * measure_costs(trainer, recipe).step_s / recipe.batch for _ in range(3))
    took["training"] = steps[1]
    print(f"training, phase 2: {steps[1]:.1f} ms a photo ({steps[0]:.1f} to {steps[2]:.1f}), {recipe.batch} a step")

    classifier, some = exported(name, home), contents[:: max(1, n // 300)]
    classifier.predict(some[:5])
    took["answer"] = milliseconds("an answer", lambda: [classifier.infer_source(one) for one in some], len(some))
    return took, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--network", default="efficientnet_lite0")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["FIELDMARK_CACHE_GB"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        took, size = constants(asked.photos, asked.network, Path(folder))
    for what, n in size.items():
        print(f"{what}: {n:,.0f} bytes a photo")
    print(f"\n| | {' | '.join(f'{10**e:,} photos' for e in (6, 8, 9))} |")
    many = [10**6, 10**8, 10**9]
    for what, n in size.items():
        print(f"| {what} | {' | '.join(f'{n * k / 1e9:,.0f} GB' for k in many)} |")
    for what, ms in took.items():
        core_hours = [ms * k / 3.6e6 for k in many]
        told = [
            f"{h:,.{2 if h < 10 else 0}f} core hours, {max(1, -(-h // (CORES * DAY))):,.0f} machines"
            for h in core_hours
        ]
        print(f"| {what} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
