"""Features and labels -> the optimal linear classifier on them: multinomial logistic regression by L-BFGS.

With L2 regularization the problem is strictly convex. L-BFGS finds its optimum in seconds; thirty epochs of gradient
steps only approach it (docs/lab/fine-tuning.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weight decays tried in order, each warm-started from the one before, until the validation loss clearly rises."""
DEFAULT_WEIGHT_DECAY = 1e-2
"""The weight decay without a validation set, and the one preferred among those that differ by chance."""
ROWS_PER_BLOCK = 4096
"""Rows in memory at a time of features that are too many to keep; they stay in their file."""
MAX_BYTES_IN_MEMORY = 1 << 30
"""Features up to this size are kept in memory."""
LEADING_DIRECTIONS = 64
"""Principal directions of the features along which the steps are preconditioned."""
SHARES = (0.0, 0.25, 0.5)
"""Shares of a second classifier in a mean of two (`average_classifiers`)."""
DEFAULT_SHARE = 0.25
"""The share without a validation set."""
SCALE_BOUNDS = (0.1, 10.0)
"""Least and greatest factor by which the validation set scales the logits."""


@dataclass(frozen=True)
class Solution:
    """The classifier for one weight decay: logits are features @ weight.T + bias.

    Attributes:
        weight: (classes, c).
        bias: (classes,).
        weight_decay: the L2 penalty on the weights of standardized features.
        val_losses: cross-entropy of each validation image, (m,).
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    val_losses: Tensor

    @property
    def val_loss(self) -> float:
        """Mean cross-entropy over the validation set."""
        return self.val_losses.mean().item()

    def excess(self, best: "Solution") -> tuple[float, float]:
        """How much higher the validation loss is than the best one, and the standard error of that difference."""
        difference = self.val_losses - best.val_losses
        return difference.mean().item(), difference.std().item() / math.sqrt(len(difference))


class _StandardizedFeatures:
    """Features minus their means, divided by the root of their mean variance, in blocks of rows."""

    def __init__(self, features: np.ndarray, device: torch.device) -> None:
        self.features, self.device = features, device
        self.mean, self.scale = mean_and_scale(features, device)
        is_small = features.nbytes <= MAX_BYTES_IN_MEMORY
        self.cached_blocks = list(self._iter_blocks()) if is_small else None

    def blocks(self) -> Iterator[Tensor]:
        """Blocks (up to ROWS_PER_BLOCK, c)."""
        return self._iter_blocks() if self.cached_blocks is None else iter(self.cached_blocks)

    def standardize(self, features: np.ndarray) -> Tensor:
        """Other features on the same scale."""
        return (torch.from_numpy(np.array(features)).to(self.device) - self.mean).div_(self.scale)

    def _iter_blocks(self) -> Iterator[Tensor]:
        for first in range(0, len(self.features), ROWS_PER_BLOCK):
            yield self.standardize(self.features[first : first + ROWS_PER_BLOCK])

    @torch.no_grad()
    def leading_directions(self, count: int) -> tuple[Tensor, Tensor]:
        """The principal directions (c, count) of largest variance, and their variances (count,), about.

        Subspace iteration (Halko et al. 2011, "Finding Structure with Randomness", algorithm 4.4).
        """
        n, c = self.features.shape
        basis = torch.randn(c, min(count, c, n), generator=torch.Generator().manual_seed(0)).to(self.device)
        for _ in range(3):
            product = torch.zeros_like(basis)
            for block in self.blocks():
                product += block.T @ (block @ basis)
            basis, _ = torch.linalg.qr(product)
        covariance = torch.zeros(basis.shape[1], basis.shape[1], device=self.device)
        for block in self.blocks():
            projected = block @ basis
            covariance += projected.T @ projected / n
        variances, rotation = torch.linalg.eigh(covariance)
        return basis @ rotation, variances.clamp_min(0)


class _LogisticRegression:
    """Multinomial logistic regression on standardized features, preconditioned.

    A few directions hold most of the variance, along which the loss is so much steeper than along the others that
    L-BFGS takes hundreds of steps. It works on coordinates in which their curvature is that of the rest: a quarter of
    the steps to the same optimum (docs/lab/features-and-fine-tuning.md).
    """

    def __init__(self, features: np.ndarray, classes: int, smoothing: float, device: torch.device) -> None:
        self.data = _StandardizedFeatures(features, device)
        self.directions, self.variances = self.data.leading_directions(LEADING_DIRECTIONS)
        self.weight = torch.zeros(classes, features.shape[1], device=device)
        self.bias = torch.zeros(classes, device=device)
        self.smoothing = smoothing

    @torch.no_grad()
    def minimize(self, labels: Tensor, class_weights: Tensor | None, weight_decay: float) -> None:
        """Run L-BFGS from the current weights to the optimum."""
        # Of a softmax over k equally likely classes the curvature is (1 - 1/k) / k times that of the features.
        curvature = self.variances * (1 - 1 / len(self.bias)) / len(self.bias)
        shrinkage = ((curvature[:1] + 2 * weight_decay) / (curvature + 2 * weight_decay)).sqrt()
        coordinates = self._stretch(self.weight, 1 / shrinkage)
        optimizer = torch.optim.LBFGS(
            [coordinates, self.bias],
            max_iter=200,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-5,
            tolerance_change=1e-6,
        )

        def closure() -> Tensor:
            weight = self._stretch(coordinates, shrinkage)
            loss, weight_gradient, bias_gradient = self._loss_and_gradients(weight, labels, class_weights)
            coordinates.grad = self._stretch(weight_gradient + 2 * weight_decay * weight, shrinkage)
            self.bias.grad = bias_gradient
            return loss + weight_decay * weight.square().sum()

        optimizer.step(closure)
        self.weight = self._stretch(coordinates, shrinkage)

    def _loss_and_gradients(
        self, weight: Tensor, labels: Tensor, class_weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropy, and its gradients with respect to the weight and the bias."""
        total, weight_gradient = torch.zeros((), device=weight.device), torch.zeros_like(weight)
        bias_gradient, first = torch.zeros_like(self.bias), 0
        for block in self.data.blocks():
            block_labels = labels[first : first + len(block)]
            first += len(block)
            logits = (block @ weight.T + self.bias).requires_grad_()
            with torch.enable_grad():
                loss = self._cross_entropy(logits, block_labels, class_weights).sum() / len(labels)
            (gradient,) = torch.autograd.grad(loss, logits)
            # By hand: autograd's order of the product takes four times as long with a few classes.
            weight_gradient += gradient.T @ block
            bias_gradient += gradient.sum(0)
            total += loss.detach()
        return total, weight_gradient, bias_gradient

    def _stretch(self, weight: Tensor, factors: Tensor) -> Tensor:
        """The weights with their components along the leading directions multiplied by `factors`."""
        return weight + ((weight @ self.directions) * (factors - 1)) @ self.directions.T

    def _cross_entropy(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        return F.cross_entropy(logits, labels, class_weights, reduction="none", label_smoothing=self.smoothing)

    @torch.no_grad()
    def solution(self, val_features: np.ndarray, val_labels: Tensor, weight_decay: float) -> Solution:
        """The current classifier, on features that are not standardized.

        Its logits are scaled to the lowest validation loss: a strong decay makes them too small, a weak one too large.
        """
        scale, losses = 1.0, torch.zeros(0)
        if len(val_labels):
            logits = self.data.standardize(val_features) @ self.weight.T + self.bias
            scale = _best_scale(logits, val_labels, self.smoothing)
            losses = self._cross_entropy(logits * scale, val_labels)
        weight = self.weight * scale / self.data.scale
        return Solution(weight, self.bias * scale - weight @ self.data.mean, weight_decay, losses)


def _best_scale(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """The factor of the logits with the lowest loss, which is convex in it: by bisection of its derivative."""
    targets = F.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    low, high = SCALE_BOUNDS
    for _ in range(30):
        middle = math.sqrt(low * high)
        slope = (((logits * middle).softmax(1) - targets) * logits).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return middle


def fit_logistic_regression(
    features: np.ndarray,
    labels: Tensor,
    val_features: np.ndarray,
    val_labels: Tensor,
    fc: nn.Linear,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
) -> float:
    """Set `fc` to the solution with the weight decay that the validation set chooses.

    The loss is that of fine-tuning, label smoothing included: if the head is more confident than fine-tuning wants it,
    the first steps damage the backbone (docs/lab/fine-tuning.md). The features are scaled to a mean variance of 1, so
    that a weight decay means the same for every network; groups of features with a small variance, as those of most
    early stages, are shrunk more than others.

    Args:
        features: (n, c) of the training set; may be a memory map, which is read in blocks.
        labels: class indices (n,).
        val_features: (m, c) of the validation set; m = 0 for the default weight decay.
        val_labels: class indices (m,).
        fc: the layer to set, c -> classes.
        smoothing: label smoothing.
        class_weights: weight of each class in the loss (classes,).
        weight_decays: those to choose from, in falling order.

    Returns:
        The weight decay.
    """
    device = fc.weight.device
    labels, val_labels = labels.to(device), val_labels.to(device)
    model = _LogisticRegression(features, fc.out_features, smoothing, device)
    solutions = list[Solution]()
    for weight_decay in weight_decays if len(val_features) else (DEFAULT_WEIGHT_DECAY,):
        model.minimize(labels, class_weights, weight_decay)
        solutions.append(model.solution(val_features, val_labels, weight_decay))
        if len(val_features) > 1 and _is_clearly_worse(solutions[-1], min(solutions, key=lambda one: one.val_loss)):
            break  # weaker ones overfit more, and take the most steps
    best = _choose(solutions)
    with torch.no_grad():
        fc.weight.copy_(best.weight)
        fc.bias.copy_(best.bias)
    return best.weight_decay


@torch.no_grad()
def average_classifiers(
    fc: nn.Linear, other: nn.Linear, columns: slice, features: np.ndarray, labels: Tensor, smoothing: float = 0.0
) -> float:
    """Replace `fc` by a weighted mean of itself and of a classifier of some of the same features.

    The classifier of all features overfits those that say little about the classes. A mean of logits with a classifier
    of fewer features is a linear classifier again, and shrinks the weights of the others. The share of `other` is
    chosen on validation images, and the logits are scaled to their lowest loss.

    Args:
        fc: the layer to set, c -> classes.
        other: a classifier of `columns`.
        columns: of the features.
        features: (m, c) of the validation set; m = 0 for the default share.
        labels: class indices (m,).
        smoothing: label smoothing of the loss.

    Returns:
        The share of `other`.
    """
    labels = labels.to(fc.weight.device)
    share, scale = DEFAULT_SHARE, 1.0
    if len(features):
        x = torch.from_numpy(np.array(features)).to(fc.weight.device)
        logits, other_logits = fc(x), other(x[:, columns])
        means = {share: torch.lerp(logits, other_logits, share) for share in SHARES}
        scales = {share: _best_scale(mean, labels, smoothing) for share, mean in means.items()}
        losses = {
            share: F.cross_entropy(mean * scales[share], labels, label_smoothing=smoothing).item()
            for share, mean in means.items()
        }
        share = min(losses, key=losses.__getitem__)
        scale = scales[share]
    fc.weight.mul_((1 - share) * scale)
    fc.weight[:, columns] += other.weight * (share * scale)
    fc.bias.lerp_(other.bias, share).mul_(scale)
    return share


def _is_clearly_worse(solution: Solution, best: Solution) -> bool:
    excess, standard_error = solution.excess(best)
    return excess > standard_error


def _choose(solutions: list[Solution]) -> Solution:
    """Of those within one standard error of the lowest validation loss, the one nearest to the default weight decay.

    The one-standard-error rule (Breiman et al. 1984), of paired differences: a few hundred validation images tell
    neighbouring decays apart only by luck.
    """
    if len(solutions) == 1:
        return solutions[0]
    best = min(solutions, key=lambda one: one.val_loss)
    equal = [one for one in solutions if one is best or not _is_clearly_worse(one, best)]
    return min(equal, key=lambda one: (abs(math.log(one.weight_decay / DEFAULT_WEIGHT_DECAY)), one.val_loss))


def mean_and_scale(features: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean of each feature (c,), and the root of their mean variance (), read in blocks of rows."""
    total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for first in range(0, len(features), ROWS_PER_BLOCK):
        block = features[first : first + ROWS_PER_BLOCK].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    mean = total / len(features)
    scale = np.sqrt(max(float((squares / len(features) - mean**2).mean()), 1e-12))
    return torch.tensor(mean, dtype=torch.float32, device=device), torch.tensor(scale, dtype=torch.float32).to(device)
