"""Second-order heads: features (n, c, h, w) -> products of channels, summed over positions -> logits (n, classes)."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.network.heads import Pooled, held, weigh


class Bilinear(Pooled):
    """[1x1 convolution to `reduced`] -> sum of outer products -> signed root -> L2 norm -> dropout -> [hidden] -> FC.

    Lin et al. 2015, "Bilinear CNN Models for Fine-grained Visual Recognition", both streams the same map. The vector
    has k squared entries, k = `reduced` or the channels; `compact` of them where their Tensor Sketch is asked for.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        reduced: int | None = None,
        compact: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        hidden_dropout: float | None = 0.5,
        activation: str = "relu",
    ) -> None:
        k = channels if reduced is None else reduced
        super().__init__(
            k * k if compact is None else compact,
            classes,
            hidden=hidden,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
            activation=activation,
        )
        self.narrow = nn.Identity() if reduced is None else nn.Conv2d(channels, reduced, 1, bias=False)
        self.vector = Flat(k) if compact is None else TensorSketch(k, compact)

    def describe(self, features: Tensor) -> Tensor:
        return functional.normalize(_signed_root(self._vector(features)))

    def spread(self, features: Tensor, weights: Tensor) -> Tensor:
        vector = self._vector(features)  # (n, d), the sum over positions p of a linear function of x(p) x(p)'
        root = _signed_root(vector)
        length = root.norm(dim=1, keepdim=True).clamp_min(1e-12)
        form = self.vector.back(weights * held(vector, root) / length)  # (n, k, k)
        x = self.narrow(features).flatten(2)  # (n, k, h * w)
        return (x * torch.bmm(form.transpose(1, 2), x)).sum(1).unflatten(1, features.shape[2:])

    def _vector(self, features: Tensor) -> Tensor:
        x = self.narrow(features).flatten(2)
        return self.vector(torch.bmm(x, x.transpose(1, 2)))


class Flat(nn.Module):
    """A form (n, k, k) -> its entries as a vector (n, k * k); `back` is the transpose."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, form: Tensor) -> Tensor:
        return form.flatten(1)

    def back(self, vector: Tensor) -> Tensor:
        return vector.unflatten(1, (self.k, self.k))


class TensorSketch(nn.Module):
    """A form (n, k, k) -> (n, d): entry i, j with the sign s1(i) s2(j) goes to place (h1(i) + h2(j)) mod d.

    Gao et al. 2016, "Compact Bilinear Pooling", algorithm 2, which convolves two count sketches by FFT at every
    position; the convolution is linear in their outer product, so it is taken of the sum over positions, once. The
    dot product of two sketches is, on average, that of the forms: of x x' and y y' the square of <x, y>. The places
    and signs are drawn at random, always the same, and saved with the weights. `back` is the transpose.
    """

    places: Tensor
    signs: Tensor

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.d = d
        draw = np.random.default_rng(0)
        self.register_buffer("places", torch.tensor(draw.integers(d, size=(2, k))))
        self.register_buffer("signs", torch.tensor(draw.choice([-1.0, 1.0], size=(2, k)), dtype=torch.float32))

    def forward(self, form: Tensor) -> Tensor:
        # Into twice as many places, folded afterwards: a remainder for each of the k * k entries takes longer.
        empty = form.new_zeros(form.shape[0], 2 * self.d)
        return empty.index_add(1, self._places(), (form * self._signs()).flatten(1)).unflatten(1, (2, self.d)).sum(1)

    def back(self, vector: Tensor) -> Tensor:
        signs = self._signs()
        places = self._places().expand(vector.shape[0], -1)
        return vector.repeat(1, 2).gather(1, places).unflatten(1, signs.shape) * signs

    def _places(self) -> Tensor:
        """h1(i) + h2(j), below 2 d, of each entry: (k * k,)."""
        return (self.places[0, :, None] + self.places[1]).flatten()

    def _signs(self) -> Tensor:
        """s1(i) s2(j), (k, k)."""
        return self.signs[0, :, None] * self.signs[1]


class SelfProduct(Pooled):
    """The map times itself, elementwise -> global average pooling -> dropout -> [hidden layer] -> FC.

    The diagonal of the bilinear form (SYSTEMS row 3, "bilinear EfficientNet-B3 + mask").
    """

    def describe(self, features: Tensor) -> Tensor:
        return features.square().mean((2, 3))

    def spread(self, features: Tensor, weights: Tensor) -> Tensor:
        return weigh(features.square(), weights) / (features.shape[2] * features.shape[3])


def _signed_root(x: Tensor) -> Tensor:
    """sign(x) * sqrt(|x| + 1e-10); the small number keeps the slope finite at zero."""
    # Written as a scaled sum, since torch's ONNX exporter takes a sum with 1e-10 for one with zero and drops it.
    return x.sign() * (1e10 * x.abs() + 1).sqrt() * 1e-5
