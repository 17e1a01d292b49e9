"""Thumbnails -> descriptors of what they show, and the similarity of two of them, which a crop may be allowed for."""

from collections.abc import Callable

import numpy as np

from fieldmark.data.decoded import THUMBNAIL_SIDE

CROP_FRACTION = 0.95
"""Part of its sides that a crop keeps, if one image may be a crop of the other."""
N_COMPONENTS = 64
"""Numbers that stand for the 768 of `local_descriptors` in the upper bound."""
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


def pair_similarity(
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


def crop_descriptors(thumbnails: np.ndarray) -> np.ndarray:
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


def project_views(thumbnails: np.ndarray, searched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the images `searched` and of their mirror images the descriptors in a basis, float32 (n, N_COMPONENTS + 1).

    The basis are the principal components of a sample; the last number is the length of the rest. The product of two is
    an upper bound on that of the descriptors (Cauchy-Schwarz on the rest).
    """
    sample = local_descriptors(thumbnails[:: len(thumbnails) // 2000 + 1]).astype(np.float32)
    basis = np.linalg.eigh(sample.T @ sample)[1][:, -N_COMPONENTS:]
    mirrored_basis = basis.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3, -1)[:, ::-1].reshape(basis.shape)
    projected = np.empty((2, len(searched), N_COMPONENTS + 1), np.float32)
    for at in range(0, len(searched), 1000):
        full = local_descriptors(thumbnails[searched[at : at + 1000]]).astype(np.float32)
        for out, one in zip(projected[:, at : at + 1000], (basis, mirrored_basis), strict=True):
            inside = full @ one
            rest = np.square(full).sum(1) - np.square(inside).sum(1)
            out[:] = np.column_stack([inside, np.sqrt(np.maximum(rest, 0))])
    return projected[0], projected[1]


def _box_mean(images: np.ndarray) -> np.ndarray:
    """The mean of each 5 x 5 neighbourhood of (n, h, w, c), borders repeated."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(padded[:, k : k + images.shape[1]] for k in range(5))
    return sum(rows[:, :, k : k + images.shape[2]] for k in range(5)) / np.float32(25)  # type: ignore[index]
