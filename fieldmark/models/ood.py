"""Pooled features and logits -> `known_score`, the in-distribution score: low for out-of-distribution (OOD) images.

Near-OOD images (a species that is not among the classes) have no high logit: the max-logit score of Vaze et al. 2022,
"Open-Set Recognition: A Good Closed-Set Classifier Is All You Need?". Far-OOD images (waste) may have one, but their
features lie far from every class centroid. Neither suffices alone (docs/performance.md), so the score sums both. The
max logit counts twice, as it is and divided by the norm of the logits: an image that resembles many classes a little
has several high logits.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_CENTROID_WEIGHT = 0.2
"""Weight of the centroid similarity; the two logit components have weight 1."""
_MIN_STD = 1e-3
"""Smallest standard deviation: with two classes the normalized max logit is constant up to rounding."""


class OODScorer(nn.Module):
    """Pooled features (n, c) and logits (n, classes) -> known_score (n,), between 0 and 1.

    The score is sigmoid(z(l) + z(l / norm) + 0.2 z(s)). l is the max logit after subtracting the mean logit,
    norm the 2-norm of the centred logits, and s the largest cosine similarity of the features to a class centroid.
    z(x) = (x - mean) / sd standardizes with the statistics of the validation set.
    """

    centroids: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, centroids: Tensor) -> None:
        """`centroids` (classes, c) have norm one, or zero for a class without reference images."""
        super().__init__()
        self.register_buffer("centroids", centroids)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("sd", torch.ones(3))

    @classmethod
    def fit(
        cls,
        reference_features: np.ndarray,
        reference_labels: np.ndarray,
        val_features: np.ndarray,
        val_logits: np.ndarray,
    ) -> "OODScorer":
        """Fit the centroids to training images and the statistics to the validation set.

        Args:
            reference_features: pooled features (n, c) of some training images of each class.
            reference_labels: their class indices (n,); a class without any has a zero centroid.
            val_features: pooled features (m, c) of the validation set.
            val_logits: logits (m, classes) of the validation set.
        """
        directions = functional.normalize(torch.from_numpy(reference_features).float())
        sums = torch.zeros(val_logits.shape[1], reference_features.shape[1]).index_add_(
            0, torch.from_numpy(reference_labels), directions
        )
        scorer = cls(functional.normalize(sums)).eval()
        if len(val_logits) > 1:
            components = scorer.score_components(torch.from_numpy(val_features), torch.from_numpy(val_logits))
            scorer.mean, scorer.sd = fit_statistics(components)
        return scorer

    def score_components(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score components (n, 3): max logit, normalized max logit, largest cosine similarity to a centroid."""
        logits = logits - logits.mean(1, keepdim=True)
        centroid_similarity = (functional.normalize(features) @ self.centroids.T).amax(1)
        return torch.stack((logits.amax(1), functional.normalize(logits).amax(1), centroid_similarity), 1)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return combine_components(self.score_components(features, logits), self.mean, self.sd)

    def score_arrays(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Apply the scorer to NumPy arrays."""
        with torch.inference_mode():
            return self(torch.from_numpy(features), torch.from_numpy(logits)).numpy()


def fit_statistics(components: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3,) and standard deviation (3,) of the score components (n, 3) of the validation set, n at least 2."""
    return components.mean(0), components.std(0).clamp_min(_MIN_STD)


def combine_components(components: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Score components (n, 3) and their statistics (3,) -> known_score (n,)."""
    max_logit, normalized_max_logit, cosine = ((components - mean) / sd).unbind(1)
    return torch.sigmoid(max_logit + normalized_max_logit + _CENTROID_WEIGHT * cosine)
