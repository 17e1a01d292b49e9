"""Vectors -> small sets of similar ones: random projection trees, where all pairs would be too many to compare.

A tree halves the set again and again, each time along a random direction, until `LEAF_SIZE` vectors are left; similar
vectors mostly end in one leaf, and in one leaf of several trees nearly always (Dasgupta & Freund, "Random projection
trees and low dimensional manifolds", 2008). The cost of a tree is the same whatever the vectors are.
"""

from collections.abc import Iterator

import numpy as np

LEAF_SIZE = 1024
"""Largest number of vectors in a leaf."""
_SAMPLE = 512  # vectors that choose a direction and a threshold
_ROWS = 65536  # vectors projected at a time: bounds the memory


def tree_leaves(vectors: np.ndarray, queries: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The leaves of one tree: ascending indices of its vectors, and of the queries that fall into it.

    Args:
        vectors: float32 (n, d); the tree is built on them.
        queries: float32 (n, d), of the same images; each falls into the leaf where its equal would be.
    """
    rng = np.random.default_rng(seed)
    tie_breaks = rng.random(len(vectors), dtype=np.float32)
    nodes = [(np.arange(len(vectors)), np.arange(len(queries)))]
    while nodes:
        rows, columns = nodes.pop()
        if len(rows) <= LEAF_SIZE:
            yield rows, columns
            continue
        sample = vectors[rng.choice(rows, _SAMPLE)]
        sample -= sample.mean(0)
        # One power iteration on the covariance: a random direction, rather along than across the data.
        direction = sample.T @ (sample @ rng.standard_normal(vectors.shape[1], dtype=np.float32))
        at, to = _project(vectors, rows, direction), _project(queries, columns, direction)
        threshold = np.median(at)
        if threshold == at.max():  # most of them are equal
            at, to = tie_breaks[rows], tie_breaks[columns]
            threshold = np.median(at)
        is_left, is_left_query = at <= threshold, to <= threshold
        nodes += [(rows[is_left], columns[is_left_query]), (rows[~is_left], columns[~is_left_query])]


def _project(vectors: np.ndarray, rows: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.concatenate([vectors[rows[at : at + _ROWS]] @ direction for at in range(0, len(rows) or 1, _ROWS)])
