"""What a classifier takes in Python -> name and source of each image."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from fieldmark.core.text import one_line
from fieldmark.data.image import MAX_FILE_BYTES
from fieldmark.data.locate import CONTAINER_SUFFIXES, ImageSource, UnreadableSource, find_images, is_url
from fieldmark.data.remote import is_http, is_http_listing
from fieldmark.data.stdin_list import STDIN

SingleInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
"""One image; a path or an address may also be that of several."""
ImageInput = SingleInput | Iterable[SingleInput]
InputSource = ImageSource | Image.Image
"""What `image.decode` opens: an image found on the disk or in the net, or one in memory."""
ACCEPTED = (
    "a path, an address, bytes, a file opened in binary mode, a PIL image or a uint8 array (height, width, 3), "
    "or several of these"
)


def is_single(images: Any) -> bool:
    """Whether this is one image, and no folder, glob, archive or collection of images."""
    if not isinstance(images, str | os.PathLike):
        is_array = isinstance(images, np.ndarray) and not _holds_names(images)
        return is_array or isinstance(images, bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read")
    name = os.fspath(images)
    if os.path.isdir(name) or name == STDIN or name.lower().endswith(CONTAINER_SUFFIXES):
        return False
    if os.path.lexists(name) or not is_url(name):
        return os.path.lexists(name) or not glob.has_magic(name)
    return not (is_http_listing(name) if is_http(name) else name.endswith("/") or glob.has_magic(name))


def find_inputs(images: Any, allow_private_hosts: bool | None = None) -> Iterator[tuple[str, InputSource]]:
    """Name and source of each image; what comes without a name has an empty one.

    Args:
        images: one image, or several.
        allow_private_hosts: as for `find_images`.

    Raises:
        TypeError: something that is no image, such as an array of floats.
        ValueError: an array of a shape that no image has, or a closed file.
    """
    match images:
        case str() | os.PathLike():
            yield from find_images([os.fsdecode(images)], allow_private_hosts)
        case bytes() | bytearray() | memoryview():
            yield "", bytes(images)
        case Image.Image():
            yield str(getattr(images, "filename", "") or ""), _content_of_image(images)
        case np.ndarray() if not _holds_names(images):
            yield "", _image_of_array(images)
        case _ if hasattr(images, "read"):
            yield str(getattr(images, "name", "") or ""), _content_of_file(images)
        case _:
            for image in _iterate(images):
                yield from find_inputs(image, allow_private_hosts)


def _holds_names(array: np.ndarray) -> bool:
    return array.ndim == 1 and array.dtype.kind in "OUST"


def _iterate(images: Any) -> Iterator[Any]:
    is_series = getattr(images, "ndim", None) == 1 and hasattr(images, "tolist")  # of pandas
    if hasattr(images, "__array__") and not isinstance(images, np.ndarray) and not is_series:
        raise TypeError(
            f"{type(images).__name__} is not taken: give {ACCEPTED}; of a float tensor with values from 0 to 1 make "
            "one by (255 * x).byte().permute(1, 2, 0).numpy()"
        )
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise TypeError(f"{type(images).__name__} is not taken: give {ACCEPTED}")
    return iter(images)


def _content_of_image(image: Image.Image) -> Image.Image | bytes:
    """An image that was opened and not yet loaded is read as its file is, so that the prediction is the same."""
    if not all(image.size):
        raise ValueError(f"an image of {image.width} x {image.height} pixels is empty")
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or getattr(file, "closed", False):
        return image
    position = file.tell()
    file.seek(0)
    content = file.read(MAX_FILE_BYTES + 1)
    file.seek(position)
    return content


def _content_of_file(file: Any) -> bytes | UnreadableSource:
    if getattr(file, "closed", False):
        raise ValueError("the file is closed: give it open, or give its path")
    try:
        content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:  # also of a file that is open for writing
        return UnreadableSource(f"cannot be read: {one_line(error)}")
    if not isinstance(content, bytes):
        raise TypeError(f"the file gives {type(content).__name__}, not bytes: open it in binary mode ('rb')")
    return content


def _image_of_array(array: np.ndarray) -> Image.Image:
    """uint8 (h, w), (h, w, 1), RGB (h, w, 3) or RGBA (h, w, 4), or uint16 (h, w) -> the image."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(
            f"an array of {array.dtype} is not taken: give uint8 from 0 to 255; values from 0 to 1 become that by "
            "(255 * array).round().astype(np.uint8)"
        )
    if array.ndim == 4:
        raise ValueError(f"an array of shape {array.shape} is a batch: give list(array)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or (array.dtype == np.uint16 and channels > 1):
        is_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": transpose(1, 2, 0) puts the channels last" if is_first else ""
        raise ValueError(
            f"an array of {array.dtype} and shape {array.shape} is no image: give uint8 (height, width, 3){hint}"
        )
    if not array.size:
        raise ValueError(f"an array of shape {array.shape} is empty")
    return Image.fromarray(np.ascontiguousarray(array))
