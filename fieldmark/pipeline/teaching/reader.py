"""Reads the images of a session in a process of its own, at a low priority: the page never waits for it.

It waits for the first images, though, so that these are read at the priority of the server itself: at a low one
they would hardly ever be read on a machine that is busy otherwise.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fieldmark.audit.duplicates import cluster_duplicates
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.data.decoded import dhash, thumbnail
from fieldmark.data.image import UnreadableImageError, decode
from fieldmark.pipeline.teaching.images import TeachingImages
from fieldmark.pipeline.teaching.projection import Projection
from fieldmark.pipeline.teaching.store import READ, UNREADABLE, WAITING, FeatureStore

FIRST_IMAGES = 1000
"""Images that are read before the page opens; the principal directions are those of their features."""
BATCH_SIZE = 32
LOW_PRIORITY = 10


class _Read(NamedTuple):
    row: int
    pixels: np.ndarray
    hashes: tuple[int, int]
    thumbnail: np.ndarray


def reading_order(is_labelled: np.ndarray, seed: int) -> np.ndarray:
    """The order in which images are read, (n,): random, labelled and unlabelled ones in turn.

    Any part from the beginning is a random sample of both.
    """
    order = np.random.default_rng([seed, 5]).permutation(len(is_labelled))
    both = order[is_labelled[order]], order[~is_labelled[order]]
    ranks = np.concatenate([np.arange(len(part)) for part in both])
    return np.concatenate(both)[np.argsort(ranks, kind="stable")]


def read_images(
    images: TeachingImages,
    store: FeatureStore,
    order: Sequence[int] | np.ndarray,
    progress: Callable[[int, int], object] = lambda done, total: None,
    model: Path | None = None,
) -> None:
    """Fill the rows of the store that are waiting, in this order; afterwards search near-duplicates among all.

    Args:
        model: the bundle whose network makes the features; by default a pretrained one.
    """
    from fieldmark.pipeline.teaching.features import FeatureExtractor

    names = list(images.sources)
    rows = [int(row) for row in order if store.status[row] == WAITING]
    if not rows:
        if not store.is_grouped:  # the reader before was killed, or images have gone
            store.write_groups(find_groups(store))
        return
    extractor = FeatureExtractor(model)

    def read(row: int) -> _Read | int:
        try:
            content = images.read_bytes(names[row])
            small = decode(content, 256, squash=True)
            return _Read(row, extractor.read(content), dhash(small), thumbnail(small))
        except UnreadableImageError:
            return row

    writer, done = _Writer(store), len(store) - len(rows)
    batch = list[_Read]()
    for result in ordered_map(read, rows, runtime.available_cpus()):
        done += 1
        if isinstance(result, _Read):
            batch.append(result)
        else:
            store.status[result] = UNREADABLE
        if len(batch) == BATCH_SIZE:
            writer.add(batch, extractor([each.pixels for each in batch]))
            batch = []
        progress(done, len(store))
    if batch:
        writer.add(batch, extractor([each.pixels for each in batch]))
    writer.flush()
    store.write_groups(find_groups(store))


class _Writer:
    """Keeps the full features of the first images until there are enough to fit the projection."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.projection = store, store.projection
        self.pending: list[tuple[list[_Read], np.ndarray]] = []
        self.next_search = FIRST_IMAGES  # images at which near-duplicates are searched among those read so far

    def add(self, batch: list[_Read], features: np.ndarray) -> None:
        self.pending.append((batch, features))
        if self.projection is not None or sum(len(some) for some, _ in self.pending) >= FIRST_IMAGES:
            self.flush()

    def flush(self) -> None:
        self.projection = self.projection or self.store.projection  # another process may have been first
        if self.projection is None and self.pending:
            self.projection = Projection.fit(np.concatenate([features for _, features in self.pending]))
            self.projection.save(self.store.folder / "projection.npz")
        for batch, features in self.pending:
            assert self.projection is not None
            for each, row in zip(batch, self.projection(features), strict=True):
                self.store.write(each.row, row, each.hashes, each.thumbnail)
        self.pending = []
        if (n_read := int((self.store.status == READ).sum())) >= self.next_search:
            self.store.write_groups(find_groups(self.store))
            self.next_search = 2 * n_read


def find_groups(store: FeatureStore) -> np.ndarray:
    """Groups of near-duplicates among the images that have been read: the lowest row of each, int (n,); others -1."""
    groups, rows = np.full(len(store), -1), np.flatnonzero(store.status == READ)
    if len(rows):
        roots = cluster_duplicates(
            np.arange(len(rows)), np.asarray(store.hashes[rows]), np.asarray(store.thumbnails[rows])
        )
        groups[rows] = rows[roots]
    return groups


# ---- the process


class BackgroundReader:
    """A process that fills the store of a session.

    Args:
        folder: of the session, whose session.json says which images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        with (folder / "reader.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fieldmark.pipeline.teaching.reader", str(folder)],
                stdin=subprocess.PIPE,  # closes with this process, which ends the other one
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
            )

    def check(self) -> None:
        """Raise `FieldmarkError` if the process has failed."""
        if self.process.poll():
            lines = (self.folder / "reader.log").read_text(errors="replace").strip().splitlines()
            raise FieldmarkError(f"reading the images failed: {lines[-1] if lines else 'no message'}")

    def is_running(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process; what it has written stays."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def main(folder: Path) -> None:
    """Fill the store of the session in `folder`, until it is full or the parent ends."""
    from fieldmark.pipeline.teaching.sources import open_session_images

    def end_with_parent() -> None:
        os.read(0, 1)  # nothing is ever sent: it returns when the pipe closes
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    is_low = False

    def on_progress(done: int, total: int) -> None:
        nonlocal is_low
        if not is_low and done > FIRST_IMAGES + 2 * BATCH_SIZE:  # the first have been written by then
            is_low = True
            _lower_priority()

    with runtime.torch_settings():
        opened = open_session_images(folder)
        read_images(opened.images, opened.store, opened.order, on_progress, opened.model)


def _lower_priority() -> None:
    """Of all threads of this process; on Linux each has a priority of its own."""
    tasks = Path("/proc/self/task")
    for task in [int(each.name) for each in tasks.iterdir()] if tasks.is_dir() else [0]:
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, task, LOW_PRIORITY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
