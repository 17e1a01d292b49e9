"""Which score rejects out-of-distribution images best? The scores tried for `known_score`, on the runs of ood.py.

    python benchmarks/ood.py --work RUNS --seeds 3 --epochs 0
    python benchmarks/ood_scores.py --work RUNS

For each score the threshold lets 90 % of the validation photos through; told are the means over the runs: its own test
photos answered, near and far strangers rejected, and near ones where just 90 % of its own test photos are answered.
What the networks say of the photos is kept in RUNS/run-*/told.npz.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ood import PHOTOS
from scipy.special import logsumexp, softmax
from sklearn.covariance import ledoit_wolf

from fieldmark.core import runtime
from fieldmark.data.dataset import Normalize
from fieldmark.data.image import preprocess
from fieldmark.data.splits import read_split_file
from fieldmark.inference import bundle
from fieldmark.inference.run_folder import load_catalog
from fieldmark.models.fuse_bn import fuse_batch_norms

SETS = ("val", "test", "near", "far")
Told = dict[str, np.ndarray]  # "near_logits" (n, classes), "near_features" (n, c) and so on
Score = Callable[[str], np.ndarray]


def told(run: Path, photos: Path) -> Told:
    """Logits and pooled features of all sets, and of the training photos in the run's gallery with their labels."""
    file = run / "told.npz"
    if not file.exists():
        catalog, side = load_catalog(run), {"val": list[str](), "test": list[str](), "train": list[str]()}
        for row in read_split_file(run / "split.csv"):
            side[row.split or "train"].append(row.path)
        with np.load(run / "gallery.npz", allow_pickle=False) as shown:
            found = {"shown": shown["features"].astype(np.float32), "labels": shown["labels"]}
        known = {Path(path).parent.name for path in side["train"]}
        near = [file for file in sorted((photos / "birds100" / "test").glob("*/*")) if file.parent.name not in known]
        sources = {name: map(catalog.files.read_bytes, side[name]) for name in SETS[:2]}
        sources |= {"near": map(str, near), "far": map(str, sorted((photos / "trashnet").glob("*/*.jpg")))}
        for name, contents in sources.items():
            parts = list(_seen(run, contents))
            found[f"{name}_features"], found[f"{name}_logits"] = map(np.concatenate, zip(*parts, strict=True))
        np.savez(file, **found)
    with np.load(file, allow_pickle=False) as kept:
        return dict(kept)


def _seen(run: Path, contents: Iterable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pooled features (b, c) and logits (b, classes), a batch after the other."""
    info, network = bundle.read_info(run), bundle.load_network(run).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as torch documents it
    normalise, quick = Normalize(*(tuple(info.preprocessing[name]) for name in ("mean", "std"))), None
    photos = [preprocess(content, info.preprocessing) for content in contents]
    for first in range(0, len(photos), 32):
        batch = torch.from_numpy(np.stack(photos[first : first + 32])).permute(0, 3, 1, 2).float()
        x = normalise(batch.contiguous(memory_format=torch.channels_last))
        if quick is None:
            quick = fuse_batch_norms(network.backbone, x[:2])
        with torch.inference_mode():
            last = quick(x)
            yield network.head.embed(last).numpy(), network.head(last).numpy()


def scores(t: Told) -> dict[str, Score]:
    """Name -> the score of a set's photos, higher where they are known."""
    unit = {name: _unit(t[f"{name}_features"]) for name in SETS}
    shown, own = _unit(t["shown"]), np.unique(t["labels"], return_inverse=True)[1]
    means = np.stack([shown[own == k].mean(0) for k in range(own.max() + 1)])
    centroids, residual = _unit(means), shown - means[own]
    whiten = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(residual, assume_centered=True)[0]))
    logits = {name: t[f"{name}_logits"] - t[f"{name}_logits"].mean(1, keepdims=True) for name in SETS}
    centred = t["shown"] - t["shown"].mean(0)
    null = np.linalg.eigh(np.cov(centred.T))[1][:, :-128]
    off = {name: np.linalg.norm((t[f"{name}_features"] - t["shown"].mean(0)) @ null, axis=1) for name in SETS}
    alpha = logits["val"].max(1).mean() / off["val"].mean()

    def top(name: str) -> np.ndarray:
        return logits[name].max(1)

    def cosine(name: str) -> np.ndarray:
        return (unit[name] @ centroids.T).max(1)

    def entropy(name: str) -> np.ndarray:
        p = softmax(logits[name], 1)
        return (p * np.log(p + 1e-12)).sum(1)

    def mahalanobis(name: str) -> np.ndarray:
        a, b = unit[name] @ whiten, means @ whiten
        return -((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)).min(1)

    def shape(name: str) -> np.ndarray:
        return top(name) / np.linalg.norm(logits[name], axis=1)

    def both(first: Score, share: float, name: str) -> np.ndarray:
        return _standard(first, name) + share * _standard(cosine, name)

    found: dict[str, Score] = {
        "top probability": lambda name: softmax(logits[name], 1).max(1),
        "entropy": entropy,
        "energy": lambda name: np.asarray(logsumexp(logits[name], 1)),
        "top logit": top,
        "top logit / 2-norm": shape,
        "cosine to a centroid": cosine,
        "fifth nearest photo": lambda name: np.sort(unit[name] @ shown.T, 1)[:, -5],
        "Mahalanobis": mahalanobis,
        "ViM, 128": lambda name: np.asarray(logsumexp(logits[name], 1)) - alpha * off[name],
    }
    for share in (0.1, 0.2, 0.3, 0.5):
        found[f"top logit + {share} cosine"] = partial(both, top, share)
        found[f"top logit / 2-norm + {share} cosine"] = partial(both, shape, share)
    found["both, + 0.2 cosine"] = lambda name: _standard(shape, name) + both(top, 0.2, name)
    return found


def _standard(score: Score, name: str) -> np.ndarray:
    val = score("val")
    return (score(name) - val.mean()) / val.std()


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {}
    for run in sorted(options.work.glob("run-*-*")):
        for name, score in scores(told(run, options.photos)).items():
            each = {side: score(side) for side in SETS}
            least = np.quantile(each["val"], 0.1)
            found = [(each["test"] >= least).mean(), (each["near"] < least).mean(), (each["far"] < least).mean()]
            rows.setdefault(name, []).append([*found, (each["near"] < np.quantile(each["test"], 0.1)).mean()])
    print(f"{'score':34}  answered   near    far   near, where 90 % are answered")
    for name, found in rows.items():
        answered, near, far, at_90 = 100 * np.mean(found, 0)
        print(f"{name:34} {answered:8.1f} {near:8.1f} {far:6.1f} {at_90:8.1f}   {len(found)} runs")


if __name__ == "__main__":
    main()
