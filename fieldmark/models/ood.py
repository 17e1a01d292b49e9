"""Features and logits -> `known_score`, the in-distribution score: low for out-of-distribution (OOD) images.

It is the smaller of two scores. Near-OOD images, as a species that is not among the classes, look like the images of
training, but their logits are unusual: no high maximum (Vaze et al. 2022, "Open-Set Recognition: A Good Closed-Set
Classifier Is All You Need?"), or another pattern than those of any class. Far-OOD images, as a cup among waste, may
have the highest logits of all, but their features are unlike any of training: those of the last map, which knows of
objects, and those of all stages, which know of edges, textures and colours (after Sastry & Oore 2020, "Detecting
Out-of-Distribution Examples with Gram Matrices"). In a sum of both, high logits would let a far image pass
(docs/lab/features-and-fine-tuning.md).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.network import Network

_FAR_MARGIN = 0.8
"""Added to the far score, in standard deviations: most images of the classes are left to the near score."""
_N_NEAR = 3
"""Components of the near score; the others are those of the far score."""
_MIN_STD = 1e-3
"""Smallest standard deviation: with two classes the normalized max logit is constant up to rounding."""
_MIN_RELATIVE_STD = 0.1
"""Smallest standard deviation of a feature, relative to those of its group: a channel that is silent in training would
outweigh all others."""


class OODScorer(nn.Module):
    """Features (n, d) and logits (n, classes) -> known_score (n,), between 0 and 1.

    The features are `Head.score_features`, the means of the last map or the moments of all stages, in groups of
    columns: the means, or the standard deviations, of a stage. With z(x) = (x - mean) / sd by the statistics of the
    validation set the score is sigmoid(min(z(near), z(far) + 0.8)).

    - near = z(l) + z(l / norm) + z(p): l is the max logit after subtracting the mean logit, norm the 2-norm of the
      centred logits, and p their largest cosine similarity to the mean of a class.
    - far = z(s) + z(t): s is the largest cosine similarity of the last map's means to a class centroid, and t the sum
      over the groups of -log of the mean squared deviation from the features of training, in standard deviations.

    Args:
        classes: number of classes.
        groups: number of features in each group.
        last_map: number of the group that holds the means of the last map.
    """

    centroids: Tensor
    logit_centroids: Tensor
    feature_mean: Tensor
    feature_sd: Tensor
    mean: Tensor
    sd: Tensor
    near_sd: Tensor
    far_sd: Tensor

    def __init__(self, classes: int, groups: Sequence[int], last_map: int) -> None:
        super().__init__()
        self.groups, self.last_map = tuple(groups), last_map
        buffers = {
            "centroids": torch.zeros(classes, groups[last_map]),
            "logit_centroids": torch.zeros(classes, classes),
            "feature_mean": torch.zeros(sum(groups)),
            "feature_sd": torch.ones(sum(groups)),
            "mean": torch.zeros(5),
            "sd": torch.ones(5),
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
        """Fit centroids and features to training images, and the statistics of the components to validation images.

        Args:
            features: (n, d) of training images.
            logits: (n, classes) of them.
            labels: their class indices (n,); a class without any has zero centroids.
            val_features: (m, d) of the validation set.
            val_logits: (m, classes) of the validation set.
        """
        self.eval()
        x, targets = torch.from_numpy(features).float(), torch.from_numpy(labels)
        last_map = x.split(self.groups, 1)[self.last_map]
        self.centroids = _class_centroids(functional.normalize(last_map), targets, len(self.centroids))
        centred = functional.normalize(_centre(torch.from_numpy(logits).float()))
        self.logit_centroids = _class_centroids(centred, targets, len(self.centroids))
        self.feature_mean = x.mean(0)
        sds = x.std(0, correction=0).split(self.groups)
        floors = [_MIN_RELATIVE_STD * sd.square().mean().sqrt() + 1e-6 for sd in sds]
        self.feature_sd = torch.cat([sd.clamp_min(floor) for sd, floor in zip(sds, floors, strict=True)])
        if len(val_logits) > 1:
            components = self.score_components(torch.from_numpy(val_features), torch.from_numpy(val_logits))
            self.mean, self.sd, self.near_sd, self.far_sd = fit_statistics(components)
        return self

    def score_components(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score components (n, 5): max logit, normalized max logit, pattern of the logits, centroid, deviation."""
        logits = _centre(logits)
        directions = functional.normalize(logits)
        deviation = ((features - self.feature_mean) / self.feature_sd).square().split(self.groups, 1)
        last_map = features.split(self.groups, 1)[self.last_map]
        return torch.stack(
            (
                logits.amax(1),
                directions.amax(1),
                (directions @ self.logit_centroids.T).amax(1),
                (functional.normalize(last_map) @ self.centroids.T).amax(1),
                -torch.stack([group.mean(1) for group in deviation], 1).clamp_min(1e-6).log().sum(1),
            ),
            1,
        )

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


def _class_centroids(directions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean direction of each class, of norm one; zero for a class without images."""
    sums = torch.zeros(classes, directions.shape[1]).index_add_(0, labels, directions)
    return functional.normalize(sums)


def fit_statistics(components: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (5,) and standard deviation (5,) of the score components (n, 5) of the validation set, n at least 2.

    The others are the standard deviations of the sums of the near and of the far components.
    """
    mean, sd = components.mean(0), components.std(0).clamp_min(_MIN_STD)
    z = (components - mean) / sd
    near, far = z[:, :_N_NEAR].sum(1), z[:, _N_NEAR:].sum(1)
    return mean, sd, near.std().clamp_min(_MIN_STD), far.std().clamp_min(_MIN_STD)


def combine_components(components: Tensor, mean: Tensor, sd: Tensor, near_sd: Tensor, far_sd: Tensor) -> Tensor:
    """Score components (n, 5) and their statistics (`fit_statistics`) -> known_score (n,)."""
    z = (components - mean) / sd
    near, far = z[:, :_N_NEAR].sum(1) / near_sd, z[:, _N_NEAR:].sum(1) / far_sd
    return torch.sigmoid(torch.minimum(near, far + _FAR_MARGIN))
