"""What the search for near-duplicates costs on large and on awkward sets, and which planted copies it finds.

    python benchmarks/near_duplicates.py
    python benchmarks/near_duplicates.py --scale 0.01 --trees

Each case runs in a process of its own, whose seconds and most memory (with the thumbnails, 784 bytes an image) a row
shows. The images are thumbnails with hashes, no files; those of different images are random fields with the spectrum of
photos (amplitude 1 / frequency), those that are copied of 64 pixels before they are shrunk.

- identical: the same image again and again, as equal files and as files of equal pixels.
- different: no two are copies, except those that are planted: 500 each re-encoded (noise of JPEG), brighter, mirrored
  and cropped by 5 %. `found` is the part of each kind that lies in a cluster with its original, `false` the number of
  images in clusters that are none.
- frames: a fixed camera. All differ by the noise of a sensor only, or also by a slow drift of the light and a moving
  object, so that near frames are copies and far ones are not.

`--scale` shrinks all sizes, `--trees` searches in trees whatever the size, to compare with all pairs;
`--cases` selects. Seconds are of the clock, and of all cores together.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from fieldmark.audit import duplicates
from fieldmark.audit.duplicates import cluster_copies, cluster_duplicates
from fieldmark.data.decoded import THUMBNAIL_SIDE

CASES = [
    ("identical files", 100_000),
    ("identical pixels", 100_000),
    ("different", 10_000),
    ("different", 100_000),
    ("different", 200_000),
    ("different", 1_000_000),
    ("frames with noise", 10_000),
    ("frames with noise", 100_000),
    ("frames with drift", 10_000),
    ("frames with drift", 1_000_000),
]
SIDE, PLANTED, MAX_PLANTED = 64, ("re-encoded", "brighter", "mirrored", "cropped"), 500


def fields(n: int, rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Random colour images with an amplitude of 1 / frequency, float32 (n, side, side, 3)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
    amplitude = 1 / np.maximum(frequency, 1)
    colours = np.array([[1, 1, 1], [0.4, 0, -0.4], [0.2, -0.4, 0.2]])  # mostly grey, as photos are
    noise = rng.standard_normal((3, n, side, side), dtype=np.float32)
    grey = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, (side, side)).astype(np.float32)
    images = np.einsum("knyx,kc->nyxc", grey, colours.astype(np.float32))
    return 128 + 45 * images / images.std(axis=(1, 2, 3), keepdims=True)


def shrink(images: np.ndarray) -> np.ndarray:
    """Thumbnails, uint8 (n, 16, 16, 3)."""
    n, side = len(images), images.shape[1] // THUMBNAIL_SIDE
    means = images.reshape(n, THUMBNAIL_SIDE, side, THUMBNAIL_SIDE, side, 3).mean((2, 4))
    return np.rint(means).clip(0, 255).astype(np.uint8)


def dhashes(thumbnails: np.ndarray) -> np.ndarray:
    """Difference hashes as `data.decoded.dhash` has them, but from the thumbnails, uint64 (n, 2)."""
    at = [np.clip((np.arange(k) + 0.5) * THUMBNAIL_SIDE / k - 0.5, 0, THUMBNAIL_SIDE - 1) for k in (8, 9)]
    resize = [np.maximum(0, 1 - np.abs(p[:, None] - np.arange(THUMBNAIL_SIDE))).astype(np.float32) for p in at]
    hashes = []
    for some in np.array_split(thumbnails, len(thumbnails) // 10_000 + 1):
        grey = np.einsum(
            "yh,nhw,xw->nyx", resize[0], some @ np.array([0.299, 0.587, 0.114], np.float32), resize[1], optimize=True
        )
        bits = [view[:, :, 1:] > view[:, :, :-1] for view in (grey, grey[:, :, ::-1])]
        hashes.append(np.stack([np.packbits(b.reshape(-1, 64), axis=1).view(">u8")[:, 0] for b in bits], axis=1))
    return np.concatenate(hashes).astype(np.uint64)


def copy(images: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind == "mirrored":
        return images[:, :, ::-1]
    if kind == "brighter":
        return images * 1.15
    if kind == "re-encoded":
        return images + rng.normal(0, 6, images.shape)
    at = SIDE * 0.05 * rng.random((2, len(images), 1)) + (np.arange(SIDE) + 0.5) * 0.95 - 0.5
    rows, columns = np.maximum(0, 1 - np.abs(at.clip(0, SIDE - 1)[..., None] - np.arange(SIDE))).astype(np.float32)
    return np.einsum("nyh,nhwc,nxw->nyxc", rows, images, columns, optimize=True)


def different(n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Thumbnails of n images, and for each kind of copy the pairs of rows (original, copy); the copies come last."""
    n_kind = min(MAX_PLANTED, n // 20)
    n_originals = n - len(PLANTED) * n_kind
    thumbnails = [shrink(fields(min(5000, n_originals - k), rng, THUMBNAIL_SIDE)) for k in range(0, n_originals, 5000)]
    pairs, copies = dict[str, np.ndarray](), list[np.ndarray]()
    for k, kind in enumerate(PLANTED):
        rows = k + np.arange(n_kind) * (n_originals // n_kind)
        images = fields(n_kind, rng)
        for i, image in zip(rows.tolist(), shrink(images), strict=True):
            thumbnails[i // 5000][i % 5000] = image
        copies.append(shrink(copy(images, kind, rng)))
        pairs[kind] = np.stack([rows, n_originals + k * n_kind + np.arange(n_kind)])
    return np.concatenate([*thumbnails, *copies]), pairs


def frames(n: int, rng: np.random.Generator, drift: bool) -> np.ndarray:
    """Thumbnails of one scene with the noise of a sensor; with drift the light changes, and an object crosses it."""
    scene = shrink(fields(1, rng)).astype(np.float32)
    thumbnails = np.empty((n, *scene.shape[1:]), np.uint8)
    for top in range(0, n, 10_000):
        some = np.repeat(scene, min(10_000, n - top), 0) + rng.normal(0, 0.7, (min(10_000, n - top), *scene.shape[1:]))
        if drift:
            t = np.arange(top, top + len(some)) / n
            light = np.linspace(-1, 1, THUMBNAIL_SIDE)[None, None, :, None] * np.sin(6 * t)[:, None, None, None]
            some += 20 * light
            x, y = (THUMBNAIL_SIDE * (0.5 + 0.5 * wave(40 * t)) for wave in (np.sin, np.cos))
            grid = np.arange(THUMBNAIL_SIDE)
            near = (np.abs(grid[None, :, None] - y[:, None, None]) < 2) & (
                np.abs(grid[None, None] - x[:, None, None]) < 2
            )
            some[near] = 20
        thumbnails[top : top + len(some)] = np.rint(some).clip(0, 255)
    return thumbnails


def measure(case: str, n: int) -> None:
    """Print the row of one case."""
    rng, pairs = np.random.default_rng(0), dict[str, np.ndarray]()
    if case.startswith("identical"):
        thumbnails = np.repeat(shrink(fields(1, rng)), n, 0)
    elif case == "different":
        thumbnails, pairs = different(n, rng)
    else:
        thumbnails = frames(n, rng, case.endswith("drift"))
    hashes = dhashes(thumbnails)
    first = np.zeros(n, int) if case == "identical files" else np.arange(len(thumbnails))
    start, cpu = time.monotonic(), time.process_time()
    root = cluster_duplicates(first, hashes, thumbnails)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu
    copies = cluster_copies(root, first, hashes, thumbnails)
    seconds_copies = time.monotonic() - start - seconds
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = f"{case:18} {len(root):9,}: {seconds:6.1f} s ({cpu_seconds:.1f}), copies {seconds_copies:.1f} s,"
    row += f" {memory:.0f} MiB, {len(np.unique(root)):,} clusters, {len(np.unique(copies)):,} of copies"
    if pairs:
        row += ", found " + ", ".join(f"{kind} {(root[a] == root[b]).mean():.1%}" for kind, (a, b) in pairs.items())
        expected = np.arange(len(root))
        for a, b in pairs.values():
            expected[b] = a
        is_wrong = (root != expected) & (root != np.arange(len(root)))
        row += f", false {is_wrong.sum()}"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--trees", action="store_true", help="search in trees whatever the size")
    parser.add_argument("--cases", nargs="+", default=sorted({case for case, _ in CASES}), help="by name")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a case in a process of its own, as JSON
    options = parser.parse_args()
    if options.trees:
        duplicates.EXHAUSTIVE_MAX = 0
    if options.one:
        measure(*json.loads(options.one))
        return
    for case, n in CASES:
        if case in options.cases:
            words = [sys.executable, __file__, "--one", json.dumps([case, max(100, round(n * options.scale))])]
            subprocess.run(words + ["--trees"] * options.trees, check=True)


if __name__ == "__main__":
    main()
