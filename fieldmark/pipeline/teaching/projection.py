"""Features of thousands of numbers -> their coordinates along the principal directions of a sample, of length 1."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldmark.core.io import atomic_path

DIMENSIONS = 256
"""Principal directions that are kept."""


@dataclass(frozen=True)
class Projection:
    """Principal directions of the features of many images.

    Attributes:
        mean: (d,).
        directions: (d, k).
    """

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, dimensions: int = DIMENSIONS) -> "Projection":
        """From features (n, d) of a random sample of the images."""
        sample = np.asarray(features, np.float32)
        mean = sample.mean(0)
        centred = sample - mean
        # The Gram matrix is the smaller one: samples are fewer than features.
        values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        kept = np.argsort(values)[::-1][:dimensions]
        kept = kept[values[kept] > 1e-6 * max(values[kept[0]], 1e-12)]
        directions = centred.T @ (vectors[:, kept] / np.sqrt(values[kept]))
        return cls(mean, directions.astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, d) -> float32 (n, k), each of length 1."""
        projected = (np.asarray(features, np.float32) - self.mean) @ self.directions
        return projected / (np.linalg.norm(projected, axis=1, keepdims=True) + 1e-12)

    def save(self, file: Path) -> None:
        """Write an .npz file, atomically."""
        with atomic_path(file) as partial, partial.open("wb") as handle:
            np.savez(handle, mean=self.mean, directions=self.directions)

    @classmethod
    def load(cls, file: Path) -> "Projection":
        """What `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(arrays["mean"], arrays["directions"])
