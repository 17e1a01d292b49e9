"""RUN/gallery.npz -> which training photos look like a photo to the network."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers.files import Files
from fieldmark.inference.run_folder import catalog_of


@dataclass(frozen=True)
class Gallery:
    """The training photos of a run: what they show, and their last maps, averaged over positions: (n, c), length 1.

    `files` hands them out, None where they are gone.
    """

    paths: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    files: Files | None

    def nearest(self, looks: np.ndarray, most: int) -> list[dict[str, Any]]:
        """The photos whose averaged maps are nearest to `looks` (c,), by the cosine of the angle between them."""
        cosines = self.features @ (looks / max(float(np.linalg.norm(looks)), 1e-12))
        return [
            {"path": str(self.paths[k]), "label": str(self.labels[k]), "similarity": float(cosines[k])}
            for k in np.argsort(-cosines, kind="stable")[:most]
        ]


def read_gallery(run: Path, channels: int) -> Gallery | None:
    """The run's gallery of maps of so many channels.

    None where there is none: in a run of an earlier version, beside a bundle alone, or where it is damaged.
    """
    try:
        with (run / "gallery.npz").open("rb") as file, np.load(file, allow_pickle=False) as found:
            paths, labels, features = (found[name] for name in ("paths", "labels", "features"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if features.ndim != 2 or features.shape != (len(paths), channels) or len(labels) != len(paths):
        return None
    features = features.astype(np.float32)
    try:
        files = catalog_of(run).files
    except FieldmarkError:
        files = None
    return Gallery(paths, labels, features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), files)
