"""Similar vectors end in one leaf, whatever the vectors are, and no leaf is large."""

import numpy as np
import pytest

from fieldmark.audit import search_trees
from fieldmark.audit.search_trees import tree_leaves


@pytest.fixture(autouse=True)
def small_leaves(monkeypatch):
    monkeypatch.setattr(search_trees, "LEAF_SIZE", 32)


def vectors(n: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((n, 16), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


SETS = {
    "spread": vectors(2000),
    "few": vectors(20),
    "none": vectors(0),
    "equal": np.repeat(vectors(1), 2000, 0),
    "zero": np.zeros((2000, 16), np.float32),
    "mostly equal": np.concatenate([np.repeat(vectors(1), 1900, 0), vectors(100, 1)]),
    "one family": vectors(1) + 0.001 * vectors(2000, 1),
}


@pytest.mark.parametrize("name", SETS)
def test_each_vector_is_in_one_small_leaf(name):
    leaves = [rows for rows, _ in tree_leaves(SETS[name], SETS[name], 0)]
    assert all(len(rows) <= 32 and (np.diff(rows) > 0).all() for rows in leaves)
    assert sorted(np.concatenate(leaves).tolist()) == list(range(len(SETS[name])))
    assert len(leaves) <= max(1, len(SETS[name]) / 8)


def test_a_query_lies_where_its_equal_is():
    found = vectors(2000)
    order = np.random.default_rng(2).permutation(2000)
    n_queries = 0
    for rows, queries in tree_leaves(found, found[order], 0):
        assert set(order[queries].tolist()) == set(rows.tolist())
        n_queries += len(queries)
    assert n_queries == 2000


def test_similar_vectors_share_a_leaf_of_several_trees():
    some = vectors(2000)
    near = some + 0.05 * vectors(2000, 3)
    far = vectors(2000, 4)
    shared = {}
    for name, other in (("near", near), ("far", far)):
        both, hits = np.concatenate([some, other]), np.zeros(2000, bool)
        for seed in range(6):
            leaf = np.empty(4000, int)
            for k, (rows, _) in enumerate(tree_leaves(both, both, seed)):
                leaf[rows] = k
            hits |= leaf[:2000] == leaf[2000:]
        shared[name] = hits.mean()
    assert shared["near"] > 0.97 and shared["far"] < 0.1
