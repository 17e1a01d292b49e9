"""A shallow classification tree on binned features, in numpy: the quick check does not need scikit-learn.

Breiman et al., "Classification and regression trees" (1984), with the Gini impurity and balanced class weights.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DecisionTree:
    """A complete binary tree of equal depth; where a node is not split, all samples go left.

    Node k of a level has the children 2 k and 2 k + 1 on the next.

    Attributes:
        features: of each level the feature that each node asks for, int (2 ** level,).
        bounds: of each level the largest bin that goes left, int (2 ** level,).
        classes: class that each leaf predicts, int (2 ** depth,).
        importances: decrease of the impurity by each feature, (n_features,).
    """

    features: list[np.ndarray]
    bounds: list[np.ndarray]
    classes: np.ndarray
    importances: np.ndarray

    @classmethod
    def fit(cls, bins: np.ndarray, labels: np.ndarray, n_classes: int, depth: int, min_leaf: int) -> "DecisionTree":
        """Grow a tree greedily.

        Args:
            bins: the bin of each feature, uint8 (n, n_features).
            labels: class numbers (n,).
            min_leaf: least number of samples in a leaf.
        """
        weights = 1 / np.maximum(1, np.bincount(labels, minlength=n_classes))
        importances, node = np.zeros(bins.shape[1]), np.zeros(len(bins), int)
        features, bounds = list[np.ndarray](), list[np.ndarray]()
        for level in range(depth):
            feature, bound, gain = _best_splits(bins, node, labels, weights, 2**level, min_leaf)
            np.add.at(importances, feature, gain)
            features.append(feature)
            bounds.append(bound)
            node = 2 * node + (bins[np.arange(len(bins)), feature[node]] > bound[node])
        counts = np.bincount(node * n_classes + labels, minlength=2**depth * n_classes).reshape(-1, n_classes)
        return cls(features, bounds, (counts * weights).argmax(1), importances)

    def predict(self, bins: np.ndarray) -> np.ndarray:
        """Class numbers, int (n,)."""
        node = np.zeros(len(bins), int)
        for feature, bound in zip(self.features, self.bounds, strict=True):
            node = 2 * node + (bins[np.arange(len(bins)), feature[node]] > bound[node])
        return self.classes[node]


def _best_splits(
    bins: np.ndarray, node: np.ndarray, labels: np.ndarray, weights: np.ndarray, n_nodes: int, min_leaf: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The feature and the bound that decrease the impurity of each node most, and by how much.

    The bound is 255, so that all samples go left, where no split leaves `min_leaf` samples on both sides.
    """
    feature, bound, gain = np.zeros(n_nodes, int), np.full(n_nodes, 255), np.zeros(n_nodes)
    row, n_classes = node * len(weights) + labels, len(weights)
    for f in range(bins.shape[1]):
        n_bins = int(bins[:, f].max(initial=0)) + 1
        counts = np.bincount(row * n_bins + bins[:, f], minlength=n_nodes * n_classes * n_bins)
        left = counts.reshape(n_nodes, n_classes, n_bins).cumsum(2)
        right = left[:, :, -1:] - left
        purity = _purity(left, weights) + _purity(right, weights) - _purity(left[:, :, -1:], weights)
        purity[(left.sum(1) < min_leaf) | (right.sum(1) < min_leaf)] = 0
        best = purity.argmax(1)
        best_gain = purity[np.arange(n_nodes), best]
        better = best_gain > gain + 1e-9
        feature[better], bound[better], gain[better] = f, best[better], best_gain[better]
    return feature, bound, gain


def _purity(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight times (1 - Gini impurity) of each set of counts (nodes, classes, sets), (nodes, sets)."""
    weighted = counts * weights[:, None]
    return (weighted**2).sum(1) / np.maximum(weighted.sum(1), 1e-12)
