"""Reader of MNIST's IDX files and CIFAR's binary files; each image becomes a PGM or PPM file.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits"; Krizhevsky 2009, "Learning multiple layers of
features from tiny images", whose site describes the binary version. CIFAR's Python version is refused: a pickle may
run any program.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import printable
from fieldmark.data.catalog import Photo
from fieldmark.data.image import MAX_FILE_BYTES, UnreadableImageError
from fieldmark.data.readers.files import FileTree, ReaderResult, VirtualTree, read_required

_IDX_NAME = re.compile(r"(train|t10k|test|val\w*|emnist-\w+-train|emnist-\w+-test)-images[-.]idx3-ubyte(\.gz)?")
_CIFAR_NAME = re.compile(r"(data_batch_\d|test_batch|train|test)\.bin")
_PICKLED_NAME = re.compile(r"data_batch_\d|test_batch|batches\.meta")
_CIFAR_SIZE, _CIFAR_BYTES = 32, 3072  # width and height, bytes of an image


class ArrayFiles(VirtualTree):
    """Images in memory: `pixels[name]` is uint8 (n, h, w) or (n, h, w, 3)."""

    def __init__(self, root: Path, pixels: dict[str, np.ndarray]) -> None:
        super().__init__(root, pixels)
        self.pixels = pixels

    def file_names(self, folder: str) -> Iterator[str]:
        images = self.pixels[folder]
        return (_image_name(k, images) for k in range(len(images)))

    def read_bytes(self, path: str) -> bytes:
        name, _, file = path.partition("/")
        try:
            photo = self.pixels[name][int(file.partition(".")[0])]
        except (KeyError, ValueError, IndexError):
            raise UnreadableImageError("no such photo") from None
        kind = b"P6" if photo.ndim == 3 else b"P5"  # PPM, PGM
        return b"%s %d %d 255\n" % (kind, photo.shape[1], photo.shape[0]) + photo.tobytes()


def list_images(files: FileTree) -> ReaderResult | None:
    """The images of such files at the top of `files`; None if there are none. Raises `FieldmarkError` if damaged."""
    _, names = files.list_folder()
    parts = [*_read_idx_parts(files, names), *_read_cifar_parts(files, names)]
    if not parts:
        if any(_PICKLED_NAME.fullmatch(name) for name in names):
            raise FieldmarkError(
                f"{printable(str(files.root))} holds CIFAR's pickled version, and a pickle may run any program: "
                "give its binary version (data_batch_1.bin, ...)"
            )
        return None
    photos = [
        Photo(f"{part.name}/{_image_name(k, part.pixels)}", label, part.split)
        for part in parts
        for k, label in enumerate(part.labels)
    ]
    return ReaderResult(ArrayFiles(files.root, {part.name: part.pixels for part in parts}), photos, [])


class _Part(NamedTuple):
    name: str
    split: str
    pixels: np.ndarray
    labels: list[str]


def _image_name(k: int, images: np.ndarray) -> str:
    return f"{k:06}.{'ppm' if images.ndim == 4 else 'pgm'}"


def _read_idx_parts(files: FileTree, names: list[str]) -> Iterator[_Part]:
    for name in names:
        if not (match := _IDX_NAME.fullmatch(name)) or name.removesuffix(".gz") in set(names) - {name}:
            continue
        labels_name = name.replace("images", "labels").replace("idx3", "idx1")
        if labels_name not in names:
            raise FieldmarkError(f"{printable(str(files.root))} holds {name}, but no {labels_name}")
        pixels, labels = (_parse_idx_array(files, file) for file in (name, labels_name))
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise FieldmarkError(f"{name} and {labels_name} do not belong together")
        split = "val" if "val" in match[1] else "train" if "train" in match[1] else "test"
        yield _Part(match[1], split, pixels, [str(k) for k in labels.tolist()])


def _parse_idx_array(files: FileTree, name: str) -> np.ndarray:
    """The array of an IDX file: two zeros, 8 for uint8, number of dimensions, each as big-endian uint32, data."""
    content = _read_whole(files, name)
    try:
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        if zeros or kind != 8:
            raise ValueError("not of unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (struct.error, ValueError) as error:
        raise FieldmarkError(f"{name} is no whole IDX file ({error}): get it anew") from None


def _read_cifar_parts(files: FileTree, names: list[str]) -> Iterator[_Part]:
    n_coarse_labels = "fine_label_names.txt" in names  # CIFAR-100: a coarse label stands before the fine one
    names_file = next((name for name in ("fine_label_names.txt", "batches.meta.txt") if name in names), None)
    if names_file is None:
        return
    classes = [line for line in _read_whole(files, names_file).decode("utf-8", "replace").splitlines() if line.strip()]
    for name in names:
        if not _CIFAR_NAME.fullmatch(name):
            continue
        content = np.frombuffer(_read_whole(files, name), np.uint8)
        if len(content) % (1 + n_coarse_labels + _CIFAR_BYTES):
            raise FieldmarkError(f"{name} is no whole CIFAR file: get it anew")
        rows = content.reshape(-1, 1 + n_coarse_labels + _CIFAR_BYTES)
        labels = rows[:, int(n_coarse_labels)].tolist()
        if rows.size and max(labels) >= len(classes):
            raise FieldmarkError(f"{name} has class {max(labels)}, but {names_file} names {len(classes)} classes")
        pixels = rows[:, 1 + n_coarse_labels :].reshape(-1, 3, _CIFAR_SIZE, _CIFAR_SIZE).transpose(0, 2, 3, 1)
        split = "test" if name.startswith("test") else "train"
        yield _Part(name.removesuffix(".bin"), split, pixels, [classes[k] for k in labels])


def _read_whole(files: FileTree, name: str) -> bytes:
    content = read_required(files, name)
    if not name.endswith(".gz"):
        return content
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(content, MAX_FILE_BYTES)
    except zlib.error as error:
        raise FieldmarkError(f"{name} in {printable(str(files.root))} cannot be read ({error})") from None
    if not unpacker.eof:
        raise FieldmarkError(f"{name} is truncated, or unpacks to more than {MAX_FILE_BYTES >> 20} MiB")
    return plain
