"""Heads: `(channels, classes) -> module`, features (n, c, h, w) -> logits (n, classes), and evidence (n, h, w).

A head describes a photo's features by one vector, and classifies the vector by linear layers. With activations, norms
and attention weights held at their values, the logit of a class is linear in that vector, and the vector a sum over
positions; so the logit is a sum of what each position said for the class, plus a rest that no position said: evidence
and bias. Both are in closed form, without autograd, so they go into an exported graph.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fieldmark.models.layers import make_activation as make_activation


class Head(nn.Module):
    """describe -> `tail`: linear layers with activations and dropout between them, the last of them `fc`.

    A new head is a Pooled with its own `describe` and `spread`, or writes its `tail` too.
    """

    fc: nn.Linear

    @property
    def classifier(self) -> nn.Linear:
        """The class layer."""
        return self.fc

    @property
    def classifier_layers(self) -> list[nn.Module]:
        """The layers from the description to the logits, in order; nn.Linear, nn.Dropout, and activations."""
        raise NotImplementedError

    def pool_features(self, features: Tensor) -> Tensor:
        """Features (n, c, h, w) -> one vector per photo, (n, d)."""
        raise NotImplementedError

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        """The part of each position (n, h, w) in `weights` (n, d) times the description of the features."""
        raise NotImplementedError

    def pre_pool(self, features: Tensor) -> Tensor:
        """The head's start that has no parameters, (n, c, h, w) -> (n, c, h', w'); `forward` is the same after it."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        x = self.pool_features(features)
        for layer in self.classifier_layers:
            x = layer(x)
        return x

    def evidence(self, features: Tensor, target: Tensor) -> Tensor:
        """What each position said for class `target` (n,), in logits: (n, c, h, w) -> (n, h, w).

        In eval mode the sum over positions plus `bias` is the logit of the target.
        """
        return self.position_contributions(
            features, _linearize(self.classifier_layers, self.pool_features(features), target)[0]
        )

    def bias(self, features: Tensor, target: Tensor) -> Tensor:
        """The part (n,) of the target's logit that no position said."""
        return _linearize(self.classifier_layers, self.pool_features(features), target)[1]


def _linearize(layers: list[nn.Module], x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, d) and rest (n,) of the target's logit as a linear function of the layers' input x (n, d)."""
    layer, *others = layers
    if isinstance(layer, nn.Dropout):
        return _linearize(others, x, target)
    if not isinstance(layer, nn.Linear):
        y = layer(x)
        weights, rest = _linearize(others, y, target)
        return weights * elementwise_ratio(x, y), rest
    if not others:
        return layer.weight[target], layer.bias[target]
    weights, rest = _linearize(others, layer(x), target)
    return weights @ layer.weight, rest + weights @ layer.bias


def elementwise_ratio(x: Tensor, y: Tensor) -> Tensor:
    """The factor of y = factor * x, elementwise; nothing where x is nothing."""
    is_zero = x == 0
    return torch.where(is_zero, 0, y / torch.where(is_zero, 1, x))


def channel_weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """The dot product of each position (n, c, h, w) with the photo's weights (n, c) -> (n, h, w)."""
    # Not an einsum, whose export takes onnxruntime several times as long.
    return torch.bmm(weights[:, None], features.flatten(2)).view(-1, *features.shape[2:])


class PooledHead(Head):
    """describe -> dropout -> [FC `hidden`, activation, dropout `hidden_dropout`] -> FC.

    `channels` is the length of the description. `hidden_dropout` is as `dropout` where it is not given; `activation` is
    relu, relu6, silu or hardswish.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.build_pooling(channels)
        self.dropout = nn.Dropout(dropout)
        activation_layer = make_activation(activation)
        self.hidden = nn.Sequential()
        if hidden is not None:
            dropout_layer = nn.Dropout(dropout if hidden_dropout is None else hidden_dropout)
            self.hidden = nn.Sequential(nn.Linear(channels, hidden), activation_layer, dropout_layer)
        self.fc = nn.Linear(channels if hidden is None else hidden, classes)

    def build_pooling(self, channels: int) -> None:
        """Make the description's own parameters, where it has some."""

    @property
    def classifier_layers(self) -> list[nn.Module]:
        return [self.dropout, *self.hidden, self.fc]


class LinearHead(PooledHead):
    """Global average pooling -> dropout -> [hidden layer] -> FC."""

    def pre_pool(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)

    def pool_features(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        return channel_weighted_sum(features, weights) / (features.shape[2] * features.shape[3])


class GeM(PooledHead):
    """Generalised mean (mean of x^p)^(1/p) of each channel -> dropout -> [hidden layer] -> FC.

    Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", equation 2 with one p for all
    channels, which is trained and starts at 3; x is at least 1e-6. Between the average (p = 1) and the maximum.
    """

    def build_pooling(self, channels: int) -> None:
        self.p = nn.Parameter(torch.tensor([3.0]))

    def pool_features(self, features: Tensor) -> Tensor:
        powers, peak = self._scaled_powers(features)
        return peak * powers.mean((2, 3)) ** (1 / self.p)

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        powers, peak = self._scaled_powers(features)
        total = powers.sum((2, 3))
        description = peak * (total / (features.shape[2] * features.shape[3])) ** (1 / self.p)
        return channel_weighted_sum(powers, weights * description / total)

    def _scaled_powers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(x / peak)^p (n, c, h, w) and the peak (n, c), the largest x: of x^p itself a large p leaves no number."""
        x = features.clamp_min(1e-6)
        peak = x.detach().amax((2, 3), keepdim=True)  # the mean does not depend on it, so neither does its slope
        return (x / peak) ** self.p, peak[:, :, 0, 0]


class AttentionPool(PooledHead):
    """Sum over positions of a(p) x(p), a = softmax over positions of w' tanh(V x(p)) -> dropout -> [hidden] -> FC.

    Ilse et al. 2018, "Attention-based Deep Multiple Instance Learning", equation 8, with its 128 rows of V: the photo
    is a bag of positions.
    """

    def build_pooling(self, channels: int) -> None:
        self.v = nn.Conv2d(channels, 128, 1, bias=False)
        self.w = nn.Conv2d(128, 1, 1, bias=False)

    def pool_features(self, features: Tensor) -> Tensor:
        return torch.einsum("nchw,nhw->nc", features, self.attention_weights(features))

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        return self.attention_weights(features) * channel_weighted_sum(features, weights)

    def attention_weights(self, features: Tensor) -> Tensor:
        """The attention weights: (n, c, h, w) -> (n, h, w), a photo's sum to one."""
        scores = self.w(self.v(features).tanh())[:, 0]
        return scores.flatten(1).softmax(1).view_as(scores)


class ClassicHead(Head):
    """Average pooling to pool x pool -> flatten -> [FC, ReLU, dropout] for each of `hidden` -> FC.

    AlexNet's and VGG's: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", with
    dropout before each hidden layer (`dropout_first`); Simonyan & Zisserman 2015, "Very Deep Convolutional Networks
    for Large-Scale Image Recognition", with dropout behind each. A map of pool x pool is taken as it is; other sizes
    are pooled by windows of about h / pool rows, which overlap where pool does not divide h.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        pool: int = 7,
        hidden: tuple[int, ...] = (4096, 4096),
        dropout: float = 0.5,
        dropout_first: bool = False,
    ) -> None:
        super().__init__()
        if pool < 1:
            raise ValueError(f"pool={pool}: the pooled map is at least 1 wide")
        if not isinstance(hidden, tuple | list):
            raise ValueError(f"hidden={hidden}: name the width of each layer, as (4096, 4096)")
        self.pool, self.depth, self.dropout_first = pool, len(hidden), dropout_first
        self.dropout, self.relu = nn.Dropout(dropout), nn.ReLU()
        widths = (channels * pool * pool, *hidden)
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))
        self.fc = nn.Linear(widths[-1], classes)

    @property
    def classifier_layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for number in range(1, self.depth + 1):
            layer = self.get_submodule(f"fc{number}")
            layers += [self.dropout, layer, self.relu] if self.dropout_first else [layer, self.relu, self.dropout]
        return [*layers, self.fc]

    def pre_pool(self, features: Tensor) -> Tensor:
        if features.shape[2:] == (self.pool, self.pool):
            return features
        return (features.flatten(2) @ self._pooling_matrix(features)).unflatten(2, (self.pool, self.pool))

    def pool_features(self, features: Tensor) -> Tensor:
        return self.pre_pool(features).flatten(1)

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        position_weights = weights.unflatten(1, (-1, self.pool**2)) @ self._pooling_matrix(features).T  # (n, c, h * w)
        return (features * position_weights.view_as(features)).sum(1)

    def _pooling_matrix(self, features: Tensor) -> Tensor:
        """torch's adaptive average pooling as a matrix (h * w, pool * pool), which every exporter knows."""
        rows, columns = (features.new_tensor(_pooling_weights(size, self.pool)) for size in features.shape[2:])
        return torch.kron(rows, columns)


def _pooling_weights(size: int, pool: int) -> list[list[float]]:
    """How much of each position goes to each mean, (size, pool)."""
    windows = [(i * size // pool, -(-(i + 1) * size // pool)) for i in range(pool)]
    return [[(start <= p < end) / (end - start) for start, end in windows] for p in range(size)]
