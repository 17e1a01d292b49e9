"""Heads: `(channels, classes) -> module`, features (n, c, h, w) -> logits (n, classes), and evidence (n, h, w).

A head describes a photo's features by one vector, and classifies the vector by linear layers. With ReLU gates and
norms held at their values, the logit of a class is linear in that vector, and the vector a sum over positions; so the
logit is a sum of what each position said for the class, plus a rest that no position said: evidence and bias. Both are
in closed form, without autograd, so they go into an exported graph.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """describe -> [FC `hidden`, ReLU, dropout] -> FC `classes`. A new head writes `describe` and `spread`."""

    def __init__(self, width: int, classes: int, hidden: int | None, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        if hidden is not None:
            self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout))
        self.fc = nn.Linear(width if hidden is None else hidden, classes)

    @property
    def last(self) -> nn.Linear:
        """The class layer."""
        return self.fc

    def describe(self, features: Tensor) -> Tensor:
        """Features (n, c, h, w) -> one vector per photo, (n, d)."""
        raise NotImplementedError

    def spread(self, features: Tensor, weights: Tensor) -> Tensor:
        """The part of each position (n, h, w) in `weights` (n, d) times the description of the features."""
        raise NotImplementedError

    def reduce(self, features: Tensor) -> Tensor:
        """The head's start that has no parameters, (n, c, h, w) -> (n, c, h', w'); `forward` is the same after it."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.hidden(self.describe(features)))

    def evidence(self, features: Tensor, target: Tensor) -> Tensor:
        """What each position said for class `target` (n,), in logits: (n, c, h, w) -> (n, h, w).

        In eval mode the sum over positions plus `bias` is the logit of the target.
        """
        return self.spread(features, self._linear(features, target)[0])

    def bias(self, features: Tensor, target: Tensor) -> Tensor:
        """The part (n,) of the target's logit that no position said."""
        return self._linear(features, target)[1]

    def _linear(self, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (n, d) and rest (n,) of the target's logit as a linear function of the description."""
        weights, rest = self.fc.weight[target], self.fc.bias[target]
        if len(self.hidden) == 0:
            return weights, rest
        linear = self.hidden[0]
        assert isinstance(linear, nn.Linear)
        weights = weights * (linear(self.describe(features)) > 0)  # (n, hidden), its ReLU gates held
        return weights @ linear.weight, rest + weights @ linear.bias


class Linear(Head):
    """Global average pooling -> dropout -> [FC `hidden`, ReLU, dropout] -> FC."""

    def __init__(self, channels: int, classes: int, *, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(channels, classes, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def reduce(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)

    def describe(self, features: Tensor) -> Tensor:
        return self.dropout(features.mean((2, 3)))

    def spread(self, features: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("nchw,nc->nhw", features, weights) / (features.shape[2] * features.shape[3])


class Bilinear(Head):
    """[1x1 convolution to `reduced`] -> sum of outer products -> signed root -> L2 norm -> [hidden layer] -> FC.

    Lin et al. 2015, "Bilinear CNN Models for Fine-grained Visual Recognition", both streams the same map. The vector
    has (`reduced` or channels) squared entries. `dropout` stands behind the hidden layer only.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        reduced: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__((channels if reduced is None else reduced) ** 2, classes, hidden, dropout)
        self.narrow = nn.Identity() if reduced is None else nn.Conv2d(channels, reduced, 1, bias=False)

    def describe(self, features: Tensor) -> Tensor:
        return functional.normalize(_signed_root(self._products(features)).flatten(1))

    def spread(self, features: Tensor, weights: Tensor) -> Tensor:
        products = self._products(features)  # (n, k, k), the sum over positions p of x(p) x(p)'
        root = _signed_root(products)
        length = root.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
        # root = products * (root / products): the factor is held, and is nothing where the product is.
        factor = torch.where(products == 0, 0, root / torch.where(products == 0, 1, products))
        form = weights.unflatten(1, products.shape[1:]) * factor / length
        x = self.narrow(features).flatten(2)  # (n, k, h * w)
        return (x * torch.bmm(form.transpose(1, 2), x)).sum(1).unflatten(1, features.shape[2:])

    def _products(self, features: Tensor) -> Tensor:
        x = self.narrow(features).flatten(2)
        return torch.bmm(x, x.transpose(1, 2))


def _signed_root(x: Tensor) -> Tensor:
    """sign(x) * sqrt(|x| + 1e-10); the small number keeps the slope finite at zero."""
    # Written as a scaled sum, since torch's ONNX exporter takes a sum with 1e-10 for one with zero and drops it.
    return x.sign() * (1e10 * x.abs() + 1).sqrt() * 1e-5
