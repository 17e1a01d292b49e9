"""Features and logits -> `known_score`, the in-distribution score: low for out-of-distribution (OOD) images.

It is the smaller of two scores. Near-OOD images, as a species that is not among the classes, look like the images of
training, but their logits are unusual: no high maximum (Vaze et al. 2022, "Open-Set Recognition: A Good Closed-Set
Classifier Is All You Need?"), or another pattern than those of any class, for an image that is so similar to a class
(as Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", subtract what all classes
have in common). Far-OOD images, as a cup among waste, may have the highest logits of all, but their features are unlike
any of training: those of the last map, which knows of objects, and those of all stages, which know of edges, textures
and colours (after Sastry & Oore 2020, "Detecting Out-of-Distribution Examples with Gram Matrices") and lie far from the
subspace of the training images (as in Wang et al. 2022, "ViM: Out-of-Distribution with Virtual-logit Matching"). In a
sum of both, high logits would let a far image pass (docs/lab/ood.md).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.network import Network

_FAR_MARGIN = 1.0
"""Added to the far score, in standard deviations: most images of the classes are left to the near score."""
_NEAR_WEIGHTS = (1.0, 1.0, 1.0, -0.7)
"""Of the standardized components of the near score (docs/lab/ood.md)."""
_N_NEAR = len(_NEAR_WEIGHTS)
"""Components of the near score; the others are those of the far score."""
_N_COMPONENTS = _N_NEAR + 3
_MIN_SQUARES = 1e-6
"""Smallest squared distance of features."""
_MIN_STD = 1e-3
"""Smallest standard deviation: with two classes the normalized max logit is constant up to rounding."""
_MIN_RELATIVE_STD = 0.1
"""Smallest standard deviation of a feature, relative to those of its group: a channel that is silent in training would
outweigh all others."""
_MAX_DIRECTIONS = 32
"""Dimensions of the subspace of the training images, at most; of few features a quarter."""


class OODScorer(nn.Module):
    """Features (n, d) and logits (n, classes) -> known_score (n,), between 0 and 1.

    The features are `Head.score_features`, the means of the last map or the moments of all stages, in groups of
    columns: the means, or the standard deviations, of a stage. With z(x) = (x - mean) / sd by the statistics of the
    validation set the score is sigmoid(min(z(near), z(far) + 1)).

    - near = z(l) + z(l / norm) + z(p) - 0.7 z(c): l is the max logit after subtracting the mean logit, norm the 2-norm
      of the centred logits, p their largest cosine similarity to the mean of a class, and c the largest cosine
      similarity of the features to the mean of a class, both centred by the mean of training.
    - far = z(s) + z(t) + z(r): s is the largest cosine similarity of the last map's means to a class centroid, t the
      sum over the groups of -log of the mean squared deviation from the features of training, in standard deviations,
      and r -log of the squared distance from the subspace of the principal directions of the training images.

    Args:
        classes: number of classes.
        groups: number of features in each group.
        last_map: number of the group that holds the means of the last map.
    """

    centroids: Tensor
    logit_centroids: Tensor
    class_means: Tensor
    feature_mean: Tensor
    feature_sd: Tensor
    directions: Tensor
    mean: Tensor
    sd: Tensor
    near_sd: Tensor
    far_sd: Tensor

    def __init__(self, classes: int, groups: Sequence[int], last_map: int) -> None:
        super().__init__()
        self.groups, self.last_map = tuple(groups), last_map
        features = sum(groups)
        buffers = {
            "centroids": torch.zeros(classes, groups[last_map]),
            "logit_centroids": torch.zeros(classes, classes),
            "class_means": torch.zeros(classes, features),
            "feature_mean": torch.zeros(features),
            "feature_sd": torch.ones(features),
            "directions": torch.zeros(features, min(_MAX_DIRECTIONS, max(1, features // 4))),
            "mean": torch.zeros(_N_COMPONENTS),
            "sd": torch.ones(_N_COMPONENTS),
            "near_sd": torch.ones(()),
            "far_sd": torch.ones(()),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def fit(
        self,
        features: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        val_features: np.ndarray,
        val_logits: np.ndarray,
    ) -> "OODScorer":
        """Fit centroids and directions to training images, and the statistics of the components to validation images.

        Args:
            features: (n, d) of training images.
            logits: (n, classes) of them.
            labels: their class indices (n,); a class without any has zero centroids.
            val_features: (m, d) of the validation set.
            val_logits: (m, classes) of the validation set.
        """
        self.eval()
        x, targets = torch.from_numpy(features).float(), torch.from_numpy(labels)
        count = len(self.centroids)
        self.centroids = _class_directions(functional.normalize(self._last_map(x)), targets, count)
        centred = functional.normalize(_centre(torch.from_numpy(logits).float()))
        self.logit_centroids = _class_directions(centred, targets, count)
        self.feature_mean = x.mean(0)
        sds = x.std(0, correction=0).split(self.groups)
        floors = [_MIN_RELATIVE_STD * sd.square().mean().sqrt() + 1e-6 for sd in sds]
        self.feature_sd = torch.cat([sd.clamp_min(floor) for sd, floor in zip(sds, floors, strict=True)])
        x = x - self.feature_mean
        self.class_means = _class_directions(x, targets, count)
        self.directions = _principal_directions(x, self.directions.shape[1])
        if len(val_logits) > 1:
            components = self.score_components(torch.from_numpy(val_features), torch.from_numpy(val_logits))
            self.mean, self.sd, self.near_sd, self.far_sd = fit_statistics(components)
        return self

    def score_components(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score components (n, 7): l, l / norm, p, c, s, t and r of the class's description."""
        logits = _centre(logits)
        pattern = functional.normalize(logits)
        last_map = functional.normalize(self._last_map(features))
        features = features - self.feature_mean
        deviations = (features / self.feature_sd).square().split(self.groups, 1)
        outside = features - (features @ self.directions) @ self.directions.T
        return torch.stack(
            (
                logits.amax(1),
                pattern.amax(1),
                (pattern @ self.logit_centroids.T).amax(1),
                (functional.normalize(features) @ self.class_means.T).amax(1),
                (last_map @ self.centroids.T).amax(1),
                -torch.stack([group.mean(1) for group in deviations], 1).clamp_min(_MIN_SQUARES).log().sum(1),
                -outside.square().sum(1).clamp_min(_MIN_SQUARES).log(),
            ),
            1,
        )

    def _last_map(self, features: Tensor) -> Tensor:
        """The means of the last map among the features (n, d)."""
        return features.split(self.groups, 1)[self.last_map]

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        components = self.score_components(features, logits)
        return combine_components(components, self.mean, self.sd, self.near_sd, self.far_sd)

    def score_arrays(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Apply the scorer to NumPy arrays."""
        with torch.inference_mode():
            return self(torch.from_numpy(features), torch.from_numpy(logits)).numpy()


def make_scorer(network: Network) -> OODScorer:
    """A scorer of what the head of this network reads (`Head.score_features`), to be fitted."""
    widths, classes = list(network.backbone.stages.values()), network.head.classifier.out_features
    if network.head.reads_stages:  # the means of all stages, then the standard deviations
        return OODScorer(classes, (*widths, *widths), len(widths) - 1)
    return OODScorer(classes, widths[-1:], 0)


def _centre(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _class_directions(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The direction of the mean of each class, of norm one; zero for a class without images."""
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features)
    return functional.normalize(sums)


def _principal_directions(centred: Tensor, count: int) -> Tensor:
    """Orthonormal directions (d, count) of largest variance of (n, d), about; with fewer images the rest are zero.

    Subspace iteration (Halko et al. 2011, "Finding Structure with Randomness", algorithm 4.4).
    """
    n, d = centred.shape
    directions = torch.zeros(d, count)
    rank = min(count, n - 1)
    if rank > 0:
        basis = torch.randn(d, rank, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            basis, _ = torch.linalg.qr(centred.T @ (centred @ basis))
        directions[:, :rank] = basis
    return directions


def fit_statistics(components: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (7,) and standard deviation (7,) of the score components (n, 7) of the validation set, n at least 2.

    The others are the standard deviations of the sums of the near and of the far components.
    """
    mean, sd = components.mean(0), components.std(0).clamp_min(_MIN_STD)
    near, far = _near_and_far((components - mean) / sd)
    return mean, sd, near.std().clamp_min(_MIN_STD), far.std().clamp_min(_MIN_STD)


def combine_components(components: Tensor, mean: Tensor, sd: Tensor, near_sd: Tensor, far_sd: Tensor) -> Tensor:
    """Score components (n, 7) and their statistics (`fit_statistics`) -> known_score (n,)."""
    near, far = _near_and_far((components - mean) / sd)
    return torch.sigmoid(torch.minimum(near / near_sd, far / far_sd + _FAR_MARGIN))


def _near_and_far(z: Tensor) -> tuple[Tensor, Tensor]:
    """The sums (n,) of the standardized components (n, 7) of the near and of the far score."""
    return (z[:, :_N_NEAR] * z.new_tensor(_NEAR_WEIGHTS)).sum(1), z[:, _N_NEAR:].sum(1)
