"""thumbnails -> clusters of photos that show the same: resized, re-encoded, brightened, mirrored, a little cropped."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 16  # pixels of a thumbnail
HAMMING = 10  # bits of 64 in which two dHashes of one photo may differ
AGREEMENT = 0.85  # of the details of two such photos; see `details`
LARGE = 20  # photos: more are hardly copies of one, but a family of look-alikes (MNIST's ones), unless ...
COPIES = 0.98  # ... they agree by as much as this
_CELLS = 4_000_000  # pairs looked at together: bounds the memory
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
    detail = detail.reshape(len(detail), -1)
    length = np.linalg.norm(detail, axis=1, keepdims=True)
    return (detail / np.maximum(length, 1e-6)).astype(np.float16)


def clusters(same: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """int (n,): for every photo the lowest index of those that show the same, by whatever chain of pairs.

    `same` (n,) is the index of the first equal file, `hashes` uint64 (n, 2) come from `dhash`, `thumbnails` are uint8
    (n, 16, 16, 3), all zero for a photo that is like no other. Takes about a minute and 0.5 GB for 100,000 photos.
    """
    loose, tight = same.copy(), same.copy()
    for i, j, agreement in _pairs(hashes, thumbnails):
        copies = agreement >= COPIES
        _join(loose, i, j)
        _join(tight, i[copies], j[copies])
    return np.where(np.bincount(loose, minlength=len(loose))[loose] > LARGE, tight, loose)


def _pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of index pairs that show the same, as they are or mirrored, with the agreement of their details.

    Every pair within HAMMING bits gets a second look: of those that dHash alone proposes on TrashNet, whose things lie
    on plain boards, 99.6 % fail it.
    """
    here = _details_in_steps(thumbnails)
    telling = np.flatnonzero(here.any(axis=1))
    step = max(1, _CELLS // max(1, len(telling)))
    for turned, there in enumerate((here, _details_in_steps(thumbnails[:, :, ::-1]))):
        for start in range(0, len(telling), step):
            distance = np.bitwise_count(
                hashes[telling[start : start + step], :1] ^ hashes[None, telling[start:], turned]
            )
            rows, columns = np.nonzero(distance <= HAMMING)
            for some in np.array_split(np.flatnonzero(rows < columns), len(rows) * 1000 // _CELLS + 1):
                i, j = telling[start + rows[some]], telling[start + columns[some]]
                agreement = np.einsum("nd,nd->n", here[i], there[j], dtype=np.float32)
                alike = agreement >= AGREEMENT
                yield i[alike], j[alike], agreement[alike]


def _join(root: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Make one of the clusters of i and j, pair by pair; root[k] is the lowest index of k's cluster, in place."""
    while (apart := root[i] != root[j]).any():
        i, j = i[apart], j[apart]
        np.minimum.at(root, np.maximum(root[i], root[j]), np.minimum(root[i], root[j]))
        while (root != root[root]).any():
            root[:] = root[root]


def _details_in_steps(thumbnails: np.ndarray) -> np.ndarray:
    """`details` of any number of thumbnails, in bounded memory."""
    found = np.zeros((len(thumbnails), 3 * SIDE**2), np.float16)
    for at in range(0, len(found), 1000):
        found[at : at + 1000] = details(thumbnails[at : at + 1000])
    return found


def _mean5(images: np.ndarray) -> np.ndarray:
    """The mean of each 5 x 5 neighbourhood of (n, h, w, c), borders repeated."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = sum(padded[:, k : k + images.shape[1]] for k in range(5))
    return sum(rows[:, :, k : k + images.shape[2]] for k in range(5)) / np.float32(25)  # type: ignore[index]
