"""Near-duplicates: clusters of images that are resized, re-encoded, brightened, mirrored or slightly cropped copies.

Products and X-rays of one kind are all alike, so an image is judged by its own set: two images are near-duplicates if
they are far nearer to each other than to images that resemble them without being copies.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fieldmark.audit.clusters import find_roots, flatten, link_clusters, merge_clusters
from fieldmark.audit.descriptors import crop_descriptors, local_descriptors, pair_similarity, project_views
from fieldmark.audit.search_trees import tree_leaves
from fieldmark.data.decoded import THUMBNAIL_SIDE

MAX_HAMMING = 10
"""Bits of 64 in which the dHashes of two near-duplicates may differ."""
MIN_SIMILARITY = 0.85
"""Least product of the `local_descriptors` of two near-duplicates, in a set of images that differ."""
COPY_SIMILARITY = 0.995
"""Similarity from which on two images are copies in any set: resizing and JPEG leave this much."""
MAX_SIBLINGS = 20
"""Images of the same thing that one image may have: the most similar image beyond them stands for unrelated ones."""
RELATIVE_DISTANCE = 0.5
"""Largest distance of two near-duplicates, in distances of unrelated images."""
MAX_CROP_HAMMING = 16
MIN_CROP_SIMILARITY = 0.6
"""Bounds, before the crop is undone, for pairs of which one may be a crop of the other."""
MAX_COPIES = 5
"""Images that one photo and its resized or re-encoded copies may be: more that agree as well are frames of a scene."""
EXHAUSTIVE_MAX = 100_000
"""Number of distinct images up to which all pairs are compared; beyond, those that share a leaf of a search tree."""
N_TREES, N_UNRELATED_TREES = 8, 3
"""Search trees for near-duplicates, and those of them that are searched for unrelated images; docs/lab/audit.md has
the part of planted copies that they find."""
_ROUNDING = 1e-3  # exceeds the error of 32-bit sums
_ROWS, _COLUMNS = 512, 4096  # pairs of a block: bounds the memory
_SAMPLE = 4096  # images that stand for all others in the search for unrelated ones


def cluster_duplicates(first_identical: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Clusters of near-duplicates, int (n,): the lowest index of each image's cluster.

    Copies in any set are united as they are found; clusters of them, the most similar first, if half of the pairs
    between them are near-duplicates (`link_clusters`).

    Args:
        first_identical: index of the first file with equal bytes, (n,).
        hashes: from `dhash`, uint64 (n, 2).
        thumbnails: uint8 (n, 16, 16, 3), all zero for an image that is to stay alone.

    The time grows with the square of the number of distinct images up to `EXHAUSTIVE_MAX` of them, and in proportion to
    their number beyond, where some near-duplicates are missed; docs/lab/audit.md has both.
    """
    root = _first_equal(first_identical, hashes, thumbnails)
    links = _Links(len(root))
    for i, j, similarity in _duplicate_pairs(hashes, thumbnails, root):
        is_copy = similarity >= COPY_SIMILARITY
        merge_clusters(root, i[is_copy], j[is_copy])
        links.add(i[~is_copy], j[~is_copy], similarity[~is_copy])
    flatten(root)
    i, j = links.most_similar_first()
    link_clusters(root, root[i], root[j])
    return root


def cluster_copies(
    near_root: np.ndarray, first_identical: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray
) -> np.ndarray:
    """Clusters of copies of one photo, int (n,), which are parts of the clusters of near-duplicates `near_root`.

    Copies have equal bytes or pixels, or agree by `COPY_SIMILARITY` in a cluster of at most `MAX_COPIES` distinct
    images: the frames of a fixed camera agree as well as copies do, but there are more of them.
    """
    root = _first_equal(first_identical, hashes, thumbnails)
    distinct = np.flatnonzero(root == np.arange(len(root)))
    distinct = distinct[np.argsort(near_root[distinct], kind="stable")]
    _, first, size = np.unique(near_root[distinct], return_index=True, return_counts=True)
    for step in range(1, MAX_COPIES):  # all pairs of each cluster: of neighbours in it, of the ones after, ...
        small = (size > step) & (size <= MAX_COPIES)
        at = np.concatenate(
            [np.arange(f, f + n - step) for f, n in zip(first[small], size[small], strict=True)] or [[]]
        )
        for some in np.array_split(at.astype(int), len(at) // 4000 + 1):
            i, j = distinct[some], distinct[some + step]
            is_copy = np.zeros(len(some), bool)
            for is_mirrored, view in enumerate((thumbnails, thumbnails[:, :, ::-1])):
                hamming = np.bitwise_count(hashes[i, 0] ^ hashes[j, is_mirrored])
                similarity = pair_similarity(i, j, thumbnails, view, lambda each: local_descriptors(each)[:, None])
                is_copy |= (hamming <= MAX_HAMMING) & (similarity >= COPY_SIMILARITY)
            merge_clusters(root, i[is_copy], j[is_copy])
    flatten(root)
    return root


def _first_equal(first_identical: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The index of the first image with equal bytes or an equal hash and thumbnail, int (n,).

    An image without details, which agrees with none, equals its own bytes only.
    """
    root, seen = first_identical.copy(), dict[bytes, int]()
    for i in _searched(first_identical, thumbnails).tolist():
        key = hashlib.blake2b(thumbnails[i].tobytes() + hashes[i].tobytes(), digest_size=16).digest()
        root[i] = seen.setdefault(key, i)
    flatten(root)
    return root


def _searched(root: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The first image of each cluster, if it has details."""
    distinct = np.flatnonzero(root == np.arange(len(root)))
    has_details = [
        np.ptp(thumbnails[some].reshape(-1, THUMBNAIL_SIDE**2, 3), axis=1).any(1)
        for some in np.array_split(distinct, len(distinct) // 10_000 + 1)
    ]
    return distinct[np.concatenate(has_details)]


class _Links:
    """Pairs of near-duplicates that are no copies, each once if there are many."""

    MAX_BUFFERED = 2_000_000

    def __init__(self, n: int) -> None:
        self.n, self.n_buffered = n, 0
        self.pairs, self.similarities = [np.empty(0, np.int64)], [np.empty(0, np.float32)]

    def add(self, i: np.ndarray, j: np.ndarray, similarity: np.ndarray) -> None:
        self.pairs.append(i * self.n + j)
        self.similarities.append(similarity)
        self.n_buffered += len(i)
        if self.n_buffered > self.MAX_BUFFERED:
            pairs, first = np.unique(np.concatenate(self.pairs), return_index=True)
            self.pairs, self.similarities = [pairs], [np.concatenate(self.similarities)[first]]
            self.n_buffered = 0

    def most_similar_first(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs (i, j)."""
        order = np.argsort(-np.concatenate(self.similarities), kind="stable")
        pairs = np.concatenate(self.pairs)[order]
        return pairs // max(1, self.n), pairs % max(1, self.n)


def _duplicate_pairs(
    hashes: np.ndarray, thumbnails: np.ndarray, root: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of index pairs (i, j) that show the same, as they are or mirrored, with their similarity.

    Both dHash and descriptors must agree, the latter by the larger of both images' `_least_similarities`. On TrashNet,
    whose objects lie on plain boards, 99.6 % of the pairs proposed by dHash fail the descriptors; so an upper bound on
    the similarity, a product of short vectors, is tested first. A pair that nearly agrees is compared again, each image
    cropped to match the other, unless an image nearly agrees with many others, as in a group of similar images.

    `root` (n,) holds the clusters of copies so far, of which the first images are compared. The caller updates it after
    each block: among many similar images those of one cluster are not compared again.
    """
    searched = _searched(root, thumbnails)
    views, projected = (thumbnails, thumbnails[:, :, ::-1]), project_views(thumbnails, searched)
    if len(searched) <= EXHAUSTIVE_MAX:
        least = _least_similarities(projected[0])
        batches = _candidates(_all_pairs(len(searched)), projected, least, hashes, searched, root)
    else:
        least, joined = _least_similarities_in_leaves(projected[0]), _JoinedCandidates(len(root))
        trees = (_pairs_in_leaves(projected, seed) for seed in range(N_TREES))
        batches = (
            batch for tree in trees for batch in joined.add(_candidates(tree, projected, least, hashes, searched, root))
        )
    n_near_misses = np.zeros(len(root), int)
    for batch in batches:
        similarity = _similarity(batch, views[0], views[batch.is_mirrored], n_near_misses)
        found = similarity >= batch.limit
        yield batch.i[found], batch.j[found], similarity[found]


class _Candidates(NamedTuple):
    """Pairs (i, j) that may be near-duplicates.

    Attributes:
        hamming: bits in which their hashes differ.
        limit: the similarity that they must have.
        is_mirrored: 1 if the second images are mirrored, else 0.
        is_round: whether the next pairs depend on which of these are copies.
    """

    i: np.ndarray
    j: np.ndarray
    hamming: np.ndarray
    limit: np.ndarray
    is_mirrored: int
    is_round: bool

    def select(self, rows: np.ndarray) -> "_Candidates":
        arrays = (self.i[rows], self.j[rows], self.hamming[rows], self.limit[rows])
        return _Candidates(*arrays, self.is_mirrored, self.is_round)


def _candidates(
    neighbourhoods: "_Neighbourhoods",
    projected: tuple[np.ndarray, np.ndarray],
    least: np.ndarray,
    hashes: np.ndarray,
    searched: np.ndarray,
    root: np.ndarray,
) -> Iterator[_Candidates]:
    """The pairs of each block whose hash and upper bound agree; of a group of similar images only those still apart."""
    for is_mirrored, rows, columns in neighbourhoods:
        roots = find_roots(root, searched[rows]), find_roots(root, searched[columns])
        if roots[0].min() == roots[0].max() == roots[1].min() == roots[1].max():
            continue
        bound = _take(projected[0], rows) @ _take(projected[is_mirrored], columns).T
        a, b, is_dense = _candidate_pairs(bound, rows, columns, least, *roots)
        i, j = searched[a], searched[b]
        hamming = np.bitwise_count(hashes[i, 0] ^ hashes[j, is_mirrored])
        close = np.flatnonzero((i < j) & (hamming <= MAX_CROP_HAMMING))
        is_round = len(close) > MAX_SIBLINGS * len(columns)
        pairs = _Candidates(i, j, hamming, np.maximum(least[a], least[b]), is_mirrored, is_round)
        for some in _rounds(j, close) if is_round else [close]:
            if is_dense:
                some = some[find_roots(root, i[some]) != find_roots(root, j[some])]
            yield pairs.select(some)


class _JoinedCandidates:
    """Joins the few candidates of many leaves, and leaves out those that another tree has proposed."""

    BATCH, MAX_KNOWN = 4096, 30_000_000

    def __init__(self, n: int) -> None:
        self.n, self.known = n, np.empty(0, np.int64)

    def add(self, candidates: Iterable[_Candidates]) -> Iterator[_Candidates]:
        """The candidates of one tree."""
        waiting, n_waiting, keys = (list[_Candidates](), list[_Candidates]()), [0, 0], [self.known]
        for some in candidates:
            if some.is_round:
                yield some
                continue
            key = 2 * (some.i * self.n + some.j) + some.is_mirrored
            at = np.searchsorted(self.known, key)
            is_new = at == len(self.known)
            is_new[~is_new] = self.known[at[~is_new]] != key[~is_new]
            keys.append(key[is_new])
            batch = waiting[some.is_mirrored]
            batch.append(some.select(np.flatnonzero(is_new)))
            n_waiting[some.is_mirrored] += int(is_new.sum())
            if n_waiting[some.is_mirrored] >= self.BATCH:
                yield _join(batch)
                batch.clear()
                n_waiting[some.is_mirrored] = 0
        yield from (_join(batch) for batch in waiting if batch)
        if len(self.known) < self.MAX_KNOWN:
            self.known = np.sort(np.concatenate(keys))


def _join(batch: Sequence[_Candidates]) -> _Candidates:
    i, j, hamming, limit = (np.concatenate(parts) for parts in list(zip(*batch, strict=True))[:4])
    return _Candidates(i, j, hamming, limit, batch[0].is_mirrored, False)


_Neighbourhoods = Iterator[tuple[int, np.ndarray, np.ndarray]]
"""Whether the second image is mirrored; ascending indices of first images, of second ones."""


def _all_pairs(n: int) -> _Neighbourhoods:
    """All pairs of n images, in blocks."""
    rows = np.arange(n)
    return (block for is_mirrored in (0, 1) for block in _blocks(is_mirrored, rows, rows))


def _pairs_in_leaves(projected: tuple[np.ndarray, np.ndarray], seed: int) -> _Neighbourhoods:
    """The pairs in each leaf of a tree, in blocks."""
    return (
        block
        for rows, mirrored_rows in tree_leaves(*projected, seed)
        for is_mirrored, columns in enumerate((rows, mirrored_rows))
        for block in _blocks(is_mirrored, rows, columns)
    )


def _blocks(is_mirrored: int, rows: np.ndarray, columns: np.ndarray) -> _Neighbourhoods:
    """Blocks of bounded size that hold all pairs of a row and a higher column."""
    for top in range(0, len(rows), _ROWS):
        for left in range(int(np.searchsorted(columns, rows[top])), len(columns), _COLUMNS):
            yield is_mirrored, rows[top : top + _ROWS], columns[left : left + _COLUMNS]


def _rounds(columns: np.ndarray, pairs: np.ndarray) -> Iterator[np.ndarray]:
    """The pairs in rounds: one of each column, two more, four more, ...

    Among copies of one photo, the first round unites all columns, and nothing is left to compare in the others.
    """
    order = np.argsort(columns[pairs], kind="stable")
    ascending = columns[pairs][order]
    rank = np.empty(len(pairs), int)
    rank[order] = np.arange(len(pairs)) - np.searchsorted(ascending, ascending)
    which = np.log2(rank + 1).astype(int)
    for k in range(int(which.max(initial=-1)) + 1):
        yield pairs[which == k]


def _least_similarities(projected: np.ndarray) -> np.ndarray:
    """The similarity that each image (n,) must have with its near-duplicates: between both bounds, by its set.

    The distance of two descriptors is sqrt(2 - 2 * similarity). That of unrelated images is the distance of the most
    similar image beyond `MAX_SIBLINGS`, in a sample and in the basis: outside of it, unrelated images do not agree.
    """
    n = len(projected)
    if n <= MAX_SIBLINGS + 1:
        return np.full(n, MIN_SIMILARITY, np.float32)
    inside = projected[:, :-1]
    sample = inside[:: -(-n // _SAMPLE)]
    rank = 1 + max(
        2, round(MAX_SIBLINGS * len(sample) / n)
    )  # 1: the image itself; 2: it and one copy may be in the sample
    return _bounded(
        np.concatenate([_nth_largest(inside[top : top + _ROWS], sample, rank) for top in range(0, n, _ROWS)])
    )


def _least_similarities_in_leaves(projected: np.ndarray) -> np.ndarray:
    """The same as `_least_similarities` among the images of the same leaves, where the most similar ones are."""
    inside, unrelated = projected[:, :-1], np.full(len(projected), -1, np.float32)
    for seed in range(N_UNRELATED_TREES):
        for rows, _ in tree_leaves(projected, projected, seed):
            some = inside[rows]
            unrelated[rows] = np.maximum(unrelated[rows], _nth_largest(some, some, MAX_SIBLINGS + 1))
    return _bounded(unrelated)


def _nth_largest(some: np.ndarray, others: np.ndarray, n: int) -> np.ndarray:
    """The n-th largest product of each vector with others, or the least if there are fewer."""
    n = min(n, len(others))
    return np.partition(some @ others.T, -n, axis=1)[:, -n].copy()  # a view would keep all products


def _bounded(unrelated: np.ndarray) -> np.ndarray:
    """The least similarity of near-duplicates by that of unrelated images."""
    return np.clip(1 - RELATIVE_DISTANCE**2 * (1 - unrelated), MIN_SIMILARITY, COPY_SIMILARITY)


def _take(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The vectors of ascending rows, without a copy if no row is left out."""
    return vectors[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] + 1 == len(rows) else vectors[rows]


def _candidate_pairs(
    bound: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    least: np.ndarray,
    row_roots: np.ndarray,
    column_roots: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The pairs of one block of rows and columns whose similarity may be large enough, by its upper bound.

    And whether it is dense: a group of similar images, in which crops are not looked for.
    """
    is_likely = bound >= MIN_CROP_SIMILARITY
    is_dense = bool(np.count_nonzero(is_likely) > MAX_SIBLINGS * len(bound))
    if is_dense:
        is_likely = bound >= least[rows][:, None] - _ROUNDING
    candidates = np.flatnonzero(is_likely)  # of the flat array: 50 times as fast as in two dimensions
    if is_dense:
        is_apart = row_roots[candidates // bound.shape[1]] != column_roots[candidates % bound.shape[1]]
        candidates = candidates[is_apart]
    a, b = rows[candidates // bound.shape[1]], columns[candidates % bound.shape[1]]
    if is_dense:
        is_near = bound.ravel()[candidates] >= least[b] - _ROUNDING
        a, b = a[is_near], b[is_near]
    return a, b, is_dense


def _similarity(pairs: _Candidates, thumbnails: np.ndarray, view: np.ndarray, n_near_misses: np.ndarray) -> np.ndarray:
    """The similarity of the pairs, after cropping where they only nearly agree; 0 if that does not help.

    `n_near_misses` (n,) counts the pairs of each image that nearly agree, and is updated.
    """
    i, j = pairs.i, pairs.j
    similarity = pair_similarity(i, j, thumbnails, view, lambda some: local_descriptors(some)[:, None])
    is_near_miss = (similarity < pairs.limit) | (pairs.hamming > MAX_HAMMING)
    np.add.at(n_near_misses, i[is_near_miss], 1)
    np.add.at(n_near_misses, j[is_near_miss], 1)
    is_single = n_near_misses[i] + n_near_misses[j] <= MAX_SIBLINGS
    retry = np.flatnonzero(is_near_miss & (similarity >= MIN_CROP_SIMILARITY) & is_single)
    crop_of_i = pair_similarity(i[retry], j[retry], thumbnails, view, crop_descriptors)
    crop_of_j = pair_similarity(j[retry], i[retry], view, thumbnails, crop_descriptors)
    similarity[is_near_miss] = 0.0
    similarity[retry] = np.maximum(crop_of_i, crop_of_j)
    return similarity
