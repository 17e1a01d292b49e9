"""Decoded images -> batches: datasets, a reproducible endless sampler, data loaders.

Every random draw is a function of (seed, epoch), (seed, position in the stream, image) or (seed, step), and never of
what ran before: so an interrupted training continues to the same bits.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.augment import build_transform, derive_seed
from fieldmark.data.image import center_crop_array


class DecodedImages(Protocol):
    """Decoded images by index, uint8 (h, w, 3): `MemmapImages` or `StreamedImages`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


class Normalize(nn.Module):
    """Normalises uint8 or float (n, 3, h, w) in 0..255 to (x - mean) / std, with one channel for each mean.

    A single channel is the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if self.mean.shape[1] == 1:
            red, green, blue = images.split(1, dim=1)
            images = 0.299 * red + 0.587 * green + 0.114 * blue
        return (images - self.mean) / self.std


def seed_torch(*numbers: int) -> None:
    """Seed PyTorch's generators on every device with a function of these numbers alone."""
    torch.manual_seed(derive_seed(*numbers))


class EvalDataset(Dataset):
    """Evaluation images: center crop, uint8 (3, size, size)."""

    def __init__(self, images: DecodedImages, indices: np.ndarray, size: int) -> None:
        self.images, self.indices, self.size = images, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> Tensor:
        return torch.from_numpy(self.read_image(k)).permute(2, 0, 1)

    def read_image(self, k: int) -> np.ndarray:
        """uint8 (size, size, 3), bit-equal to `image.preprocess` of the file."""
        return center_crop_array(self.images[int(self.indices[k])], self.size)


class AugmentedDataset(Dataset):
    """Training images: item (position, k) is image k, augmented as drawn for that position of the stream.

    Items are uint8 (3, size, size) and a class number. `augment` and `crop` are those of `augment.build_transform`.
    """

    def __init__(
        self,
        images: DecodedImages,
        indices: np.ndarray,
        labels: np.ndarray,
        size: int,
        augment: str,
        seed: int,
        crop: float = 0.875,
    ) -> None:
        self.images, self.indices, self.labels, self.seed = images, indices, labels, seed
        self.transform = build_transform(augment, size, crop=crop)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        position, k = item
        # Not `seed_torch`: seeding every device would take as long as the image.
        torch.default_generator.manual_seed(derive_seed(self.seed, 1, position, k))
        photo = torch.from_numpy(np.array(self.images[int(self.indices[k])])).permute(2, 0, 1)
        return self.transform(photo), int(self.labels[k])


class ShuffledBatchSampler(Sampler):
    """Batches of an endless stream of shuffled epochs, as lists of (position in the stream, image k).

    A batch may span two epochs, so that none is short.

    Args:
        n_samples: number of images.
        batch_size: images of a step, of all processes together.
        weights: draw each epoch with replacement and these relative probabilities, (n_samples,);
            `class_weights(...)[labels]` draws every class equally often.
        rank: of each batch, this process gets every `world_size`-th image, from `rank` on.
    """

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        first_step: int,
        last_step: int,
        seed: int,
        *,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise FieldmarkError(f"--batch is {batch_size}, but must be a multiple of the {world_size} processes")
        self.n_samples, self.batch_size, self.seed = n_samples, batch_size, seed
        self.first_step, self.last_step = first_step, last_step
        self.probabilities = None if weights is None else weights / weights.sum()
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, int)
        for step in range(self.first_step, self.last_step):
            items = []
            for position in range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size):
                if position // self.n_samples != epoch:
                    epoch = position // self.n_samples
                    order = self._epoch_order(np.random.default_rng((self.seed, 2, epoch)))
                items.append((position, int(order[position % self.n_samples])))
            yield items

    def _epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        return (
            rng.permutation(self.n_samples)
            if self.probabilities is None
            else rng.choice(self.n_samples, self.n_samples, p=self.probabilities)
        )


def iter_eval_batches(images: DecodedImages, indices: np.ndarray, size: int, batch_size: int = 32) -> Iterator[Tensor]:
    """Batches of evaluation images in order, uint8 (n, 3, size, size)."""
    return _iter_batches(
        DataLoader(EvalDataset(images, indices, size), batch_size=batch_size, num_workers=_num_workers())
    )


def iter_train_batches(
    dataset: AugmentedDataset,
    batch_size: int,
    first_step: int,
    last_step: int,
    *,
    weights: np.ndarray | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 (n, 3, size, size) and labels (n,) of each step; see `ShuffledBatchSampler` for the arguments."""
    sampler = ShuffledBatchSampler(
        len(dataset), batch_size, first_step, last_step, dataset.seed, weights=weights, rank=rank, world_size=world_size
    )
    return _iter_batches(DataLoader(dataset, batch_sampler=sampler, num_workers=_num_workers(world_size)))


def _iter_batches(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader; if a worker dies, the next batch raises FieldmarkError."""
    previous_handler = signal.getsignal(signal.SIGCHLD) if loader.num_workers else None
    try:
        batches = iter(loader)
        # PyTorch's handler would raise in whatever the main thread does at the time a worker dies.
        if previous_handler is not None and signal.getsignal(signal.SIGCHLD) is not previous_handler:
            signal.signal(signal.SIGCHLD, previous_handler)
        yield from batches
    except FieldmarkError as error:  # PyTorch has added the worker's traceback
        raise FieldmarkError(str(error).strip().splitlines()[-1].rpartition("FieldmarkError: ")[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise FieldmarkError("a data-loading worker died (out of memory?): continue with --resume") from None


def _num_workers(world_size: int = 1) -> int:
    """Number of data-loading workers of this process, 0 to 8: the cores beyond two, shared by `world_size` processes.

    With two cores workers would compete with training. Without fork each would get a copy of all images. Batches pass
    through shared memory, and workers are killed where a container has too little (64 MiB by default).
    """
    if multiprocessing.get_start_method() != "fork":
        return 0
    free_cores = runtime.available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) - 2
    is_single_threaded = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    if free_cores <= 0 or is_single_threaded or _free_shared_memory() < 2**30:
        return 0
    return min(free_cores, 8)


def _free_shared_memory() -> int:
    """Free shared memory in bytes."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0


@dataclass(frozen=True)
class DatasetSplits:
    """The images of a run, their labels and the indices of each split.

    Attributes:
        labels: class numbers (images,).
        train: indices of the training images; likewise `val` and `test`.
    """

    images: DecodedImages
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def compute_channel_statistics(data: DatasetSplits, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of the training images, in 0..255."""
    identity = Normalize((0.0,) * channels, (1.0,) * channels)
    sums, squares, pixels = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), 0
    for k in data.train:
        photo = identity(torch.from_numpy(np.array(data.images[int(k)])).permute(2, 0, 1)[None]).double()
        sums += photo.sum((0, 2, 3))
        squares += photo.square().sum((0, 2, 3))
        pixels += photo[0, 0].numel()
    mean = sums / pixels
    std = (squares / pixels - mean.square()).clamp_min(1).sqrt()  # images of one colour have a variance of 0
    return tuple(mean.tolist()), tuple(std.tolist())
