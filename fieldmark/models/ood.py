"""Pooled features + logits -> one score of how much a photo is like those of the training: `known_score`.

Two things tell a stranger. What resembles none of the classes much (a bird of another species) has no high logit: the
best score there (Vaze et al. 2022, "Open-Set Recognition: A Good Closed-Set Classifier Is All You Need?"). What is of
another world (waste) can have one, but its features point nowhere near those of any class. Neither alone will do
(docs/performance.md), so the score is a sum. The best logit stands in it twice: as it is, and as a share of all that
the logits say, since a photo that resembles many classes a little has it high, and others too.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CENTROID_WEIGHT = 0.2
"""How much the features count beside the logits, each in standard deviations over the validation photos."""
MIN_STD = 1e-3
"""Smallest standard deviation: of two classes the second part is the same for all photos, but for its last bits."""


class OODScorer(nn.Module):
    """Pooled last maps (n, c), logits (n, classes) -> known_score (n,), between 0 and 1.

    The sigmoid of z(l) + z(l / n) + 0.2 z(s), where l is the top logit and n the 2-norm of the logits, all of them less
    the mean logit, and s the largest cosine of the features to a class's centroid; z(x) = (x - mean x) / sd x with mean
    and sd of the validation photos.
    """

    centroids: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, centroids: Tensor) -> None:
        """`centroids` (classes, c), of length one or zero."""
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
        """Centroids from training photos, `shown` (n, c) with `labels` (n,); the rest from the validation photos.

        Args:
            shown: pooled features of some training photos of each class; a class without any has no centroid.
            labels: their class numbers.
            features: pooled features of the validation photos, (m, c).
            logits: of the validation photos, (m, classes).
        """
        directions = functional.normalize(torch.from_numpy(reference_features).float())
        sums = torch.zeros(val_logits.shape[1], reference_features.shape[1]).index_add_(
            0, torch.from_numpy(reference_labels), directions
        )
        scorer = cls(functional.normalize(sums)).eval()
        if len(val_logits) > 1:
            parts = scorer.score_components(torch.from_numpy(val_features), torch.from_numpy(val_logits))
            scorer.mean, scorer.sd = parts.mean(0), parts.std(0).clamp_min(MIN_STD)
        return scorer

    def score_components(self, features: Tensor, logits: Tensor) -> Tensor:
        """(n, 3): the top logit above the mean, its share of the logits' length, the largest cosine to a centroid."""
        logits = logits - logits.mean(1, keepdim=True)
        centroid_similarity = (functional.normalize(features) @ self.centroids.T).amax(1)
        return torch.stack((logits.amax(1), functional.normalize(logits).amax(1), centroid_similarity), 1)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        max_logit, normalized_max_logit, cosine = (
            (self.score_components(features, logits) - self.mean) / self.sd
        ).unbind(1)
        return torch.sigmoid(max_logit + normalized_max_logit + CENTROID_WEIGHT * cosine)

    def score_arrays(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """The same of arrays."""
        with torch.inference_mode():
            return self(torch.from_numpy(features), torch.from_numpy(logits)).numpy()
