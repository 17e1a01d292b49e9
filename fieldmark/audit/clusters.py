"""Pairs of images that belong together -> clusters of them: union-find, and linking that makes no chains.

A cluster is written as `root`, int (n,): the lowest index of each image's cluster, once `flatten` has been called.
"""

from collections import defaultdict

import numpy as np

MIN_LINKED_SHARE = 0.5
"""Part of the pairs between two clusters that must be linked to unite them: no chains of images."""


def find_roots(root: np.ndarray, i: np.ndarray) -> np.ndarray:
    """The lowest index of the cluster of each image `i`, whose path is shortened in place."""
    while True:
        above = root[i]
        higher = root[above]
        if (above == higher).all():
            return above
        root[i] = higher


def merge_clusters(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Unite the clusters of each pair (i, j) in place. It looks at these images only, however many others there are."""
    while len(i):
        first, second = find_roots(root, i), find_roots(root, j)
        apart = first != second
        i, j, first, second = i[apart], j[apart], first[apart], second[apart]
        np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))


def flatten(root: np.ndarray) -> None:
    """Write the lowest index of its cluster for every image, in place."""
    while (root != (above := root[root])).any():
        root[:] = above


def link_clusters(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Unite clusters in place, in the order of the pairs (i, j) of their lowest indices, by `MIN_LINKED_SHARE`."""
    i, j = i[i != j], j[i != j]
    component = np.arange(len(root))
    merge_clusters(component, i, j)
    flatten(component)
    order = np.argsort(component[i], kind="stable")  # a component at a time, so that memory is not for all at once
    ends = np.flatnonzero(np.diff(component[i[order]])) + 1
    linked = np.arange(len(root))
    for some in np.split(order, ends):
        lowest = _link_component(i[some].tolist(), j[some].tolist())
        linked[list(lowest)] = list(lowest.values())
    root[:] = linked[root]


def _link_component(i: list[int], j: list[int]) -> dict[int, int]:
    """The lowest member of the cluster of each k in the pairs (i, j), which come in their order."""
    n_links = defaultdict[int, dict[int, int]](dict)  # of each two clusters, the links between their members
    for a, b in zip(i, j, strict=True):
        n_links[a][b] = n_links[b][a] = 1
    members = {k: [k] for k in n_links}
    cluster = {k: k for k in n_links}
    for a, b in zip(i, j, strict=True):
        kept, lost = sorted((cluster[a], cluster[b]), key=lambda k: len(members[k]), reverse=True)
        if kept == lost or n_links[kept][lost] < MIN_LINKED_SHARE * len(members[kept]) * len(members[lost]):
            continue
        for k, n in n_links.pop(lost).items():
            del n_links[k][lost]
            if k != kept:
                n_links[kept][k] = n_links[k][kept] = n_links[kept].get(k, 0) + n
        cluster |= dict.fromkeys(members[lost], kept)
        members[kept] += members.pop(lost)
    return {k: lowest for some in members.values() for lowest in (min(some),) for k in some}
