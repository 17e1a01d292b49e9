"""Second-order pooling: features (n, c, h, w) -> products of channels summed over positions -> logits (n, classes)."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.heads import PooledHead, channel_weighted_sum, elementwise_ratio


class Bilinear(PooledHead):
    """[1x1 convolution] -> bilinear pooling -> signed square root -> L2 norm -> dropout -> [hidden layer] -> FC.

    Lin et al. 2015, "Bilinear CNN Models for Fine-grained Visual Recognition", with the same features in both streams.

    Args:
        channels: channels of the feature map.
        classes: number of classes.
        reduced: channels after the 1x1 convolution; None for no convolution.
        compact: length of the pooled vector, by Tensor Sketch; None for all k * k products of k channels.
        hidden: width of the hidden layer; None for none.
        dropout: dropout probability of the pooled vector.
        hidden_dropout: dropout probability behind the hidden layer; None for `dropout`.
        activation: relu, relu6, silu or hardswish.
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
        self.vector = FlattenMatrix(k) if compact is None else TensorSketch(k, compact)

    def pool_features(self, features: Tensor) -> Tensor:
        return functional.normalize(_signed_root(self._bilinear_vector(features)))

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        vector = self._bilinear_vector(features)  # (n, d), sum over positions p of a linear function of x(p) x(p)'
        root = _signed_root(vector)
        length = root.norm(dim=1, keepdim=True).clamp_min(1e-12)
        form = self.vector.transpose(weights * elementwise_ratio(vector, root) / length)  # (n, k, k)
        x = self.narrow(features).flatten(2)  # (n, k, h * w)
        return (x * torch.bmm(form.transpose(1, 2), x)).sum(1).unflatten(1, features.shape[2:])

    def _bilinear_vector(self, features: Tensor) -> Tensor:
        x = self.narrow(features).flatten(2)
        return self.vector(torch.bmm(x, x.transpose(1, 2)))


class FlattenMatrix(nn.Module):
    """Matrices (n, k, k) -> vectors (n, k * k); `transpose` applies the transposed linear map."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, form: Tensor) -> Tensor:
        return form.flatten(1)

    def transpose(self, vector: Tensor) -> Tensor:
        return vector.unflatten(1, (self.k, self.k))


class TensorSketch(nn.Module):
    """Tensor Sketch: matrices (n, k, k) -> (n, d); entry i, j times s1(i) s2(j) adds to bin (h1(i) + h2(j)) mod d.

    Gao et al. 2016, "Compact Bilinear Pooling", algorithm 2. The paper convolves two count sketches by FFT at every
    position; the convolution is linear in their outer product, so here it is applied once to the sum over positions.
    The expected dot product of two sketches is that of the matrices: for x x' and y y', the square of <x, y>. Hashes
    and signs are the same in every instance, since NumPy guarantees the stream of this generator. `transpose` applies
    the transposed linear map.
    """

    members: Tensor
    places: Tensor
    signs: Tensor

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        rng = np.random.RandomState(0)
        hashes, signs = rng.randint(d, size=(2, k)), rng.choice([-1.0, 1.0], size=(2, k))
        places = ((hashes[0][:, None] + hashes[1]) % d).ravel()  # bin of each entry, (k * k,)
        counts = np.bincount(places, minlength=d)
        # Entries of each bin (d, largest bin), padded with index k * k, a zero. A gather and no scatter: onnxruntime
        # loses sums when two threads scatter to one bin.
        members = np.full((d, counts.max()), k * k)
        order = np.argsort(places, kind="stable")
        members[places[order], np.arange(k * k) - (np.cumsum(counts) - counts)[places[order]]] = order
        self.register_buffer("members", torch.tensor(members), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("signs", torch.tensor(signs[0][:, None] * signs[1], dtype=torch.float32), persistent=False)

    def forward(self, form: Tensor) -> Tensor:
        entries = functional.pad((form * self.signs).flatten(1), (0, 1))  # (n, k * k + 1)
        return entries.index_select(1, self.members.flatten()).unflatten(1, self.members.shape).sum(2)

    def transpose(self, vector: Tensor) -> Tensor:
        return vector.index_select(1, self.places).unflatten(1, self.signs.shape) * self.signs


class SelfProduct(PooledHead):
    """Square of the features -> global average pooling -> dropout -> [hidden layer] -> FC.

    The diagonal of bilinear pooling ("bilinear EfficientNet-B3 + mask" of the birds, docs/reference/recipes.md).
    """

    def pool_features(self, features: Tensor) -> Tensor:
        return features.square().mean((2, 3))

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        return channel_weighted_sum(features.square(), weights) / (features.shape[2] * features.shape[3])


def _signed_root(x: Tensor) -> Tensor:
    """sign(x) * sqrt(|x| + 1e-10); the constant keeps the gradient finite at zero."""
    # A scaled sum: torch's ONNX exporter treats adding 1e-10 as adding zero and drops it.
    return x.sign() * (1e10 * x.abs() + 1).sqrt() * 1e-5
