"""Hashes by which an image is recognised in another place, under another name or in another file.

A run keeps those of all its images (images.npz), and its weights carry those that they have been trained on, so that
evaluating on training images is noticed wherever the images come from.
"""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.data.decoded import THUMBNAIL_SIDE

SIGNATURE_LENGTH = 64
"""Numbers of a signature: the grey levels of an 8 x 8 grid."""
MAX_DISTANCE = 3.0
"""Grey levels (root mean square) in which the signatures of one image may differ: JPEG of quality 30, resizing."""
RELATIVE_DISTANCE = 0.5
"""The same in distances of two similar images of the set, which may all show one object under one camera."""
SIMILAR_QUANTILE = 0.05
TRAINED_ON_KEY = "trained_on"
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as its specification has it
_SAMPLE = 2000  # images by which the distance of similar ones is measured
_BLOCK_DISTANCES = 2**23  # computed at a time: bounds the memory


@dataclass(frozen=True)
class ImageHashes:
    """Hashes of n images.

    Attributes:
        content: first eight bytes of the SHA-256 of each file, uint64 (n,).
        signatures: `signature` of each image, uint8 (n, 64).
        max_distance: of signatures, up to which two are taken for the same image.
    """

    content: np.ndarray
    signatures: np.ndarray
    max_distance: float = MAX_DISTANCE

    def __len__(self) -> int:
        return len(self.content)

    def select(self, rows: np.ndarray) -> "ImageHashes":
        """Those of some of the images."""
        return ImageHashes(self.content[rows], self.signatures[rows], self.max_distance)

    def is_identical(self, images: "ImageHashes") -> np.ndarray:
        """Which of these images are here with the same bytes, bool (m,)."""
        return np.isin(images.content, self.content)

    def contains(self, images: "ImageHashes") -> np.ndarray:
        """Which of these images are here, perhaps encoded anew, bool (m,)."""
        found = self.is_identical(images)
        rest = np.flatnonzero(~found)
        for rows in _blocks(rest, len(self)):
            found[rows] = _nearest(images.signatures[rows], self.signatures) <= self.max_distance
        return found

    def union(self, others: "ImageHashes") -> "ImageHashes":
        """These and the others."""
        return ImageHashes(
            np.concatenate([self.content, others.content]),
            np.concatenate([self.signatures, others.signatures]),
            min(self.max_distance, others.max_distance),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {"content": self.content.astype("<u8"), "signatures": self.signatures}
        parts = {name: base64.b64encode(array.tobytes()).decode("ascii") for name, array in values.items()}
        return parts | {"max_distance": self.max_distance}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageHashes":
        """The inverse of `to_dict`; raises ValueError if it is damaged."""
        try:
            content, signatures = (base64.b64decode(values[name]) for name in ("content", "signatures"))
            return cls(
                np.frombuffer(content, "<u8").astype(np.uint64),
                np.frombuffer(signatures, np.uint8).reshape(-1, SIGNATURE_LENGTH),
                float(values["max_distance"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged hashes of images ({error})") from None


def content_key(sha256: str) -> int:
    """The first eight bytes of a SHA-256 in hexadecimal, as in `ImageHashes.content`."""
    return int(sha256[:16], 16)


class HashCollector:
    """Collects the hashes of a dataset image by image."""

    def __init__(self) -> None:
        self.content, self.signatures = list[int](), list[np.ndarray]()

    def add(self, sha256: str, thumbnail: np.ndarray) -> None:
        """The SHA-256 of a file in hexadecimal, and the thumbnail of its image, uint8 (16, 16, 3)."""
        self.content.append(content_key(sha256))
        self.signatures.append(signature(thumbnail))

    def hashes(self) -> ImageHashes:
        """Those of all images so far, which are compared with the greatest distance."""
        signatures = np.array(self.signatures, np.uint8).reshape(-1, SIGNATURE_LENGTH)
        return ImageHashes(np.array(self.content, np.uint64), signatures)

    def hashes_of_groups(self, groups: Sequence[int]) -> ImageHashes:
        """Those of a set that judges its own images: those of one group, (n,), may be the same."""
        found = self.hashes()
        return replace(found, max_distance=_fit_max_distance(found.signatures, np.array(groups)))


def signature(thumbnail: np.ndarray) -> np.ndarray:
    """The grey levels of an 8 x 8 grid over an image, uint8 (64,), from its thumbnail, uint8 (16, 16, 3)."""
    half = THUMBNAIL_SIDE // 2
    return np.rint(thumbnail.reshape(half, 2, half, 2, 3).mean((1, 3, 4))).astype(np.uint8).reshape(-1)


def read_trained_on(weights: Path) -> ImageHashes | None:
    """The hashes of the images that the weights of a safetensors file were trained on; None if it has none.

    Raises:
        ValueError: they are damaged.
    """
    values = _read_record(weights).get(TRAINED_ON_KEY)
    return None if values is None else ImageHashes.from_dict(values)


def _read_record(file: Path) -> dict[str, Any]:
    """What `models.state.save_state` wrote into the header of a safetensors file; empty if it is another file."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = handle.read(min(length, _MAX_HEADER_BYTES))
        record = json.loads(json.loads(header)["__metadata__"]["counters"])
    except (OSError, struct.error, ValueError, KeyError, TypeError):
        return {}
    return record if isinstance(record, dict) else {}


def _blocks(rows: np.ndarray, n_others: int) -> list[np.ndarray]:
    """The rows in parts that are compared with so many others at a time."""
    return np.array_split(rows, len(rows) * n_others // _BLOCK_DISTANCES + 1)


def _nearest(signatures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance of each signature (m, 64) to the nearest of the others, (m,): root mean square of grey levels."""
    if not len(others):
        return np.full(len(signatures), np.inf)
    return np.sqrt(np.maximum(_squared_distances(signatures, others).min(1), 0) / SIGNATURE_LENGTH)


def _squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(m, n), exact in float32: no sum exceeds 2^23."""
    left, right = left.astype(np.float32), right.astype(np.float32)
    return np.square(left).sum(1)[:, None] + np.square(right).sum(1)[None] - 2 * left @ right.T


def _fit_max_distance(signatures: np.ndarray, groups: np.ndarray) -> float:
    """Half of the distance of images that are similar and not the same, by this set; at most `MAX_DISTANCE`."""
    n = len(signatures)
    rows = np.arange(0, n, -(-n // _SAMPLE)) if n else np.arange(0)
    nearest = list[float]()
    for some in _blocks(rows, n):
        squared = _squared_distances(signatures[some], signatures)
        squared[groups[some][:, None] == groups[None]] = np.inf
        nearest += np.sqrt(np.maximum(squared.min(1, initial=np.inf), 0) / SIGNATURE_LENGTH).tolist()
    finite = [distance for distance in nearest if np.isfinite(distance)]
    similar = float(np.quantile(finite, SIMILAR_QUANTILE)) if finite else np.inf
    return min(MAX_DISTANCE, RELATIVE_DISTANCE * similar)
