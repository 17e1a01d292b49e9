"""Near-duplicates: clusters of images that are resized, re-encoded, brightened, mirrored or slightly cropped copies.

Products and X-rays of one kind are all alike, so an image is judged by its own set: two images are near-duplicates if
they are far nearer to each other than to images that resemble them without being copies.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

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
MIN_LINKED_SHARE = 0.5
"""Part of the pairs between two clusters that must be near-duplicates to unite them: no chains of images."""
CROP_FRACTION = 0.95
"""Part of its sides that a crop keeps, if one image may be a crop of the other."""
MAX_CROP_HAMMING = 16
MIN_CROP_SIMILARITY = 0.6
"""Bounds, before the crop is undone, for pairs of which one may be a crop of the other."""
N_COMPONENTS = 64
"""Numbers that stand for the 768 of `local_descriptors` in the upper bound."""
_ROUNDING = 1e-3  # exceeds the error of 32-bit sums
_ROWS, _COLUMNS = 512, 4096  # pairs of a block: bounds the memory
_SAMPLE = 4096  # images that stand for all others in the search for unrelated ones
_NOISE_FLOOR = 2.0  # grey levels: details below this are noise


def local_descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """Contrast-normalised thumbnails: uint8 (n, 16, 16, 3) -> float16 (n, 768) of length 1.

    The product of two is their similarity, -1..1. Brightness and contrast of each 5 x 5 neighbourhood are removed, so
    that objects on one background do not agree by its shading. An image without details gives zeros.
    """
    pixels = thumbnails.astype(np.float32)
    detail = pixels - _box_mean(pixels)
    detail /= np.sqrt(_box_mean(detail**2).mean(axis=3, keepdims=True)) + _NOISE_FLOOR
    detail = detail.reshape(len(detail), 3 * THUMBNAIL_SIDE**2)
    length = np.linalg.norm(detail, axis=1, keepdims=True)
    return (detail / np.maximum(length, 1e-6)).astype(np.float16)


def cluster_duplicates(first_identical: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Clusters of near-duplicates, int (n,): the lowest index of each image's cluster.

    Copies in any set are united as they are found; clusters of them, the most similar first, if `MIN_LINKED_SHARE` of
    the pairs between them are near-duplicates.

    Args:
        first_identical: index of the first file with equal bytes, (n,).
        hashes: from `dhash`, uint64 (n, 2).
        thumbnails: uint8 (n, 16, 16, 3), all zero for an image that is to stay alone.

    The time grows with the square of n; docs/performance.md has it for 100,000 images.
    """
    root = first_identical.copy()
    links: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i, j, similarity in _duplicate_pairs(hashes, thumbnails, root):
        is_copy = similarity >= COPY_SIMILARITY
        merge_clusters(root, i[is_copy], j[is_copy])
        links.append((i[~is_copy], j[~is_copy], similarity[~is_copy]))
    if links:
        i, j, similarity = map(np.concatenate, zip(*links, strict=True))
        order = np.argsort(-similarity, kind="stable")
        _link_clusters(root, root[i[order]], root[j[order]])
    return root


def _link_clusters(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Unite clusters in place, in the order of the pairs (i, j) of their lowest indices, by `MIN_LINKED_SHARE`."""
    pairs = [(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a != b]
    linked, members = defaultdict[int, set[int]](set), {k: {k} for pair in pairs for k in pair}
    for a, b in pairs:
        linked[a].add(b)
        linked[b].add(a)
    cluster = {k: k for k in members}
    for a, b in pairs:
        first, second = sorted((cluster[a], cluster[b]))
        if first == second:
            continue
        n_links = sum(len(linked[k] & members[first]) for k in members[second])
        if n_links >= MIN_LINKED_SHARE * len(members[first]) * len(members[second]):
            members[first] |= members[second]
            cluster |= dict.fromkeys(members.pop(second), first)
    root[:] = [cluster.get(k, k) for k in root.tolist()]


def _duplicate_pairs(
    hashes: np.ndarray, thumbnails: np.ndarray, root: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of index pairs (i, j) that show the same, as they are or mirrored, with their similarity.

    Both dHash and descriptors must agree, the latter by the larger of both images' `_least_similarities`. On TrashNet,
    whose objects lie on plain boards, 99.6 % of the pairs proposed by dHash fail the descriptors; so an upper bound on
    the similarity, a product of short vectors, is tested first. A pair that nearly agrees is compared again, each image
    cropped to match the other, unless an image nearly agrees with many others, as in a group of similar images.

    `root` (n,) holds the clusters of copies so far, which the caller updates after each block: among many similar
    images those of one cluster are not compared again.
    """
    n_near_misses = np.zeros(len(thumbnails), int)
    basis = _pca_basis(thumbnails)
    projected = _in_batches(lambda some: _project(local_descriptors(some), basis), thumbnails)
    least = _least_similarities(projected)
    for is_mirrored, view in enumerate((thumbnails, thumbnails[:, :, ::-1])):
        projected_view = (
            _in_batches(lambda some: _project(local_descriptors(some), basis), view) if is_mirrored else projected
        )
        for top in range(0, len(projected), _ROWS):
            for left in range(top, len(projected), _COLUMNS):
                rows, columns = _candidate_pairs(projected, projected_view, top, left, root, least)
                hamming = np.bitwise_count(hashes[rows, 0] ^ hashes[columns, is_mirrored])
                close = (rows < columns) & (hamming <= MAX_CROP_HAMMING)
                i, j = rows[close], columns[close]
                similarity = _similarity(i, j, hamming[close], thumbnails, view, n_near_misses, least)
                is_duplicate = similarity >= np.maximum(least[i], least[j])
                yield i[is_duplicate], j[is_duplicate], similarity[is_duplicate]


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
    unrelated = np.concatenate(
        [np.partition(inside[top : top + _ROWS] @ sample.T, -rank, axis=1)[:, -rank] for top in range(0, n, _ROWS)]
    )
    return np.clip(1 - RELATIVE_DISTANCE**2 * (1 - unrelated), MIN_SIMILARITY, COPY_SIMILARITY)


def _candidate_pairs(
    projected: np.ndarray, projected_view: np.ndarray, top: int, left: int, root: np.ndarray, least: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of one block of rows and columns whose similarity may be large enough, by its upper bound."""
    bound = projected[top : top + _ROWS] @ projected_view[left : left + _COLUMNS].T
    candidates = np.flatnonzero(
        bound >= MIN_CROP_SIMILARITY
    )  # of the flat array: 50 times as fast as in two dimensions
    rows, columns = top + candidates // bound.shape[1], left + candidates % bound.shape[1]
    if len(candidates) > MAX_SIBLINGS * len(bound):  # a group of similar images, in which crops are not looked for
        is_near = bound.ravel()[candidates] >= np.maximum(least[rows], least[columns]) - _ROUNDING
        rows, columns = rows[is_near], columns[is_near]
        is_apart = root[rows] != root[columns]
        rows, columns = rows[is_apart], columns[is_apart]
    return rows, columns


def _similarity(
    i: np.ndarray,
    j: np.ndarray,
    hamming: np.ndarray,
    thumbnails: np.ndarray,
    view: np.ndarray,
    n_near_misses: np.ndarray,
    least: np.ndarray,
) -> np.ndarray:
    """The similarity of the pairs (i, j), after cropping where they only nearly agree; 0 if that does not help.

    `n_near_misses` (n,) counts the pairs of each image that nearly agree, and is updated.
    """
    similarity = _pair_similarity(i, j, thumbnails, view, lambda some: local_descriptors(some)[:, None])
    is_near_miss = (similarity < np.maximum(least[i], least[j])) | (hamming > MAX_HAMMING)
    np.add.at(n_near_misses, i[is_near_miss], 1)
    np.add.at(n_near_misses, j[is_near_miss], 1)
    is_single = n_near_misses[i] + n_near_misses[j] <= MAX_SIBLINGS
    retry = np.flatnonzero(is_near_miss & (similarity >= MIN_CROP_SIMILARITY) & is_single)
    crop_of_i = _pair_similarity(i[retry], j[retry], thumbnails, view, _crop_descriptors)
    crop_of_j = _pair_similarity(j[retry], i[retry], view, thumbnails, _crop_descriptors)
    similarity[is_near_miss] = 0.0
    similarity[retry] = np.maximum(crop_of_i, crop_of_j)
    return similarity


def _pair_similarity(
    i: np.ndarray,
    j: np.ndarray,
    left_thumbnails: np.ndarray,
    right_thumbnails: np.ndarray,
    describe: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Similarity of the pairs (i, j): the best of the descriptors (n, views, 768) of the left images with the right."""
    (first, at), (second, to) = (np.unique(side, return_inverse=True) for side in (i, j))
    left, right = describe(left_thumbnails[first]), local_descriptors(right_thumbnails[second])
    parts = [np.empty(0, np.float32)]
    for some in np.array_split(np.arange(len(i)), len(i) // 4000 + 1):
        parts.append(np.einsum("nwd,nd->nw", left[at[some]], right[to[some]], dtype=np.float32).max(1))
    return np.concatenate(parts)


def _crop_descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """Descriptors (n, 9, 768) of thumbnails cropped at each corner, each side and the centre."""
    spare = THUMBNAIL_SIDE * (1 - CROP_FRACTION)
    resize_matrices = [_crop_resize_matrix(offset) for offset in (0.0, spare / 2, spare)]
    pixels = thumbnails.astype(np.float32)
    crops = [
        np.einsum("yh,nhwc,xw->nyxc", rows, pixels, columns, optimize=True)
        for rows in resize_matrices
        for columns in resize_matrices
    ]
    return np.stack([local_descriptors(crop) for crop in crops], axis=1)


def _crop_resize_matrix(offset: float) -> np.ndarray:
    """The matrix (16, 16) that crops `CROP_FRACTION` of a side from `offset` on and resizes it, linearly."""
    at = np.clip(offset + (np.arange(THUMBNAIL_SIDE) + 0.5) * CROP_FRACTION - 0.5, 0, THUMBNAIL_SIDE - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(THUMBNAIL_SIDE))).astype(np.float32)


def _pca_basis(thumbnails: np.ndarray) -> np.ndarray:
    """An orthonormal basis (768, N_COMPONENTS) of the principal components of a sample of the descriptors."""
    some = local_descriptors(thumbnails[:: len(thumbnails) // 2000 + 1]).astype(np.float32)
    return np.linalg.eigh(some.T @ some)[1][:, -N_COMPONENTS:]


def _project(full: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Descriptors (n, 768) -> (n, N_COMPONENTS + 1): their part in the basis, and the length of the rest.

    The product of two is an upper bound on that of the descriptors (Cauchy-Schwarz on the rest).
    """
    inside = full.astype(np.float32) @ basis
    rest = np.square(full, dtype=np.float32).sum(1) - np.square(inside).sum(1)
    return np.column_stack([inside, np.sqrt(np.maximum(rest, 0))])


def merge_clusters(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Unite the clusters of each pair (i, j) in place; root[k] is the lowest index of k's cluster."""
    while (apart := root[i] != root[j]).any():
        i, j = i[apart], j[apart]
        np.minimum.at(root, np.maximum(root[i], root[j]), np.minimum(root[i], root[j]))
        while (root != root[root]).any():
            root[:] = root[root]


def _in_batches(function: Callable[[np.ndarray], np.ndarray], thumbnails: np.ndarray) -> np.ndarray:
    """Apply the function to any number of thumbnails in bounded memory."""
    return np.concatenate([function(thumbnails[at : at + 1000]) for at in range(0, len(thumbnails) or 1, 1000)])


def _box_mean(images: np.ndarray) -> np.ndarray:
    """The mean of each 5 x 5 neighbourhood of (n, h, w, c), borders repeated."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(padded[:, k : k + images.shape[1]] for k in range(5))
    return sum(rows[:, :, k : k + images.shape[2]] for k in range(5)) / np.float32(25)  # type: ignore[index]
