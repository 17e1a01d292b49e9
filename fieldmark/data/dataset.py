"""Table of photos -> batches: packed uint8 photos, transforms, an endless reproducible shuffle.

Every random draw is a function of (seed, pass), (seed, place in the stream, photo) or (seed, step), never of what ran
before: that is what lets an interrupted training go on to the same bits.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.augment import build_transform, derive_seed
from fieldmark.data.cache.pack import MemmapImages
from fieldmark.data.cache.stream import StreamedImages
from fieldmark.data.image import center_crop_array


class Normalize(nn.Module):
    """uint8 or float (n, 3, h, w) in 0..255 -> (x - mean) / std, with as many channels as there are means.

    One channel is the luma of the three: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, photos: Tensor) -> Tensor:
        photos = photos.float()
        if self.mean.shape[1] == 1:
            red, green, blue = photos.split(1, dim=1)
            photos = 0.299 * red + 0.587 * green + 0.114 * blue
        return (photos - self.mean) / self.std


def seed_torch(*numbers: int) -> None:
    """Set torch's random state, on every device, to a function of these numbers alone."""
    torch.manual_seed(derive_seed(*numbers))


class EvalDataset(Dataset):
    """Photos as they are evaluated: the central crop, uint8 (3, size, size)."""

    def __init__(self, images: MemmapImages | StreamedImages, indices: np.ndarray, size: int) -> None:
        self.images, self.indices, self.size = images, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> Tensor:
        return torch.from_numpy(self.read_image(k)).permute(2, 0, 1)

    def read_image(self, k: int) -> np.ndarray:
        """uint8 (size, size, 3), to the bit what `photos.decode.prepare` gives for the file."""
        return center_crop_array(self.images[int(self.indices[k])], self.size)


class AugmentedDataset(Dataset):
    """Photos as they are trained on: item (look, k) is photo k as that look varies it, uint8 (3, size, size).

    `augment` and `crop` are those of `augment.transform`.
    """

    def __init__(
        self,
        images: MemmapImages | StreamedImages,
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
        # Not `draw`: telling every device would take as long as the photo.
        torch.default_generator.manual_seed(derive_seed(self.seed, 1, position, k))
        photo = torch.from_numpy(np.array(self.images[int(self.indices[k])])).permute(2, 0, 1)
        return self.transform(photo), int(self.labels[k])


class ShuffledBatchSampler(Sampler):
    """Batches of an endless stream of shuffled passes over n photos, from `first` to `last` step.

    Yields lists of (place in the stream, photo k). A batch may span two passes, so none is ever short. With `weights`
    (n,) a pass draws n photos with replacement, each as often as its weight says: `class_weights(...)[labels]` shows
    every class equally often. Of each batch the process `rank` of `world` gets every world-th photo.
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
        self.n_samples, self.batch_size, self.first_step, self.last_step, self.seed = (
            n_samples,
            batch_size,
            first_step,
            last_step,
            seed,
        )
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


def iter_eval_batches(
    pack: MemmapImages | StreamedImages, indices: np.ndarray, size: int, batch_size: int = 32
) -> Iterator[Tensor]:
    """Batches of uint8 (n, 3, size, size), in order."""
    return _iter_batches(
        DataLoader(EvalDataset(pack, indices, size), batch_size=batch_size, num_workers=_num_workers())
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
    """(uint8 (n, 3, size, size), labels (n,)) of each step from `first` to `last`; `batch` is that of all processes."""
    sampler = ShuffledBatchSampler(
        len(dataset), batch_size, first_step, last_step, dataset.seed, weights=weights, rank=rank, world_size=world_size
    )
    return _iter_batches(DataLoader(dataset, batch_sampler=sampler, num_workers=_num_workers(world_size)))


def _iter_batches(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches; the death of a worker is a FieldmarkError where the next batch is asked for."""
    previous_handler = signal.getsignal(signal.SIGCHLD) if loader.num_workers else None
    try:
        batches = iter(loader)
        # torch's handler would raise in whatever the main thread does when a worker dies, here or far away.
        if previous_handler is not None and signal.getsignal(signal.SIGCHLD) is not previous_handler:
            signal.signal(signal.SIGCHLD, previous_handler)
        yield from batches
    except FieldmarkError as error:  # a loader's own comes with its traceback
        raise FieldmarkError(str(error).strip().splitlines()[-1].rpartition("FieldmarkError: ")[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise FieldmarkError(
            "a process that loads photos died (out of memory, or killed?): go on with --resume"
        ) from None


def _num_workers(world_size: int = 1) -> int:
    """Two cores are two threads in all: there a loader of its own would only take from the network.

    Workers share the pack's pages only where processes are forked; elsewhere each would get a copy of all photos.
    Batches come through shared memory, of which a container may have 64 MiB: too little, and it kills them.
    `world` processes share the machine, or as many as torchrun says.
    """
    if multiprocessing.get_start_method() != "fork":
        return 0
    free_cores = runtime.available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) - 2
    is_single_threaded = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    if free_cores <= 0 or is_single_threaded or _free_shared_memory() < 2**30:
        return 0
    return min(free_cores, 8)


def _free_shared_memory() -> int:
    """Bytes that are free for what processes hand to each other."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0


@dataclass(frozen=True)
class DatasetSplits:
    """The photos of one run: where the pixels are, and who is on which side."""

    images: MemmapImages | StreamedImages
    labels: np.ndarray  # (photos,) class numbers
    train: np.ndarray  # photo numbers of each side
    val: np.ndarray
    test: np.ndarray


def compute_channel_statistics(data: DatasetSplits, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the pixels of the training photos, in 0..255."""
    identity = Normalize((0.0,) * channels, (1.0,) * channels)
    sums, squares, pixels = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), 0
    for k in data.train:
        photo = identity(torch.from_numpy(np.array(data.images[int(k)])).permute(2, 0, 1)[None]).double()
        sums += photo.sum((0, 2, 3))
        squares += photo.square().sum((0, 2, 3))
        pixels += photo[0, 0].numel()
    mean = sums / pixels
    std = (squares / pixels - mean.square()).clamp_min(1).sqrt()  # photos of one colour have none
    return tuple(mean.tolist()), tuple(std.tolist())
