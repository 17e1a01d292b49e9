"""Loading and augmenting packed photos beside what a training step consumes: photos a second, and how many times over.

    python benchmarks/loader.py ../shared/data/trashnet

Photos are packed once into a folder of their own, the shorter side 256 pixels long. Then every way to vary them and a
step of phase 2 of EfficientNet-Lite0 (frozen prefix, trained part, loss, backward, update, in bfloat16 where the
processor has it) take their turns, several rounds; a figure is the median of the rounds, with the least and the most.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fieldmark.audit.audit import audit_catalog
from fieldmark.core import runtime
from fieldmark.data.cache.pack import MemmapImages, MemmapWriter
from fieldmark.data.dataset import AugmentedDataset, Normalize, iter_train_batches
from fieldmark.data.readers import read_catalog
from fieldmark.models import build
from fieldmark.models.fuse_bn import fuse_batch_norms

NAMES = ("none", "flip-crop", "standard", "strong")
SIZES = (192, 224)
BATCH, STEPS = 32, 16  # a round
CLASSES = 6


def packed(photos: str, many: int, folder: Path) -> MemmapImages:
    """Up to so many of the photos, the shorter side 256 pixels long."""
    catalog = read_catalog(Path(photos))
    some = catalog.photos[:: max(1, len(catalog.photos) // many)][:many]
    os.environ["FIELDMARK_CACHE_GB"] = "0"  # nothing of this stays
    with MemmapWriter(folder) as packer:
        audit_catalog(replace(catalog, photos=some), shorter=256, on_decoded=lambda _, look: packer.add(look))
        return packer.finish()


def loading(pack: MemmapImages, name: str, size: int) -> Callable[[int], float]:
    """-> number of a round -> photos a second."""
    which = np.arange(len(pack))
    photos = AugmentedDataset(pack, which, which % CLASSES, size, name, seed=0)

    def a_round(number: int) -> float:
        began = time.perf_counter()
        done = sum(len(batch) for batch, _ in iter_train_batches(photos, BATCH, number * STEPS, (number + 1) * STEPS))
        return done / (time.perf_counter() - began)

    return a_round


def training(pack: MemmapImages, size: int) -> Callable[[int], float]:
    """-> number of a round -> photos a second of the steps alone."""
    network = build("efficientnet_lite0", classes=CLASSES, weights="imagenet")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    look, (prefix, rest) = network.preprocessing, network.backbone.split_after(str(network.freeze_boundary))
    normalise = Normalize(look.mean, look.std)
    some = normalise(torch.from_numpy(np.array(pack[0])).permute(2, 0, 1)[None])
    frozen = nn.Sequential(normalise, fuse_batch_norms(prefix.requires_grad_(False).eval(), some))
    trained = nn.Sequential(rest, network.head).train()
    for norm in trained.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    which = np.arange(len(pack))
    batches = list(
        iter_train_batches(AugmentedDataset(pack, which, which % CLASSES, size, "none", seed=0), BATCH, 0, 4)
    )

    def a_round(number: int) -> float:
        began = time.perf_counter()
        for photos, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=runtime.has_bf16()):
                with torch.no_grad():
                    maps = frozen(photos)
                logits = trained(maps)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
            optimizer.step()
        return len(batches) * BATCH / (time.perf_counter() - began)

    return a_round


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="PHOTOS", help="class folders")
    parser.add_argument("--photos", type=int, default=1000, help="how many are packed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pack = packed(options.folder, options.photos, Path(folder))
        print(f"{len(pack)} photos, {torch.get_num_threads()} threads, batch {BATCH}", flush=True)
        for size in SIZES:
            sides = {name: loading(pack, name, size) for name in NAMES} | {"step": training(pack, size)}
            found: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(1 + options.rounds):
                for name, a_round in sides.items():
                    rate = a_round(number)
                    if number:  # the first warms up
                        found[name].append(rate)
            step = statistics.median(found["step"])
            for name, rates in found.items():
                rate = statistics.median(rates)
                spread = f"{min(rates):.0f} to {max(rates):.0f}"
                print(f"{size} px  {name:10} {rate:7.0f} photos/s ({spread}) {rate / step:6.1f} x", flush=True)


if __name__ == "__main__":
    main()
