"""thumbnails -> clusters of photos that show the same: resized, re-encoded, brightened, mirrored, a little cropped."""

from collections.abc import Callable, Iterator

import numpy as np

from fieldmark.data.decoded import THUMBNAIL_SIDE

MAX_HAMMING = 10  # bits of 64 in which two dHashes of one photo may differ
MIN_SIMILARITY = 0.85  # of the details of two such photos; see `details`
CROP_FRACTION, MAX_CROP_HAMMING, MIN_CROP_SIMILARITY = 0.95, 16, 0.6
"""One photo may be a crop of the other with this share of its sides: both measures fall, until the crop is undone."""
MAX_CLUSTER_SIZE = 20  # photos: more are hardly copies of one, but a family of look-alikes (MNIST's ones), unless ...
COPY_SIMILARITY = 0.98  # ... they agree by as much as this
N_COMPONENTS = 64  # numbers that stand for the 768 of `details` in the first look at a pair
_ROUNDING = 1e-3  # more than 32-bit sums may be off
_ROWS, _COLUMNS = 512, 4096  # pairs looked at together: bounds the memory, and suits it
_NOISE_FLOOR = 2.0  # grey levels: details below this are noise and count for little


def local_descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 (n, 16, 16, 3) -> float16 (n, 768) of length 1, so that a product of two is their agreement, -1..1.

    Brightness and contrast of a 5 x 5 neighbourhood are taken out: things on the same plain background share its
    shading, not their details. A photo without any detail gives zeros and agrees with nothing.
    """
    pixels = thumbnails.astype(np.float32)
    detail = pixels - _box_mean(pixels)
    detail /= np.sqrt(_box_mean(detail**2).mean(axis=3, keepdims=True)) + _NOISE_FLOOR
    detail = detail.reshape(len(detail), 3 * THUMBNAIL_SIDE**2)
    length = np.linalg.norm(detail, axis=1, keepdims=True)
    return (detail / np.maximum(length, 1e-6)).astype(np.float16)


def cluster_duplicates(first_identical: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """int (n,): for every photo the lowest index of those that show the same, by whatever chain of pairs.

    `same` (n,) is the index of the first equal file, `hashes` uint64 (n, 2) come from `dhash`, `thumbnails` are uint8
    (n, 16, 16, 3), all zero for a photo that is like no other. docs/performance.md says what 100,000 take.
    """
    near_root, copy_root = first_identical.copy(), first_identical.copy()
    for i, j, agreement in _duplicate_pairs(hashes, thumbnails, near_root):
        copies = agreement >= COPY_SIMILARITY
        merge_clusters(near_root, i, j)
        merge_clusters(copy_root, i[copies], j[copies])
    return np.where(
        np.bincount(near_root, minlength=len(near_root))[near_root] > MAX_CLUSTER_SIZE, copy_root, near_root
    )


def _duplicate_pairs(
    hashes: np.ndarray, thumbnails: np.ndarray, root: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of index pairs that show the same, as they are or mirrored, with the agreement of their details.

    Both hashes and details must say so. Of those that dHash alone proposes on TrashNet, whose things lie on plain
    boards, 99.6 % fail the details; so a bound on the agreement, one product of short vectors, is asked first. A pair
    that nearly agrees is looked at once more, each cropped to match the other; not so a photo that nearly agrees with
    many, which is one of a family. Two that whoever takes the pairs has put into one cluster of `joined` already, and a
    large one, are looked at only where they may be copies as they are: to join others again would change nothing. So a
    crop inside a family is not found.
    """
    n_near_misses = np.zeros(len(thumbnails), int)
    basis = _pca_basis(thumbnails)
    projected = _in_batches(lambda some: _project(local_descriptors(some), basis), thumbnails)
    for is_mirrored, view in enumerate((thumbnails, thumbnails[:, :, ::-1])):
        projected_view = (
            _in_batches(lambda some: _project(local_descriptors(some), basis), view) if is_mirrored else projected
        )
        for top in range(0, len(projected), _ROWS):
            for left in range(top, len(projected), _COLUMNS):
                bound = projected[top : top + _ROWS] @ projected_view[left : left + _COLUMNS].T
                candidates = np.flatnonzero(bound >= MIN_CROP_SIMILARITY)  # in two dimensions it takes 50 times as long
                if len(candidates) > MAX_CLUSTER_SIZE * len(bound):  # a family
                    candidates = candidates[bound.ravel()[candidates] >= MIN_SIMILARITY - _ROUNDING]
                    root_i, root_j = root[top + candidates // bound.shape[1]], root[left + candidates % bound.shape[1]]
                    already_joined = (root_i == root_j) & (np.bincount(root)[root_i] > MAX_CLUSTER_SIZE)
                    candidates = candidates[
                        ~already_joined | (bound.ravel()[candidates] >= COPY_SIMILARITY - _ROUNDING)
                    ]
                rows, columns = top + candidates // bound.shape[1], left + candidates % bound.shape[1]
                hamming = np.bitwise_count(hashes[rows, 0] ^ hashes[columns, is_mirrored])
                close = (rows < columns) & (hamming <= MAX_CROP_HAMMING)
                i, j, hamming = rows[close], columns[close], hamming[close]
                similarity = _pair_similarity(i, j, thumbnails, view, lambda some: local_descriptors(some)[:, None])
                crop = (similarity < MIN_SIMILARITY) | (hamming > MAX_HAMMING)
                np.add.at(n_near_misses, i[crop], 1)
                np.add.at(n_near_misses, j[crop], 1)
                retry = np.flatnonzero(
                    crop
                    & (similarity >= MIN_CROP_SIMILARITY)
                    & (n_near_misses[i] + n_near_misses[j] <= MAX_CLUSTER_SIZE)
                )
                crop_of_i = _pair_similarity(i[retry], j[retry], thumbnails, view, _crop_descriptors)
                crop_of_j = _pair_similarity(j[retry], i[retry], view, thumbnails, _crop_descriptors)
                similarity[crop] = 0.0
                similarity[retry] = np.maximum(crop_of_i, crop_of_j)
                is_duplicate = similarity >= MIN_SIMILARITY
                yield i[is_duplicate], j[is_duplicate], similarity[is_duplicate]


def _pair_similarity(
    i: np.ndarray,
    j: np.ndarray,
    left_thumbnails: np.ndarray,
    right_thumbnails: np.ndarray,
    describe: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Of the pairs (i, j) the agreement of the best of the looks (n, ways, 768) at `ones` with `others` as they are."""
    (first, at), (second, to) = (np.unique(side, return_inverse=True) for side in (i, j))
    left, right = describe(left_thumbnails[first]), local_descriptors(right_thumbnails[second])
    parts = [np.empty(0, np.float32)]
    for some in np.array_split(np.arange(len(i)), len(i) // 4000 + 1):
        parts.append(np.einsum("nwd,nd->nw", left[at[some]], right[to[some]], dtype=np.float32).max(1))
    return np.concatenate(parts)


def _crop_descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """Details (n, 9, 768) of what a crop at each corner, side and in the middle leaves of thumbnails (n, 16, 16, 3)."""
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
    """(16, 16): what takes SIDE pixels to SIDE pixels of their part CROPPED from `offset` on, linear in between."""
    at = np.clip(offset + (np.arange(THUMBNAIL_SIDE) + 0.5) * CROP_FRACTION - 0.5, 0, THUMBNAIL_SIDE - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(THUMBNAIL_SIDE))).astype(np.float32)


def _pca_basis(thumbnails: np.ndarray) -> np.ndarray:
    """(768, SHORT) orthonormal: the directions in which the details of some of these photos differ most (PCA)."""
    some = local_descriptors(thumbnails[:: len(thumbnails) // 2000 + 1]).astype(np.float32)
    return np.linalg.eigh(some.T @ some)[1][:, -N_COMPONENTS:]


def _project(full: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Details (n, 768) -> (n, SHORT + 1): their part in the basis, and the length of the rest.

    The product of two is at least that of the details (Cauchy-Schwarz on the rest).
    """
    inside = full.astype(np.float32) @ basis
    rest = np.square(full, dtype=np.float32).sum(1) - np.square(inside).sum(1)
    return np.column_stack([inside, np.sqrt(np.maximum(rest, 0))])


def merge_clusters(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Make one of the clusters of i and j, pair by pair; root[k] is the lowest index of k's cluster, in place."""
    while (apart := root[i] != root[j]).any():
        i, j = i[apart], j[apart]
        np.minimum.at(root, np.maximum(root[i], root[j]), np.minimum(root[i], root[j]))
        while (root != root[root]).any():
            root[:] = root[root]


def _in_batches(function: Callable[[np.ndarray], np.ndarray], thumbnails: np.ndarray) -> np.ndarray:
    """`make` of any number of thumbnails, in bounded memory."""
    return np.concatenate([function(thumbnails[at : at + 1000]) for at in range(0, len(thumbnails) or 1, 1000)])


def _box_mean(images: np.ndarray) -> np.ndarray:
    """The mean of each 5 x 5 neighbourhood of (n, h, w, c), borders repeated."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(padded[:, k : k + images.shape[1]] for k in range(5))
    return sum(rows[:, :, k : k + images.shape[2]] for k in range(5)) / np.float32(25)  # type: ignore[index]
