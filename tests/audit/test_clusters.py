"""Union-find on arrays, and linking that makes no chains."""

from itertools import combinations

import numpy as np
import pytest

from fieldmark.audit.clusters import find_roots, flatten, link_clusters, merge_clusters


def merged(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    root = np.arange(n)
    merge_clusters(root, *np.array(pairs, int).reshape(-1, 2).T)
    flatten(root)
    return root.tolist()


@pytest.mark.parametrize(
    ("pairs", "root"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        ([(4, 2), (2, 4), (3, 3)], [0, 1, 2, 3, 2, 5]),
        ([(5, 4), (4, 3), (3, 1)], [0, 1, 2, 1, 1, 1]),
        ([(5, 0), (5, 1), (5, 2), (4, 3)], [0, 0, 0, 3, 3, 0]),
    ],
)
def test_clusters_have_the_lowest_index(pairs, root):
    assert merged(6, pairs) == root


def test_a_long_chain_in_any_order():
    n = 20_000
    order = np.random.default_rng(0).permutation(n - 1)
    for i in (order, np.arange(n - 1), np.arange(n - 1)[::-1]):
        root = np.arange(n)
        for some in np.array_split(i, 7):
            merge_clusters(root, some, some + 1)
        assert not find_roots(root, np.array([n - 1, 3])).any()
        flatten(root)
        assert not root.any()


def linked(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    root = np.arange(n)
    link_clusters(root, *np.array(pairs, int).reshape(-1, 2).T)
    return root.tolist()


@pytest.mark.parametrize(
    ("pairs", "root"),
    [
        ([(0, 1), (1, 2)], [0, 0, 0, 3, 4, 5]),  # half of the pairs between {0, 1} and {2}
        ([(0, 1), (2, 3), (1, 2)], [0, 0, 2, 2, 4, 5]),  # a quarter
        ([(0, 1), (2, 3), (1, 2), (0, 3)], [0, 0, 0, 0, 4, 5]),
        ([(5, 4), (3, 1), (4, 4)], [0, 1, 2, 1, 4, 4]),
        ([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], [0, 0, 0, 3, 3, 3]),
    ],
)
def test_clusters_of_which_half_the_pairs_are_linked_unite(pairs, root):
    assert linked(6, pairs) == root


def test_linking_equals_its_definition():
    """Counted anew for each pair, as the sentence says it."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        pairs = [(int(a), int(b)) for a, b in rng.integers(0, 30, (60, 2)) if a != b]
        clusters, links = [{k} for k in range(30)], {frozenset(pair) for pair in pairs}
        for a, b in pairs:
            first, second = (next(some for some in clusters if k in some) for k in (a, b))
            n_links = sum(frozenset((i, j)) in links for i in first for j in second)
            if first is not second and n_links >= 0.5 * len(first) * len(second):
                clusters = [some for some in clusters if some not in (first, second)] + [first | second]
        expected = {k: min(some) for some in clusters for k in some}
        assert linked(30, pairs) == [expected[k] for k in range(30)]


def test_many_links_cost_little():
    """A family of 600, all 180,000 pairs linked, beside as many families of two."""
    pairs = [*combinations(range(600), 2), *((600 + 2 * k, 601 + 2 * k) for k in range(600))]
    root = linked(1800, pairs)
    assert not any(root[:600]) and root[600:] == [600 + 2 * (k // 2) for k in range(1200)]
