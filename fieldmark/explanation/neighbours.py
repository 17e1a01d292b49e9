"""Nearest training images: the reference set that a run keeps in gallery.npz."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers.files import FileTree
from fieldmark.inference.run_folder import load_catalog

REFERENCE_FILE = "gallery.npz"
MIN_NORM = 1e-12


@dataclass(frozen=True)
class Neighbour:
    """A training image and its similarity to an image."""

    path: str
    label: str
    similarity: float
    """Cosine of the pooled features, -1 to 1."""


@dataclass(frozen=True)
class ReferenceSet:
    """Training images with their pooled features."""

    paths: np.ndarray
    """str (n,)"""
    labels: np.ndarray
    """str (n,)"""
    features: np.ndarray
    """float32 (n, channels): last feature map, averaged over positions, L2-normalised"""
    files: FileTree | None
    """The images; None where they are gone."""

    def nearest(self, query: np.ndarray, n_neighbours: int) -> tuple[Neighbour, ...]:
        """The images with the highest cosine similarity to pooled features (channels,), most similar first."""
        cosines = self.features @ (query / max(float(np.linalg.norm(query)), MIN_NORM))
        order = np.argsort(-cosines, kind="stable")[:n_neighbours].tolist()
        return tuple(Neighbour(str(self.paths[k]), str(self.labels[k]), float(cosines[k])) for k in order)


def save_reference_set(run: Path, paths: Sequence[str], labels: Sequence[str], features: np.ndarray) -> None:
    """Write paths, class names and pooled features (n, channels), as float16, into the run."""
    with io.atomic_path(run / REFERENCE_FILE) as partial, partial.open("wb") as file:
        names, classes = np.array(paths, str), np.array(labels, str)
        np.savez_compressed(file, paths=names, labels=classes, features=features.astype(np.float16))


def load_reference_set(run: Path, channels: int) -> ReferenceSet | None:
    """The reference set of a run whose features have so many channels.

    None if there is none (beside a bundle alone, or in a run of an earlier version), or if it is damaged.
    """
    try:
        with (run / REFERENCE_FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            paths, labels, features = (arrays[name] for name in ("paths", "labels", "features"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if features.ndim != 2 or features.shape != (len(paths), channels) or len(labels) != len(paths):
        return None
    features = features.astype(np.float32)
    try:
        files = load_catalog(run).files
    except FieldmarkError:
        files = None
    norms = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), MIN_NORM)
    return ReferenceSet(paths, labels, features / norms, files)
