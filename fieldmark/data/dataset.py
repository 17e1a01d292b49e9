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
from fieldmark.data.augment import seed_of, transform
from fieldmark.data.cache.pack import Pack
from fieldmark.data.cache.stream import Stream
from fieldmark.data.image import centre_of


class Normalise(nn.Module):
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


def draw(*numbers: int) -> None:
    """Set torch's random state, on every device, to a function of these numbers alone."""
    torch.manual_seed(seed_of(*numbers))


class Judged(Dataset):
    """Photos as they are evaluated: the central crop, uint8 (3, size, size)."""

    def __init__(self, pack: Pack | Stream, which: np.ndarray, size: int) -> None:
        self.pack, self.which, self.size = pack, which, size

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, k: int) -> Tensor:
        return torch.from_numpy(self.photo(k)).permute(2, 0, 1)

    def photo(self, k: int) -> np.ndarray:
        """uint8 (size, size, 3), to the bit what `photos.decode.prepare` gives for the file."""
        return centre_of(self.pack[int(self.which[k])], self.size)


class Varied(Dataset):
    """Photos as they are trained on: item (look, k) is photo k as that look varies it, uint8 (3, size, size).

    `augment` and `crop` are those of `augment.transform`.
    """

    def __init__(
        self,
        pack: Pack | Stream,
        which: np.ndarray,
        labels: np.ndarray,
        size: int,
        augment: str,
        seed: int,
        crop: float = 0.875,
    ) -> None:
        self.pack, self.which, self.labels, self.seed = pack, which, labels, seed
        self.transform = transform(augment, size, crop=crop)

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        look, k = item
        # Not `draw`: telling every device would take as long as the photo.
        torch.default_generator.manual_seed(seed_of(self.seed, 1, look, k))
        photo = torch.from_numpy(np.array(self.pack[int(self.which[k])])).permute(2, 0, 1)
        return self.transform(photo), int(self.labels[k])


class Shuffle(Sampler):
    """Batches of an endless stream of shuffled passes over n photos, from `first` to `last` step.

    Yields lists of (place in the stream, photo k). A batch may span two passes, so none is ever short. With `weights`
    (n,) a pass draws n photos with replacement, each as often as its weight says: `class_weights(...)[labels]` shows
    every class equally often. Of each batch the process `rank` of `world` gets every world-th photo.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        first: int,
        last: int,
        seed: int,
        *,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch % world:
            raise FieldmarkError(f"--batch is {batch}, but must be a multiple of the {world} processes")
        self.n, self.batch, self.first, self.last, self.seed = n, batch, first, last, seed
        self.shares = None if weights is None else weights / weights.sum()
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        turn, order = -1, np.empty(0, int)
        for step in range(self.first, self.last):
            items = []
            for place in range(step * self.batch + self.rank, (step + 1) * self.batch, self.world):
                if place // self.n != turn:
                    turn = place // self.n
                    order = self._pass(np.random.default_rng((self.seed, 2, turn)))
                items.append((place, int(order[place % self.n])))
            yield items

    def _pass(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(self.n) if self.shares is None else rng.choice(self.n, self.n, p=self.shares)


def judged(pack: Pack | Stream, which: np.ndarray, size: int, batch: int = 32) -> Iterator[Tensor]:
    """Batches of uint8 (n, 3, size, size), in order."""
    return _loaded(DataLoader(Judged(pack, which, size), batch_size=batch, num_workers=_workers()))


def varied(
    photos: Varied,
    batch: int,
    first: int,
    last: int,
    *,
    weights: np.ndarray | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 (n, 3, size, size), labels (n,)) of each step from `first` to `last`; `batch` is that of all processes."""
    steps = Shuffle(len(photos), batch, first, last, photos.seed, weights=weights, rank=rank, world=world)
    return _loaded(DataLoader(photos, batch_sampler=steps, num_workers=_workers(world)))


def _loaded(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches; the death of a worker is a FieldmarkError where the next batch is asked for."""
    before = signal.getsignal(signal.SIGCHLD) if loader.num_workers else None
    try:
        batches = iter(loader)
        # torch's handler would raise in whatever the main thread does when a worker dies, here or far away.
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
        yield from batches
    except FieldmarkError as error:  # a loader's own comes with its traceback
        raise FieldmarkError(str(error).strip().splitlines()[-1].rpartition("FieldmarkError: ")[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise FieldmarkError(
            "a process that loads photos died (out of memory, or killed?): go on with --resume"
        ) from None


def _workers(world: int = 1) -> int:
    """Two cores are two threads in all: there a loader of its own would only take from the network.

    Workers share the pack's pages only where processes are forked; elsewhere each would get a copy of all photos.
    Batches come through shared memory, of which a container may have 64 MiB: too little, and it kills them.
    `world` processes share the machine, or as many as torchrun says.
    """
    if multiprocessing.get_start_method() != "fork":
        return 0
    free = runtime.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world)) - 2
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    if free <= 0 or alone or _shared_memory() < 2**30:
        return 0
    return min(free, 8)


def _shared_memory() -> int:
    """Bytes that are free for what processes hand to each other."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0


@dataclass(frozen=True)
class Data:
    """The photos of one run: where the pixels are, and who is on which side."""

    pack: Pack | Stream
    labels: np.ndarray  # (photos,) class numbers
    train: np.ndarray  # photo numbers of each side
    val: np.ndarray
    test: np.ndarray


def statistics(data: Data, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the pixels of the training photos, in 0..255."""
    as_seen = Normalise((0.0,) * channels, (1.0,) * channels)
    sums, squares, pixels = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), 0
    for k in data.train:
        photo = as_seen(torch.from_numpy(np.array(data.pack[int(k)])).permute(2, 0, 1)[None]).double()
        sums += photo.sum((0, 2, 3))
        squares += photo.square().sum((0, 2, 3))
        pixels += photo[0, 0].numel()
    mean = sums / pixels
    std = (squares / pixels - mean.square()).clamp_min(1).sqrt()  # photos of one colour have none
    return tuple(mean.tolist()), tuple(std.tolist())
