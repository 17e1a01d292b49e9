"""thumbnails -> clusters of photos that show the same: resized, re-encoded, brightened, mirrored, a little cropped."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SIDE = 16  # pixels of a thumbnail
HAMMING = 10  # bits of 64 in which two dHashes of one photo may differ
AGREEMENT = 0.85  # of the details of two such photos; see `details`
CROPPED, CROPPED_HAMMING, CROPPED_AGREEMENT = 0.95, 16, 0.6
"""One photo may be a crop of the other with this share of its sides: both measures fall, until the crop is undone."""
LARGE = 20  # photos: more are hardly copies of one, but a family of look-alikes (MNIST's ones), unless ...
COPIES = 0.98  # ... they agree by as much as this
SHORT = 64  # numbers that stand for the 768 of `details` in the first look at a pair
_ROUNDING = 1e-3  # more than 32-bit sums may be off
_ROWS, _COLUMNS = 512, 4096  # pairs looked at together: bounds the memory, and suits it
_FLAT = 2.0  # grey levels: details below this are noise and count for little


def dhash(image: Image.Image) -> tuple[int, int]:
    """The 64-bit difference hash of an RGB image, and that of its mirror image.

    A bit says whether a pixel of the grey 9 x 8 thumbnail is darker than its right neighbour (N. Krawetz, "Kind of
    Like That", 2013).
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    plain, mirrored = (np.packbits(side[:, 1:] > side[:, :-1]).tobytes() for side in (grey, grey[:, ::-1]))
    return int.from_bytes(plain, "big"), int.from_bytes(mirrored, "big")


def thumbnail(image: Image.Image) -> np.ndarray:
    """uint8 (16, 16, 3): what `details` compares."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def details(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 (n, 16, 16, 3) -> float16 (n, 768) of length 1, so that a product of two is their agreement, -1..1.

    Brightness and contrast of a 5 x 5 neighbourhood are taken out: things on the same plain background share its
    shading, not their details. A photo without any detail gives zeros and agrees with nothing.
    """
    pixels = thumbnails.astype(np.float32)
    detail = pixels - _mean5(pixels)
    detail /= np.sqrt(_mean5(detail**2).mean(axis=3, keepdims=True)) + _FLAT
    detail = detail.reshape(len(detail), 3 * SIDE**2)
    length = np.linalg.norm(detail, axis=1, keepdims=True)
    return (detail / np.maximum(length, 1e-6)).astype(np.float16)


def clusters(same: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """int (n,): for every photo the lowest index of those that show the same, by whatever chain of pairs.

    `same` (n,) is the index of the first equal file, `hashes` uint64 (n, 2) come from `dhash`, `thumbnails` are uint8
    (n, 16, 16, 3), all zero for a photo that is like no other. docs/performance.md says what 100,000 take.
    """
    loose, tight = same.copy(), same.copy()
    for i, j, agreement in _pairs(hashes, thumbnails, loose):
        copies = agreement >= COPIES
        join(loose, i, j)
        join(tight, i[copies], j[copies])
    return np.where(np.bincount(loose, minlength=len(loose))[loose] > LARGE, tight, loose)


def _pairs(
    hashes: np.ndarray, thumbnails: np.ndarray, joined: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of index pairs that show the same, as they are or mirrored, with the agreement of their details.

    Both hashes and details must say so. Of those that dHash alone proposes on TrashNet, whose things lie on plain
    boards, 99.6 % fail the details; so a bound on the agreement, one product of short vectors, is asked first. A pair
    that nearly agrees is looked at once more, each cropped to match the other; not so a photo that nearly agrees with
    many, which is one of a family. Two that whoever takes the pairs has put into one cluster of `joined` already, and a
    large one, are looked at only where they may be copies as they are: to join others again would change nothing. So a
    crop inside a family is not found.
    """
    tried = np.zeros(len(thumbnails), int)
    basis = _basis(thumbnails)
    here = _in_steps(lambda some: _short(details(some), basis), thumbnails)
    for turned, seen in enumerate((thumbnails, thumbnails[:, :, ::-1])):
        there = _in_steps(lambda some: _short(details(some), basis), seen) if turned else here
        for top in range(0, len(here), _ROWS):
            for left in range(top, len(here), _COLUMNS):
                bound = here[top : top + _ROWS] @ there[left : left + _COLUMNS].T
                found = np.flatnonzero(bound >= CROPPED_AGREEMENT)  # in two dimensions it takes 50 times as long
                if len(found) > LARGE * len(bound):  # a family
                    found = found[bound.ravel()[found] >= AGREEMENT - _ROUNDING]
                    one, other = joined[top + found // bound.shape[1]], joined[left + found % bound.shape[1]]
                    known = (one == other) & (np.bincount(joined)[one] > LARGE)
                    found = found[~known | (bound.ravel()[found] >= COPIES - _ROUNDING)]
                rows, columns = top + found // bound.shape[1], left + found % bound.shape[1]
                apart = np.bitwise_count(hashes[rows, 0] ^ hashes[columns, turned])
                close = (rows < columns) & (apart <= CROPPED_HAMMING)
                i, j, apart = rows[close], columns[close], apart[close]
                agreement = _agreement(i, j, thumbnails, seen, lambda some: details(some)[:, None])
                crop = (agreement < AGREEMENT) | (apart > HAMMING)
                np.add.at(tried, i[crop], 1)
                np.add.at(tried, j[crop], 1)
                again = np.flatnonzero(crop & (agreement >= CROPPED_AGREEMENT) & (tried[i] + tried[j] <= LARGE))
                undone = _agreement(i[again], j[again], thumbnails, seen, _cropped)
                back = _agreement(j[again], i[again], seen, thumbnails, _cropped)
                agreement[crop] = 0.0
                agreement[again] = np.maximum(undone, back)
                alike = agreement >= AGREEMENT
                yield i[alike], j[alike], agreement[alike]


def _agreement(
    i: np.ndarray, j: np.ndarray, ones: np.ndarray, others: np.ndarray, looks: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Of the pairs (i, j) the agreement of the best of the looks (n, ways, 768) at `ones` with `others` as they are."""
    (first, at), (second, to) = (np.unique(side, return_inverse=True) for side in (i, j))
    one, other = looks(ones[first]), details(others[second])
    parts = [np.empty(0, np.float32)]
    for some in np.array_split(np.arange(len(i)), len(i) // 4000 + 1):
        parts.append(np.einsum("nwd,nd->nw", one[at[some]], other[to[some]], dtype=np.float32).max(1))
    return np.concatenate(parts)


def _cropped(thumbnails: np.ndarray) -> np.ndarray:
    """Details (n, 9, 768) of what a crop at each corner, side and in the middle leaves of thumbnails (n, 16, 16, 3)."""
    spare = SIDE * (1 - CROPPED)
    ways = [_resampled(offset) for offset in (0.0, spare / 2, spare)]
    pixels = thumbnails.astype(np.float32)
    crops = [np.einsum("yh,nhwc,xw->nyxc", rows, pixels, columns, optimize=True) for rows in ways for columns in ways]
    return np.stack([details(crop) for crop in crops], axis=1)


def _resampled(offset: float) -> np.ndarray:
    """(16, 16): what takes SIDE pixels to SIDE pixels of their part CROPPED from `offset` on, linear in between."""
    at = np.clip(offset + (np.arange(SIDE) + 0.5) * CROPPED - 0.5, 0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(SIDE))).astype(np.float32)


def _basis(thumbnails: np.ndarray) -> np.ndarray:
    """(768, SHORT) orthonormal: the directions in which the details of some of these photos differ most (PCA)."""
    some = details(thumbnails[:: len(thumbnails) // 2000 + 1]).astype(np.float32)
    return np.linalg.eigh(some.T @ some)[1][:, -SHORT:]


def _short(full: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Details (n, 768) -> (n, SHORT + 1): their part in the basis, and the length of the rest.

    The product of two is at least that of the details (Cauchy-Schwarz on the rest).
    """
    inside = full.astype(np.float32) @ basis
    rest = np.square(full, dtype=np.float32).sum(1) - np.square(inside).sum(1)
    return np.column_stack([inside, np.sqrt(np.maximum(rest, 0))])


def join(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Make one of the clusters of i and j, pair by pair; root[k] is the lowest index of k's cluster, in place."""
    while (apart := root[i] != root[j]).any():
        i, j = i[apart], j[apart]
        np.minimum.at(root, np.maximum(root[i], root[j]), np.minimum(root[i], root[j]))
        while (root != root[root]).any():
            root[:] = root[root]


def _in_steps(make: Callable[[np.ndarray], np.ndarray], thumbnails: np.ndarray) -> np.ndarray:
    """`make` of any number of thumbnails, in bounded memory."""
    return np.concatenate([make(thumbnails[at : at + 1000]) for at in range(0, len(thumbnails) or 1, 1000)])


def _mean5(images: np.ndarray) -> np.ndarray:
    """The mean of each 5 x 5 neighbourhood of (n, h, w, c), borders repeated."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(padded[:, k : k + images.shape[1]] for k in range(5))
    return sum(rows[:, :, k : k + images.shape[2]] for k in range(5)) / np.float32(25)  # type: ignore[index]
