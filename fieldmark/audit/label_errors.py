"""Label errors: embeddings of all images, out-of-fold linear probes on them, and the probability of a wrong label.

Every image is predicted by a linear classifier that was trained neither on it nor on its near-duplicates. All labels
are ranked by the probability that they are wrong (`label_noise.py`), and those that are probably wrong are listed for a
person to decide.
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from fieldmark.audit.label_noise import error_probabilities
from fieldmark.audit.report import LabelQuality
from fieldmark.audit.warning_lines import MAX_NAME_LENGTH, list_warning
from fieldmark.core import runtime
from fieldmark.core.text import pluralize, shorten
from fieldmark.data.dataset import DatasetSplits, Normalize
from fieldmark.data.decoded import DecodedImage
from fieldmark.data.image import center_crop_array
from fieldmark.models import Head, build
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.linear_probe import WEIGHT_DECAYS, fit_logistic_regression
from fieldmark.models.presets import PIP_BACKBONES
from fieldmark.models.profile import uncropped_size

N_FOLDS = 5
BATCH_SIZE = 32
MIN_IMAGES = 10
"""Number of images below which labels are not ranked."""


class Embedder:
    """Computes embeddings of images that arrive one by one: the pooled last feature map of a pretrained network.

    On a GPU if there is one, in bfloat16 where that is faster than 32 bits, as in training.
    """

    def __init__(self) -> None:
        self.device = runtime.default_device()
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
        """Image `index` of the catalog, decoded with `size` as its shorter side and with `interpolation`."""
        self.indices.append(index)
        self.pending.append(center_crop_array(image.pixels, self.size))
        if len(self.pending) == BATCH_SIZE:
            self._embed()

    def features(self) -> tuple[list[int], np.ndarray]:
        """The positions of the images in the catalog, and their embeddings, float32 (images, channels)."""
        if self.pending:
            self._embed()
        return self.indices, np.concatenate(self.embeddings) if self.embeddings else np.zeros((0, 1), np.float32)

    def _embed(self) -> None:
        images = torch.from_numpy(np.stack(self.pending)).permute(0, 3, 1, 2)
        self.pending = []
        if not self.is_fused:  # batch norms are folded on a sample of real images
            self.layers = fuse_batch_norms(self.layers.to(self.device), self._to_device(images[:2]))
            self.is_fused = True
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=runtime.has_bf16())
        with torch.inference_mode(), autocast:
            self.embeddings.append(self.layers(self._to_device(images)).mean((2, 3)).float().cpu().numpy())

    def _to_device(self, images: Tensor) -> Tensor:
        return images.float().contiguous(memory_format=torch.channels_last).to(self.device)


def cross_val_probabilities(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[int], n_classes: int, train_fraction: float = 1.0
) -> np.ndarray:
    """Out-of-fold class probabilities of linear classifiers, float32 (n, classes): no fold splits a group.

    The weight decay is chosen on the first fold that is held out, for all folds: wrong labels in the training images
    need a stronger one.

    Args:
        features: float32 (n, c).
        labels: class numbers (n,). A class of a single group gets no probability where that group is held out.
        groups: group number of each image, (n,).
        train_fraction: part of each class's training images that is used; those of a smaller fraction are contained in
            those of a larger one.
    """
    draw_order = np.random.default_rng(0).random(len(labels))
    probabilities = np.zeros((len(labels), n_classes), np.float32)
    splitter = StratifiedGroupKFold(min(N_FOLDS, int(np.bincount(labels).max())), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = list(splitter.split(features, labels, groups))
    targets, weight_decays = torch.from_numpy(labels), WEIGHT_DECAYS
    for train, test in folds:
        train = _subsample_classes(train, labels, draw_order, train_fraction)
        fc = nn.Linear(features.shape[1], n_classes)
        chosen = fit_logistic_regression(
            features[train], targets[train], features[test], targets[test], fc, weight_decays=weight_decays
        )
        weight_decays = (chosen,)
        with torch.no_grad():
            probabilities[test] = fc(torch.from_numpy(features[test])).softmax(1).numpy()
    return probabilities


def _subsample_classes(
    rows: np.ndarray, labels: np.ndarray, draw_order: np.ndarray, train_fraction: float
) -> np.ndarray:
    """The rows of each class with the lowest `draw_order`, at least one, in order."""
    kept = []
    for label in np.unique(labels[rows]):
        own = rows[labels[rows] == label]
        kept.append(own[np.argsort(draw_order[own])][: max(1, round(train_fraction * len(own)))])
    return np.sort(np.concatenate(kept))


def rank_labels(
    rows: Sequence[int], features: np.ndarray, labels: Sequence[str], paths: Sequence[str], groups: Sequence[int]
) -> tuple[LabelQuality, ...]:
    """The label quality of every image, the likeliest error first.

    Classes of a single group are left out, as no fold has seen such a class without the image itself. The result is
    empty if fewer than `MIN_IMAGES` images or two classes remain.

    Args:
        rows: positions of the embedded images in `labels`, `paths` and `groups`.
        features: embeddings of those images, float32 (len(rows), channels).
    """
    groups_of_class = defaultdict[str, set[int]](set)
    for i in rows:
        groups_of_class[labels[i]].add(groups[i])
    names = sorted(name for name, members in groups_of_class.items() if len(members) > 1)
    kept = [k for k, i in enumerate(rows) if labels[i] in names]
    rows, features = [rows[k] for k in kept], features[kept]
    if len(rows) < MIN_IMAGES or len(names) < 2:
        return ()
    number = {name: k for k, name in enumerate(names)}
    label_ids = np.array([number[labels[i]] for i in rows])
    probabilities = cross_val_probabilities(features, label_ids, [groups[i] for i in rows], len(names))
    p_error = error_probabilities(probabilities, label_ids)
    return tuple(
        LabelQuality(
            path=paths[rows[k]],
            label=names[label_ids[k]],
            suggested=names[int(probabilities[k].argmax())],
            confidence=float(probabilities[k, label_ids[k]]),
            error_probability=float(p_error[k]),
        )
        for k in map(int, np.argsort(-p_error, kind="stable"))
    )


def label_error_warnings(errors: Sequence[LabelQuality]) -> tuple[str, ...]:
    """One line if there are likely label errors."""
    if not errors:
        return ()
    names = [f"{shorten(error.path, MAX_NAME_LENGTH)} (suggested: {shorten(error.suggested, 30)})" for error in errors]
    return (list_warning(pluralize(len(errors), "likely label error"), names),)


def load_pooled_features(files: Sequence[Path], data: DatasetSplits, head: Head) -> tuple[list[int], np.ndarray]:
    """The images of the linear probe, training images first, and their embeddings (n, c).

    `files` hold the features of the training and of the validation set, as `head.pre_pool` leaves them.
    """
    splits = [
        (file, image_ids) for file, image_ids in zip(files, (data.train, data.val), strict=True) if len(image_ids)
    ]
    parts = [np.load(file, mmap_mode="r", allow_pickle=False)[: len(which)] for file, which in splits]
    embeddings = [head.embed(torch.from_numpy(np.array(part))).float().numpy() for part in parts]
    return [*data.train.tolist(), *data.val.tolist()], np.concatenate(embeddings)
