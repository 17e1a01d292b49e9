"""Table of photos -> what `store.Pack` holds of them, but read and decoded anew each time it is asked for.

For more photos than a disk holds decoded (a JPEG of 30 KB has 200 KB of pixels), and for machines that share a disk.
"""

import json
from pathlib import Path

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.cache.pack import STREAM_RECORD_NAME
from fieldmark.data.catalog import Catalog
from fieldmark.data.image import UnreadableImageError, decode


class StreamedImages:
    """Photos of one run, in its order: `stream[i]` is uint8 (h, w, 3), to the bit what a `Pack` of them gives.

    `folder` holds the record of how they are decoded; which they are, `paths` says.
    """

    def __init__(self, folder: Path, catalog: Catalog, paths: list[str]) -> None:
        decoding = json.loads((folder / STREAM_RECORD_NAME).read_text(encoding="utf-8"))
        self.shorter, self.interpolation = decoding["shorter"], decoding["interpolation"]
        photo_by_path = {photo.path: photo for photo in catalog.photos}
        self.catalog, self.photos = catalog, [photo_by_path[path] for path in paths]

    @staticmethod
    def write_record(folder: Path, shorter: int, interpolation: str) -> None:
        """Say how the photos of a run are decoded."""
        io.write_json(folder / STREAM_RECORD_NAME, {"shorter": shorter, "interpolation": interpolation})

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> np.ndarray:
        photo = self.photos[i]
        try:
            return np.asarray(decode(self.catalog.read_bytes(photo), self.shorter, self.interpolation, photo.box))
        except UnreadableImageError as error:  # the audit could read it
            raise FieldmarkError(
                f"{printable(photo.path)} in {self.catalog.root} cannot be read any more ({error}): put it back, and go"
                " on with --resume"
            ) from None
