"""RUN/gallery.npz -> which training photos look like a photo to the network."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers.files import FileTree
from fieldmark.inference.run_folder import load_catalog


@dataclass(frozen=True)
class ReferenceSet:
    """The training photos of a run: what they show, and their last maps, averaged over positions: (n, c), length 1.

    `files` hands them out, None where they are gone.
    """

    paths: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    files: FileTree | None

    def nearest(self, query: np.ndarray, n_neighbours: int) -> list[dict[str, Any]]:
        """The photos whose averaged maps are nearest to `looks` (c,), by the cosine of the angle between them."""
        cosines = self.features @ (query / max(float(np.linalg.norm(query)), 1e-12))
        return [
            {"path": str(self.paths[k]), "label": str(self.labels[k]), "similarity": float(cosines[k])}
            for k in np.argsort(-cosines, kind="stable")[:n_neighbours]
        ]


def load_reference_set(run: Path, channels: int) -> ReferenceSet | None:
    """The run's gallery of maps of so many channels.

    None where there is none: in a run of an earlier version, beside a bundle alone, or where it is damaged.
    """
    try:
        with (run / "gallery.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
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
    return ReferenceSet(
        paths, labels, features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), files
    )
