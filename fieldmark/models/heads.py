"""Features (n, c, h, w) -> logits (n, classes) and class evidence (n, h, w); made by `(channels, classes) -> module`.

A head pools the features into one vector per image and classifies the vector by linear layers. With activations, norms
and attention weights held at their values, the logit of a class is linear in that vector, and the vector is a sum over
positions. The logit is therefore a class activation map (the class evidence) summed over positions, plus a bias. Both
are computed in closed form, without autograd, so they can be exported.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.models.layers import at_least_float32, make_activation, without_autocast


class Head(nn.Module):
    """Pooling, then linear layers with activations and dropout between them, the last of them `fc`.

    A new head subclasses `PooledHead` and implements `pool_features` and `position_contributions`, or subclasses `Head`
    and implements `classifier_layers` too.
    """

    fc: nn.Linear
    reads_stages = False
    """Whether the features are those of a `MultiStageBackbone`, and `channels` the channels of each stage."""

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer, whose outputs are the logits."""
        return self.fc

    @property
    def classifier_layers(self) -> list[nn.Module]:
        """The layers from the pooled vector to the logits, in order: nn.Linear, nn.Dropout and activations."""
        raise NotImplementedError

    def pool_features(self, features: Tensor) -> Tensor:
        """Features (n, c, h, w) -> one vector per image, (n, d)."""
        raise NotImplementedError

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        """Contribution of each position (n, h, w) to the dot product of the pooled features with `weights` (n, d)."""
        raise NotImplementedError

    def pre_pool(self, features: Tensor) -> Tensor:
        """The part of the pooling without parameters, (n, c, h, w) -> (n, c, h', w') or (n, d).

        `forward` has the same result for it as for the features.
        """
        return features

    def embed(self, features: Tensor) -> Tensor:
        """Embedding of each image, by which images are compared: the mean of the last map, (n, channels).

        The features may be pooled already (`pre_pool`).
        """
        return features.mean((2, 3)) if features.ndim == 4 else features

    def score_features(self, features: Tensor) -> Tensor:
        """What the OOD score reads of an image, (n, d): the embedding, or the moments of all stages."""
        return self.embed(features)

    def forward(self, features: Tensor) -> Tensor:
        x = self.pool_features(features) if features.ndim == 4 else features
        for layer in self.classifier_layers:
            x = layer(x)
        return x

    def evidence(self, features: Tensor, target: Tensor) -> Tensor:
        """Class evidence: a class activation map (n, h, w) in logits, of features (n, c, h, w) and classes (n,).

        In eval mode, the sum over positions plus `bias` equals the logit of class `target`.
        """
        return self.position_contributions(
            features, _linearize(self.classifier_layers, self.pool_features(features), target)[0]
        )

    def bias(self, features: Tensor, target: Tensor) -> Tensor:
        """The part (n,) of the target's logit that belongs to no position."""
        return _linearize(self.classifier_layers, self.pool_features(features), target)[1]


def _linearize(layers: list[nn.Module], x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, d) and bias (n,) of the target's logit as a linear function of the layers' input x (n, d)."""
    layer, *others = layers
    if isinstance(layer, nn.Dropout):
        return _linearize(others, x, target)
    if isinstance(layer, Standardize):
        weights, rest = _linearize(others, layer(x), target)
        weights = weights / layer.scale
        return weights, rest - weights @ layer.mean
    if not isinstance(layer, nn.Linear):
        y = layer(x)
        weights, rest = _linearize(others, y, target)
        return weights * elementwise_ratio(x, y), rest
    if not others:
        return layer.weight[target], layer.bias[target]
    weights, rest = _linearize(others, layer(x), target)
    return weights @ layer.weight, rest + weights @ layer.bias


def elementwise_ratio(x: Tensor, y: Tensor) -> Tensor:
    """y / x elementwise, 0 where x is 0."""
    is_zero = x == 0
    return torch.where(is_zero, 0, y / torch.where(is_zero, 1, x))


def channel_weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """The dot product of each position (n, c, h, w) with the image's weights (n, c) -> (n, h, w)."""
    # Not an einsum: onnxruntime takes several times as long for its export.
    return torch.bmm(weights[:, None], features.flatten(2)).view(-1, *features.shape[2:])


class PooledHead(Head):
    """Pooling -> dropout -> [FC, activation, dropout] -> FC.

    Args:
        channels: length of the pooled vector.
        classes: number of classes.
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
        """Create the parameters of the pooling, if it has any."""

    @property
    def classifier_layers(self) -> list[nn.Module]:
        return [self.dropout, *self.hidden, self.fc]


class AuxiliaryHead(nn.Module):
    """A classifier on an intermediate feature map that improves the training of the layers before it.

    It returns its input unchanged. In training mode, `logits` (n, classes) are those of the last batch, and the loss
    grows by `loss_weight` times theirs; in eval mode nothing is computed. A subclass implements `classify` and
    `classifier`.
    """

    loss_weight = 0.3
    logits: Tensor

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer, whose outputs are the logits."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Features (n, c, h, w) -> logits (n, classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.logits = self.classify(x)
        return x

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy: without the logits, which hold the graph of the last batch."""
        return {key: value for key, value in self.__dict__.items() if key != "logits"}


class LinearHead(PooledHead):
    """Global average pooling -> dropout -> [hidden layer] -> FC."""

    def pre_pool(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)

    def pool_features(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        return channel_weighted_sum(features, weights) / (features.shape[2] * features.shape[3])


class Standardize(nn.Module):
    """(x - mean) / scale of vectors (n, d); the linear probe sets `mean` (d,) and `scale` ().

    The curvature of the loss of a linear layer is proportional to the mean squared length of its inputs. With inputs of
    one length a learning rate is stable on any images; on features as they come it is stable on some.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def reset(self) -> None:
        """Be the identity, as at first."""
        self.mean.zero_()
        self.scale.fill_(1.0)


class MultiStage(PooledHead):
    """Mean and standard deviation of each channel of every stage -> standardized -> dropout -> [hidden layer] -> FC.

    Evci et al. 2022, "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning", with all channels
    in place of selected ones, and with the standard deviation, which measures texture. The features are those of a
    `MultiStageBackbone`.

    Args:
        channels: channels of each stage; a number stands for one stage.
        classes: number of classes.
        hidden: width of the hidden layer; None for none.
        dropout: dropout probability of the pooled vector.
        hidden_dropout: dropout probability behind the hidden layer; None for `dropout`.
        activation: relu, relu6, silu or hardswish.
    """

    reads_stages = True

    def __init__(
        self,
        channels: int | Sequence[int],
        classes: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        activation: str = "relu",
    ) -> None:
        widths = (channels,) if isinstance(channels, int) else tuple(channels)
        super().__init__(
            2 * sum(widths),
            classes,
            hidden=hidden,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
            activation=activation,
        )
        self.stage_channels = widths
        self.standardize = Standardize(2 * sum(widths))

    @property
    def classifier_layers(self) -> list[nn.Module]:
        return [self.standardize, *super().classifier_layers]

    def forward(self, features: Tensor) -> Tensor:
        with without_autocast(features):  # thousands of terms, which bfloat16 cannot add
            return super().forward(at_least_float32(features))

    @torch.no_grad()
    def set_standardization(self, mean: Tensor, squared_length: float) -> None:
        """Standardize by the mean (d,) of the pooled vector and the mean squared length of the rest.

        The output stays as it is. Only for a head without a hidden layer.
        """
        scale = math.sqrt(squared_length / _MEAN_SQUARED_LENGTH)
        raw_weight = self.fc.weight.double() / self.standardize.scale
        raw_bias = self.fc.bias.double() - raw_weight @ self.standardize.mean.double()
        self.fc.weight.copy_(raw_weight * scale)
        self.fc.bias.copy_(raw_bias + raw_weight @ mean.double().to(raw_weight.device))
        self.standardize.mean.copy_(mean)
        self.standardize.scale.fill_(scale)

    @property
    def last_map_columns(self) -> slice:
        """Where the means of the last map are in the pooled vector."""
        end = sum(self.stage_channels)
        return slice(end - self.stage_channels[-1], end)

    @torch.no_grad()
    def classify_by_last_map(self, weight: Tensor, bias: Tensor) -> None:
        """Take over a linear classifier of the last map's means, (classes, c) and (classes,); all other weights are 0.

        They are standardized as set before (`set_standardization`).
        """
        self.fc.weight.zero_()
        self.fc.weight[:, self.last_map_columns] = weight * self.standardize.scale
        self.fc.bias.copy_(bias + weight @ self.standardize.mean[self.last_map_columns])

    def pre_pool(self, features: Tensor) -> Tensor:
        return self.pool_features(features)

    def embed(self, features: Tensor) -> Tensor:
        return super().embed(features[:, self.last_map_columns])

    def score_features(self, features: Tensor) -> Tensor:
        return self.pool_features(features) if features.ndim == 4 else features

    def pool_features(self, features: Tensor) -> Tensor:
        return torch.cat(_mean_and_sd(features), 1)

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        # A standard deviation is the sum over positions of (x - mean)^2 / (positions * sd).
        mean, sd = _mean_and_sd(features)
        positions = features.shape[2] * features.shape[3]
        mean_weights, sd_weights = weights.chunk(2, 1)
        square_weights = sd_weights / (sd * positions)
        linear_weights = mean_weights / positions - 2 * mean * square_weights
        rest = (square_weights * (mean.square() + _VARIANCE_EPS)).sum(1)
        return channel_weighted_sum(features, torch.cat((linear_weights, square_weights), 1)) + rest[:, None, None]


class LastMapHead(nn.Module):
    """The part of a MultiStage head that reads the means of the last map; it trains that head's own parameters.

    The weights of the other moments stay as they are: 0 after `MultiStage.classify_by_last_map`.
    """

    def __init__(self, head: MultiStage) -> None:
        super().__init__()
        self.columns, self.standardize, self.dropout, self.fc = (
            head.last_map_columns,
            head.standardize,
            head.dropout,
            head.fc,
        )

    def forward(self, last_map: Tensor) -> Tensor:
        with without_autocast(last_map):
            means = last_map.mean((2, 3), dtype=torch.promote_types(last_map.dtype, torch.float32))
            standardized = (means - self.standardize.mean[self.columns]) / self.standardize.scale
            return functional.linear(self.dropout(standardized), self.fc.weight[:, self.columns], self.fc.bias)


_MEAN_SQUARED_LENGTH = 100.0
"""Of the standardized vectors: about that of the last map's means on photos, for which the learning rates were chosen.
A rate of 0.01 with Nesterov momentum 0.9 is stable up to five times that."""
_VARIANCE_EPS = 1e-6
"""Added to variances: the gradient of their root stays finite."""


def _mean_and_sd(features: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of k channels (n, 2k, h, w) -> their means and standard deviations over the positions, each (n, k)."""
    mean, square = features.mean((2, 3)).chunk(2, 1)
    return mean, ((square - mean.square()).clamp_min(0) + _VARIANCE_EPS).sqrt()


class GeM(PooledHead):
    """Generalized mean pooling, (mean of x^p)^(1/p) of each channel -> dropout -> [hidden layer] -> FC.

    Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", equation 2 with one learned p for
    all channels, initialized to 3; x is clamped to at least 1e-6. p = 1 is average pooling, large p max pooling.
    """

    def build_pooling(self, channels: int) -> None:
        self.p = nn.Parameter(torch.tensor([3.0]))

    def pool_features(self, features: Tensor) -> Tensor:
        powers, peak = self._scaled_powers(features)
        return peak * powers.mean((2, 3)) ** (1 / self.p)

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        powers, peak = self._scaled_powers(features)
        total = powers.sum((2, 3))
        pooled = peak * (total / (features.shape[2] * features.shape[3])) ** (1 / self.p)
        return channel_weighted_sum(powers, weights * pooled / total)

    def _scaled_powers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(x / peak)^p (n, c, h, w) and the largest x of each channel (n, c); x^p itself overflows for a large p."""
        x = features.clamp_min(1e-6)
        peak = x.detach().amax((2, 3), keepdim=True)  # the result does not depend on it, so neither does its gradient
        return (x / peak) ** self.p, peak[:, :, 0, 0]


class AttentionPool(PooledHead):
    """Sum over positions of a(p) x(p), a = softmax over positions of w' tanh(V x(p)) -> dropout -> [hidden] -> FC.

    Ilse et al. 2018, "Attention-based Deep Multiple Instance Learning", equation 8, with its 128 rows of V. The
    image is a bag of positions.
    """

    def build_pooling(self, channels: int) -> None:
        self.v = nn.Conv2d(channels, 128, 1, bias=False)
        self.w = nn.Conv2d(128, 1, 1, bias=False)

    def pool_features(self, features: Tensor) -> Tensor:
        return torch.einsum("nchw,nhw->nc", features, self.attention_weights(features))

    def position_contributions(self, features: Tensor, weights: Tensor) -> Tensor:
        return self.attention_weights(features) * channel_weighted_sum(features, weights)

    def attention_weights(self, features: Tensor) -> Tensor:
        """Attention weights: (n, c, h, w) -> (n, h, w), with sum one for each image."""
        scores = self.w(self.v(features).tanh())[:, 0]
        return scores.flatten(1).softmax(1).view_as(scores)


class ClassicHead(Head):
    """Average pooling to pool x pool -> flatten -> [FC, ReLU, dropout] for each of `hidden` -> FC.

    The head of AlexNet (Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks"),
    with dropout before each hidden layer (`dropout_first`), and of VGG (Simonyan & Zisserman 2015, "Very Deep
    Convolutional Networks for Large-Scale Image Recognition"), with dropout behind each. A feature map of pool x pool
    is used as it is; other sizes are pooled over windows of about h / pool rows, which overlap if pool does not
    divide h.
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
            raise ValueError(f"pool={pool}: must be at least 1")
        if not isinstance(hidden, tuple | list):
            raise ValueError(f"hidden={hidden}: pass the width of each layer, such as (4096, 4096)")
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
        """torch's adaptive average pooling as a matrix (h * w, pool * pool), which every exporter supports."""
        rows, columns = (features.new_tensor(_pooling_weights(size, self.pool)) for size in features.shape[2:])
        return torch.kron(rows, columns)


def _pooling_weights(size: int, pool: int) -> list[list[float]]:
    """Weight of each position in each mean, (size, pool)."""
    windows = [(i * size // pool, -(-(i + 1) * size // pool)) for i in range(pool)]
    return [[(start <= p < end) / (end - start) for start, end in windows] for p in range(size)]
