"""Features and the labels so far -> a linear classifier, solved again in a fraction of a second.

The features are projected on their leading principal directions once. The classifier is multinomial logistic regression
with an L2 penalty, as the linear probe of a training; it starts from the solution before the last answer, so that a few
steps lead to the new optimum.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

PENALTY = 0.003
"""L2 penalty on the weights, beside the mean loss of the labelled images."""
MAX_STEPS = 60
"""Steps of L-BFGS after an answer; the next answer goes on from there."""


@dataclass(frozen=True)
class LinearModel:
    """Logits are features @ weight.T + bias.

    Attributes:
        weight: (classes, k).
        bias: (classes,).
    """

    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def blank(cls, n_classes: int, dimensions: int) -> "LinearModel":
        return cls(np.zeros((n_classes, dimensions), np.float32), np.zeros(n_classes, np.float32))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Features (n, k) -> (n, classes)."""
        return features @ self.weight.T + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features (n, k) -> (n, classes)."""
        return softmax(self.logits(features), axis=1)

    def with_classes(self, n_classes: int) -> "LinearModel":
        """The same with further classes, which have no weight yet."""
        new = n_classes - len(self.bias)
        return LinearModel(np.pad(self.weight, ((0, new), (0, 0))), np.pad(self.bias, (0, new)))


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    start: LinearModel | None = None,
    weights: np.ndarray | None = None,
    penalty: float = PENALTY,
    max_steps: int = MAX_STEPS,
) -> LinearModel:
    """Minimise the mean cross-entropy plus `penalty` times the squared weights, by L-BFGS.

    Args:
        features: (n, k), projected.
        labels: class numbers (n,).
        start: an earlier solution, perhaps of fewer classes.
        weights: weight of each image in the loss (n,).
    """
    k = features.shape[1]
    start = (start or LinearModel.blank(n_classes, k)).with_classes(n_classes)
    targets = np.zeros((len(labels), n_classes), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    shares = np.full(len(labels), 1 / len(labels), np.float32) if weights is None else weights / weights.sum()

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = parameters[:-n_classes].reshape(n_classes, k).astype(np.float32), parameters[-n_classes:]
        log_p = log_softmax(features @ weight.T + bias.astype(np.float32), axis=1)
        residual = (np.exp(log_p) - targets) * shares[:, None]
        loss = -float((targets * log_p).sum(1) @ shares) + penalty * float(np.square(weight).sum())
        gradient = residual.T @ features + 2 * penalty * weight
        return loss, np.concatenate([gradient.ravel(), residual.sum(0)]).astype(np.float64)

    begin = np.concatenate([start.weight.ravel(), start.bias]).astype(np.float64)
    options = {"maxiter": max_steps, "maxcor": 10, "ftol": 1e-7, "gtol": 1e-5}
    found = minimize(loss_and_gradient, begin, jac=True, method="L-BFGS-B", options=options).x.astype(np.float32)
    return LinearModel(found[:-n_classes].reshape(n_classes, k), found[-n_classes:])
