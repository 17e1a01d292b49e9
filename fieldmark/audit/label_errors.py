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

from fieldmark.audit.audit import DecodedImage
from fieldmark.core.text import pluralize, printable
from fieldmark.data.dataset import DatasetSplits, Normalize
from fieldmark.data.image import center_crop_array
from fieldmark.models import build
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.linear_probe import fit_logistic_regression
from fieldmark.models.presets import PIP_BACKBONES
from fieldmark.models.profile import uncropped_size
from fieldmark.recipes.recipe import Recipe
from fieldmark.training import distributed

N_FOLDS = 5
BATCH_SIZE = 32
MIN_IMAGES = 10
"""Photos, below which nobody can be judged by the others."""


class Embedder:
    """Photos, one by one -> what the installed network makes of them: its last map, pooled."""

    def __init__(self) -> None:
        self.fabric = distributed.make_fabric(Recipe())
        network = build(PIP_BACKBONES["fast"], weights="imagenet").eval().requires_grad_(False)
        preprocessing = network.preprocessing
        self.size, self.interpolation = uncropped_size(network), preprocessing.interpolation
        self.layers: nn.Module = nn.Sequential(
            Normalize(preprocessing.mean, preprocessing.std), network.backbone
        ).eval()
        self.is_fused = False
        self.indices: list[int] = []
        self.pending: list[np.ndarray] = []
        self.embeddings: list[np.ndarray] = []

    def add(self, index: int, image: DecodedImage) -> None:
        """The photo in row i of the catalog, decoded with `size` as its shorter side and with `interpolation`."""
        self.indices.append(index)
        self.pending.append(center_crop_array(image.pixels, self.size))
        if len(self.pending) == BATCH_SIZE:
            self._embed()

    def features(self) -> tuple[list[int], np.ndarray]:
        """The rows of the photos, and float32 (photos, channels)."""
        if self.pending:
            self._embed()
        return self.indices, np.concatenate(self.embeddings) if self.embeddings else np.zeros((0, 1), np.float32)

    def _embed(self) -> None:
        photos = torch.from_numpy(np.stack(self.pending)).permute(0, 3, 1, 2)
        self.pending = []
        if not self.is_fused:  # norms can be folded once there is a photo to watch
            self.layers, self.is_fused = (
                fuse_batch_norms(self.layers.to(self.fabric.device), self._batch(photos[:2])),
                True,
            )
        with torch.inference_mode(), self.fabric.autocast():
            self.embeddings.append(self.layers(self._batch(photos)).mean((2, 3)).float().cpu().numpy())

    def _batch(self, photos: Tensor) -> Tensor:
        return self.fabric.to_device(photos.float().contiguous(memory_format=torch.channels_last))


def cross_val_probabilities(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[int], n_classes: int, train_fraction: float = 1.0
) -> np.ndarray:
    """What each photo is called by a linear classifier that has not seen its group: float32 (n, classes).

    features (n, c); labels (n,) class numbers. A class of one group alone gets no probability there. The classifier
    learns from this `share` of each class's photos, a larger one from those of a smaller one and others.
    """
    draw_order = np.random.default_rng(0).random(len(labels))
    probabilities = np.zeros((len(labels), n_classes), np.float32)
    splitter = StratifiedGroupKFold(min(N_FOLDS, int(np.bincount(labels).max())), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = list(splitter.split(features, labels, groups))
    targets = torch.from_numpy(labels)
    for train, test in folds:
        train = _subsample_classes(train, labels, draw_order, train_fraction)
        fc = nn.Linear(features.shape[1], n_classes)
        fit_logistic_regression(features[train], targets[train], features[:0], targets[:0], fc)
        with torch.no_grad():
            probabilities[test] = fc(torch.from_numpy(features[test])).softmax(1).numpy()
    return probabilities


def _subsample_classes(
    rows: np.ndarray, labels: np.ndarray, draw_order: np.ndarray, train_fraction: float
) -> np.ndarray:
    """The rows of each class with the smallest lots, at least one, in order."""
    kept = []
    for label in np.unique(labels[rows]):
        own = rows[labels[rows] == label]
        kept.append(own[np.argsort(draw_order[own])][: max(1, round(train_fraction * len(own)))])
    return np.sort(np.concatenate(kept))


def rank_by_self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows (n,), the least believed label first; and of each row (n,) whether cleanlab calls the label wrong."""
    self_confidence = probabilities[np.arange(len(labels)), labels]
    is_issue = np.asarray(find_label_issues(labels, probabilities, n_jobs=1))
    return np.argsort(self_confidence, kind="stable"), is_issue


def rank_labels(
    rows: Sequence[int], features: np.ndarray, labels: Sequence[str], paths: Sequence[str], groups: Sequence[int]
) -> list[dict[str, Any]]:
    """Every photo with its label, the class it is called by the others and how far its label is believed, worst first.

    `rows` are the places of the features' photos in `labels`, `paths` and `groups`. `flagged` says whether the label
    looks wrong, not only hard. Classes of one group are left out; empty where there are too few photos.
    """
    groups_of_class = defaultdict[str, set[int]](set)
    for i in rows:
        groups_of_class[labels[i]].add(groups[i])
    names = sorted(
        name for name in groups_of_class if len(groups_of_class[name]) > 1
    )  # of one group nobody else could say what it is
    kept = [k for k, i in enumerate(rows) if labels[i] in names]
    rows, features = [rows[k] for k in kept], features[kept]
    group_ids = np.array([groups[i] for i in rows])
    if len(rows) < MIN_IMAGES or len(names) < 2:
        return []
    number = {name: k for k, name in enumerate(names)}
    label_ids = np.array([number[labels[i]] for i in rows])
    probabilities = cross_val_probabilities(features, label_ids, group_ids.tolist(), len(names))
    order, is_issue = rank_by_self_confidence(probabilities, label_ids)
    return [
        {
            "path": paths[rows[k]],
            "label": names[label_ids[k]],
            "suggested": names[int(probabilities[k].argmax())],
            "confidence": float(probabilities[k, label_ids[k]]),
            "flagged": bool(is_issue[k]),
        }
        for k in order.tolist()
    ]


def select_label_issues(ranking: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose label looks wrong, in the form of `check --json`."""
    return [{name: row[name] for name in row if name != "flagged"} for row in ranking if row["flagged"]]


def label_issue_warnings(errors: list[dict[str, Any]]) -> list[str]:
    """A line where labels look wrong."""
    first = ", ".join(f"{printable(row['path'])} (rather {printable(row['suggested'])}?)" for row in errors[:3])
    return [f"{pluralize(len(errors), 'label')} worth a second look: {first}"] if errors else []


def load_pooled_features(files: Sequence[Path], data: DatasetSplits) -> tuple[list[int], np.ndarray]:
    """What phase 1 learned from: the photos' numbers, training photos first, and their features (n, c), pooled.

    `files` hold those of the training and of the validation photos, (photos, c) or maps (photos, c, h, w).
    """
    splits = [
        (file, image_ids) for file, image_ids in zip(files, (data.train, data.val), strict=True) if len(image_ids)
    ]
    parts = [np.load(file, mmap_mode="r", allow_pickle=False)[: len(which)] for file, which in splits]
    features = np.concatenate([part if part.ndim == 2 else part.mean((2, 3)) for part in parts]).astype(np.float32)
    return [*data.train.tolist(), *data.val.tolist()], features
