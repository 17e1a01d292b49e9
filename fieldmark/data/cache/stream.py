"""The images of a run, decoded anew at each access.

For more images than a disk holds decoded (a JPEG of 30 KB has 200 KB of pixels), and for machines that share a disk.
"""

from pathlib import Path

import numpy as np

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.cache.pack import STREAM_RECORD_NAME
from fieldmark.data.catalog import Catalog
from fieldmark.data.image import UnreadableImageError, decode


class StreamedImages:
    """The images of a run, in its order: `images[i]` is uint8 (h, w, 3), bit-equal to that of `MemmapImages`.

    Args:
        folder: holds streamed.json, the settings of decoding.
        paths: the images of the run, by their path in the catalog.
    """

    def __init__(self, folder: Path, catalog: Catalog, paths: list[str]) -> None:
        decoding = io.read_json(folder / STREAM_RECORD_NAME)
        self.shorter, self.interpolation = decoding["shorter"], decoding["interpolation"]
        photo_by_path = {photo.path: photo for photo in catalog.photos}
        self.catalog, self.photos = catalog, [photo_by_path[path] for path in paths]

    @staticmethod
    def write_record(folder: Path, shorter: int, interpolation: str) -> None:
        """Write streamed.json: pixels of the shorter side, and `bicubic` or `bilinear`."""
        io.write_json(folder / STREAM_RECORD_NAME, {"shorter": shorter, "interpolation": interpolation})

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> np.ndarray:
        photo = self.photos[i]
        try:
            return np.asarray(
                decode(self.catalog.read_bytes(photo), self.shorter, self.interpolation, photo.box, squash=True)
            )
        except UnreadableImageError as error:  # the audit could read it
            raise FieldmarkError(
                f"{printable(photo.path)} in {self.catalog.root} cannot be read any more ({error}): restore it and"
                " continue with --resume"
            ) from None
