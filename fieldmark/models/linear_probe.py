"""Features and labels -> the optimal linear classifier on them: multinomial logistic regression by L-BFGS.

With L2 regularization the problem is strictly convex. L-BFGS finds its optimum in seconds; thirty epochs of gradient
steps only approach it (docs/performance.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_DECAYS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
"""Weight decays tried in order, each warm-started from the one before, until the validation loss rises."""
DEFAULT_WEIGHT_DECAY = 1e-3
"""The weight decay without a validation set."""
ROWS_PER_BLOCK = 4096
"""Rows in memory at a time; the features stay in their file."""


@dataclass(frozen=True)
class Solution:
    """The classifier for one weight decay: logits are features @ weight.T + bias.

    Attributes:
        weight: (classes, c).
        bias: (classes,).
        weight_decay: the L2 penalty on the weights of standardized features.
        val_loss: sum of the cross-entropy over the validation set.
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    val_loss: float


class _LogisticRegression:
    """Weights (classes, c) and bias (classes,) of standardized features, and their loss in blocks of rows."""

    def __init__(self, features: np.ndarray, classes: int, smoothing: float, device: torch.device) -> None:
        self.mean, self.scale = _mean_and_scale(features, device)
        self.weight = torch.zeros(classes, features.shape[1], device=device, requires_grad=True)
        self.bias = torch.zeros(classes, device=device, requires_grad=True)
        self.smoothing, self.device = smoothing, device

    def block_losses(self, features: np.ndarray, labels: Tensor, class_weights: Tensor | None) -> Iterator[Tensor]:
        """Sum of the cross-entropy of each block of rows."""
        for first in range(0, len(features), ROWS_PER_BLOCK):
            block = torch.from_numpy(np.array(features[first : first + ROWS_PER_BLOCK])).to(self.device)
            scaled = self.weight / self.scale  # the weights, since they are fewer than the features
            logits = block @ scaled.T + (self.bias - scaled @ self.mean)
            block_labels = labels[first : first + ROWS_PER_BLOCK]
            yield F.cross_entropy(logits, block_labels, class_weights, reduction="sum", label_smoothing=self.smoothing)

    def minimize(self, features: np.ndarray, labels: Tensor, class_weights: Tensor | None, weight_decay: float) -> None:
        """Run L-BFGS from the current weights to the optimum."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-5
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            total = weight_decay * self.weight.square().sum()
            total.backward()
            for loss in self.block_losses(features, labels, class_weights):
                (loss / len(labels)).backward()
                total = total.detach() + loss.detach() / len(labels)
            return total

        optimizer.step(closure)

    @torch.no_grad()
    def solution(self, val_features: np.ndarray, val_labels: Tensor, weight_decay: float) -> Solution:
        """The current classifier, on features that are not standardized."""
        val_loss = sum((loss.item() for loss in self.block_losses(val_features, val_labels, None)), 0.0)
        weight = self.weight / self.scale
        return Solution(weight, self.bias - weight @ self.mean, weight_decay, val_loss)


def fit_logistic_regression(
    features: np.ndarray,
    labels: Tensor,
    val_features: np.ndarray,
    val_labels: Tensor,
    fc: nn.Linear,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> float:
    """Set `fc` to the solution with the weight decay of the lowest validation loss.

    The loss is that of fine-tuning, label smoothing included: if the head is more confident than fine-tuning wants it,
    the first steps damage the backbone (docs/performance.md). The features are scaled to a mean variance of 1, so that
    a weight decay means the same for every network.

    Args:
        features: (n, c) of the training set; may be a memory map, which is read in blocks.
        labels: class indices (n,).
        val_features: (m, c) of the validation set; m = 0 for the default weight decay.
        val_labels: class indices (m,).
        fc: the layer to set, c -> classes.
        smoothing: label smoothing.
        class_weights: weight of each class in the loss (classes,).

    Returns:
        The weight decay.
    """
    device = fc.weight.device
    labels, val_labels = labels.to(device), val_labels.to(device)
    model = _LogisticRegression(features, fc.out_features, smoothing, device)
    best: Solution | None = None
    for weight_decay in WEIGHT_DECAYS if len(val_features) else (DEFAULT_WEIGHT_DECAY,):
        model.minimize(features, labels, class_weights, weight_decay)
        solution = model.solution(val_features, val_labels, weight_decay)
        if best is not None and solution.val_loss >= best.val_loss:
            break  # weaker ones overfit more, and take the most steps
        best = solution
    assert best is not None
    with torch.no_grad():
        fc.weight.copy_(best.weight)
        fc.bias.copy_(best.bias)
    return best.weight_decay


def _mean_and_scale(features: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean of each feature (c,), and the root of their mean variance (), read in blocks of rows."""
    total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for first in range(0, len(features), ROWS_PER_BLOCK):
        block = features[first : first + ROWS_PER_BLOCK].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    mean = total / len(features)
    scale = np.sqrt(max(float((squares / len(features) - mean**2).mean()), 1e-12))
    return torch.tensor(mean, dtype=torch.float32, device=device), torch.tensor(scale, dtype=torch.float32).to(device)
