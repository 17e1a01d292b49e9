"""Features + labels -> the best linear head on them, exactly: phase 1 where it is a convex problem.

Multinomial logistic regression with L2 decay has one optimum; L-BFGS finds it in seconds, where thirty epochs of
gradient steps only come near it (docs/performance.md).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_DECAYS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
"""Tried from strong to weak, each from where the one before ended, until the validation photos are judged worse."""
DEFAULT_WEIGHT_DECAY = 1e-3
"""The decay where there are no validation photos."""
ROWS_PER_BLOCK = 4096
"""Rows looked at together: the features stay in their file."""


def fit_logistic_regression(
    features: np.ndarray,
    labels: Tensor,
    val_features: np.ndarray,
    val_labels: Tensor,
    fc: nn.Linear,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> float:
    """Set `fc` to the solution on features (n, c), labels (n,), with the decay of the lowest validation loss. -> it.

    The loss is that of the phases behind it, label smoothing included: where the head is surer than they want it, their
    first steps tear at the backbone (docs/performance.md). The decay weighs the squared weights of features that are
    scaled to a mean variance of 1, so that it means the same for every network. `features` may be a memory map; nothing
    of its size is copied.
    """
    device, width = fc.weight.device, features.shape[1]
    mean, scale = _mean_and_scale(features, device)
    weight = torch.zeros(fc.out_features, width, device=device, requires_grad=True)
    bias = torch.zeros(fc.out_features, device=device, requires_grad=True)
    labels, val_labels = labels.to(device), val_labels.to(device)

    def block_losses(rows: np.ndarray, targets: Tensor, weights: Tensor | None) -> Iterator[Tensor]:
        for first in range(0, len(rows), ROWS_PER_BLOCK):
            block = torch.from_numpy(np.array(rows[first : first + ROWS_PER_BLOCK])).to(device)
            scaled = weight / scale  # the weights and not the features: they are fewer
            logits = block @ scaled.T + (bias - scaled @ mean)
            block_targets = targets[first : first + ROWS_PER_BLOCK]
            yield F.cross_entropy(logits, block_targets, weights, reduction="sum", label_smoothing=smoothing)

    best: tuple[float, Tensor, Tensor, float] | None = None
    for decay in WEIGHT_DECAYS if len(val_features) else (DEFAULT_WEIGHT_DECAY,):
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-5
        )

        def closure(decay: float = decay, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            total = decay * weight.square().sum()
            total.backward()
            for loss in block_losses(features, labels, class_weights):
                (loss / len(labels)).backward()
                total = total.detach() + loss.detach() / len(labels)
            return total

        optimizer.step(closure)
        with torch.no_grad():
            val_loss = sum((loss.item() for loss in block_losses(val_features, val_labels, None)), 0.0)
        if best is not None and val_loss >= best[0]:
            break  # weaker ones fit the training photos better and these worse, and take the most steps
        best = (val_loss, weight.detach() / scale, bias.detach().clone(), decay)
    assert best is not None
    with torch.no_grad():
        fc.weight.copy_(best[1])
        fc.bias.copy_(best[2] - best[1] @ mean)
    return best[3]


def _mean_and_scale(features: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean of each feature (c,), and the root of their mean variance (), of rows in a file."""
    total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for first in range(0, len(features), ROWS_PER_BLOCK):
        block = features[first : first + ROWS_PER_BLOCK].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    mean = total / len(features)
    scale = np.sqrt(max(float((squares / len(features) - mean**2).mean()), 1e-12))
    return torch.tensor(mean, dtype=torch.float32, device=device), torch.tensor(scale, dtype=torch.float32).to(device)
