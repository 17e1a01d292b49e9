"""MNIST's and CIFAR's files give the pixels that are in them."""

import gzip
import struct

import numpy as np
import pytest

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import decode
from fieldmark.data.readers import read_catalog


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 28, 28), np.uint8)
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([7, 0, 7, 1], np.uint8))))
    catalog = read_catalog(tmp_path)
    assert [photo.label for photo in catalog.photos] == ["7", "0", "7", "1"] * 2
    assert {photo.split for photo in catalog.photos} == {"train", "test"}
    for k, photo in enumerate(catalog.photos):
        grey = np.asarray(decode(catalog.read_bytes(photo)).convert("L"))
        assert np.array_equal(grey, pixels[k % 4])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels))[:-9])
    with pytest.raises(FieldmarkError, match="truncated"):
        read_catalog(tmp_path)


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_files(tmp_path, hundred):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 3, 32, 32), np.uint8)
    labels = np.array([0, 1, 2, 2, 1, 0], np.uint8)
    first = np.zeros((6, 1), np.uint8) if hundred else np.zeros((6, 0), np.uint8)
    content = np.concatenate([first, labels[:, None], pixels.reshape(6, -1)], 1).tobytes()
    for name in ("train.bin", "test.bin") if hundred else ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ("fine_label_names.txt" if hundred else "batches.meta.txt")).write_text("cat\ndog\nfrog\n")
    catalog = read_catalog(tmp_path)
    assert sorted(photo.label for photo in catalog.photos if photo.split == "train") == sorted(
        ["cat", "dog", "frog"] * 2
    )
    photo = next(photo for photo in catalog.photos if photo.split == "test")
    assert np.array_equal(np.asarray(decode(catalog.read_bytes(photo))), pixels[0].transpose(1, 2, 0))


def test_pickles_are_refused(tmp_path):
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(FieldmarkError, match="pickle may run any program: give its binary version"):
        read_catalog(tmp_path)


def test_mnist_as_torchvision_leaves_it(tmp_path):
    """Packed and unpacked files lie side by side."""
    files = {"images-idx3": np.zeros((2, 28, 28), np.uint8), "labels-idx1": np.arange(2, dtype=np.uint8)}
    for name, array in files.items():
        (tmp_path / f"train-{name}-ubyte").write_bytes(idx(array))
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    assert [photo.label for photo in read_catalog(tmp_path).photos] == ["0", "1"]
