"""photos -> features; features + labels -> which labels look wrong.

Each photo is judged by a linear classifier that has seen neither it nor what looks the same: "out of fold". A label
that this classifier hardly believes is worth a second look (Northcutt et al. 2021, "Confident learning: estimating
uncertainty in dataset labels", carried by cleanlab). What such a classifier finds hard is found too: the list is for
people.
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from fieldmark.audit.audit import Look
from fieldmark.core import runtime
from fieldmark.data.catalog import count, printable
from fieldmark.data.dataset import Data, Normalise
from fieldmark.data.image import centre_of
from fieldmark.models import build
from fieldmark.models.fuse_bn import folded
from fieldmark.models.linear_probe import logistic
from fieldmark.models.presets import INSTALLED
from fieldmark.models.profile import whole_size
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import distributed

FOLDS = 5
BATCH = 32
FEWEST = 10
"""Photos, below which nobody can be judged by the others."""


class Embedder:
    """Photos, one by one -> what the installed network makes of them: its last map, pooled."""

    def __init__(self) -> None:
        runtime.prepare()
        self.fabric = distributed.fabric(Recipe())
        network = build(INSTALLED["fast"], weights="imagenet").eval().requires_grad_(False)
        look = network.preprocessing
        self.size, self.interpolation = whole_size(network), look.interpolation
        self.layers: nn.Module = nn.Sequential(Normalise(look.mean, look.std), network.backbone).eval()
        self.ready = False
        self.rows: list[int] = []
        self.waiting: list[np.ndarray] = []
        self.parts: list[np.ndarray] = []

    def add(self, i: int, look: Look) -> None:
        """The photo in row i of the catalog, decoded with `size` as its shorter side and with `interpolation`."""
        self.rows.append(i)
        self.waiting.append(centre_of(look.pixels, self.size))
        if len(self.waiting) == BATCH:
            self._embed()

    def features(self) -> tuple[list[int], np.ndarray]:
        """The rows of the photos, and float32 (photos, channels)."""
        if self.waiting:
            self._embed()
        return self.rows, np.concatenate(self.parts) if self.parts else np.zeros((0, 1), np.float32)

    def _embed(self) -> None:
        photos = torch.from_numpy(np.stack(self.waiting)).permute(0, 3, 1, 2)
        self.waiting = []
        if not self.ready:  # norms can be folded once there is a photo to watch
            self.layers, self.ready = folded(self.layers.to(self.fabric.device), self._batch(photos[:2])), True
        with torch.inference_mode(), self.fabric.autocast():
            self.parts.append(self.layers(self._batch(photos)).mean((2, 3)).float().cpu().numpy())

    def _batch(self, photos: Tensor) -> Tensor:
        return self.fabric.to_device(photos.float().contiguous(memory_format=torch.channels_last))


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[int], classes: int, share: float = 1.0
) -> np.ndarray:
    """What each photo is called by a linear classifier that has not seen its group: float32 (n, classes).

    features (n, c); labels (n,) class numbers. A class of one group alone gets no probability there. The classifier
    learns from this `share` of each class's photos, a larger one from those of a smaller one and others.
    """
    lots = np.random.default_rng(0).random(len(labels))
    found = np.zeros((len(labels), classes), np.float32)
    parts = StratifiedGroupKFold(min(FOLDS, int(np.bincount(labels).max())), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        sides = list(parts.split(features, labels, groups))
    known = torch.from_numpy(labels)
    for train, test in sides:
        train = _part(train, labels, lots, share)
        fc = nn.Linear(features.shape[1], classes)
        logistic(features[train], known[train], features[:0], known[:0], fc)
        with torch.no_grad():
            found[test] = fc(torch.from_numpy(features[test])).softmax(1).numpy()
    return found


def _part(rows: np.ndarray, labels: np.ndarray, lots: np.ndarray, share: float) -> np.ndarray:
    """The rows of each class with the smallest lots, at least one, in order."""
    kept = []
    for label in np.unique(labels[rows]):
        own = rows[labels[rows] == label]
        kept.append(own[np.argsort(lots[own])][: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows (n,), the least believed label first; and of each row (n,) whether cleanlab calls the label wrong."""
    belief = probabilities[np.arange(len(labels)), labels]
    wrong = np.asarray(find_label_issues(labels, probabilities, n_jobs=1))
    return np.argsort(belief, kind="stable"), wrong


def ranked(
    rows: Sequence[int], features: np.ndarray, labels: Sequence[str], paths: Sequence[str], groups: Sequence[int]
) -> list[dict[str, Any]]:
    """Every photo with its label, the class it is called by the others and how far its label is believed, worst first.

    `rows` are the places of the features' photos in `labels`, `paths` and `groups`. `flagged` says whether the label
    looks wrong, not only hard. Classes of one group are left out; empty where there are too few photos.
    """
    inside = defaultdict[str, set[int]](set)
    for i in rows:
        inside[labels[i]].add(groups[i])
    names = sorted(name for name in inside if len(inside[name]) > 1)  # of one group nobody else could say what it is
    kept = [k for k, i in enumerate(rows) if labels[i] in names]
    rows, features = [rows[k] for k in kept], features[kept]
    own = np.array([groups[i] for i in rows])
    if len(rows) < FEWEST or len(names) < 2:
        return []
    number = {name: k for k, name in enumerate(names)}
    said = np.array([number[labels[i]] for i in rows])
    probabilities = out_of_fold(features, said, own.tolist(), len(names))
    order, wrong = suspects(probabilities, said)
    return [
        {
            "path": paths[rows[k]],
            "label": names[said[k]],
            "suggested": names[int(probabilities[k].argmax())],
            "confidence": float(probabilities[k, said[k]]),
            "flagged": bool(wrong[k]),
        }
        for k in order.tolist()
    ]


def flagged(ranking: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose label looks wrong, in the form of `check --json`."""
    return [{name: row[name] for name in row if name != "flagged"} for row in ranking if row["flagged"]]


def warnings_of(errors: list[dict[str, Any]]) -> list[str]:
    """A line where labels look wrong."""
    first = ", ".join(f"{printable(row['path'])} (rather {printable(row['suggested'])}?)" for row in errors[:3])
    return [f"{count(len(errors), 'label')} worth a second look: {first}"] if errors else []


def features_of(files: Sequence[Path], data: Data) -> tuple[list[int], np.ndarray]:
    """What phase 1 learned from: the photos' numbers, training photos first, and their features (n, c), pooled.

    `files` hold those of the training and of the validation photos, (photos, c) or maps (photos, c, h, w).
    """
    sides = [(file, which) for file, which in zip(files, (data.train, data.val), strict=True) if len(which)]
    parts = [np.load(file, mmap_mode="r", allow_pickle=False)[: len(which)] for file, which in sides]
    features = np.concatenate([part if part.ndim == 2 else part.mean((2, 3)) for part in parts]).astype(np.float32)
    return [*data.train.tolist(), *data.val.tolist()], features
