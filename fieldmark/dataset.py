"""Table of photos -> batches: packed uint8 photos, transforms, an endless reproducible shuffle.

Every random draw is a function of (seed, pass, photo) or (seed, step), never of what ran before: that is what lets an
interrupted training go on to the same bits.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fieldmark import machine


class Pack:
    """Decoded photos in one memory-mapped file: each uint8 (h, w, 3), the shorter side of all the same.

    Read with `Pack(folder)[i]`; written by `Packer`. A pack without its index is unfinished and does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes = np.load(folder / "index.npy", allow_pickle=False)  # (photos, 2): h, w
        sizes = self.shapes.astype(np.int64).prod(axis=1) * 3
        self.ends = np.cumsum(sizes)
        self.bytes = np.memmap(folder / "photos.u8", mode="r", dtype=np.uint8)

    @staticmethod
    def exists(folder: Path) -> bool:
        return (folder / "index.npy").exists()

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        h, w = (int(side) for side in self.shapes[i])
        return self.bytes[self.ends[i] - h * w * 3 : self.ends[i]].reshape(h, w, 3)


class Packer:
    """Writes a pack photo by photo; the index comes last and in one move, so a kill leaves no half pack."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.npy").unlink(missing_ok=True)
        self.folder, self.shapes = folder, []
        self.file = (folder / "photos.u8").open("wb")

    def add(self, photo: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(photo).data)
        self.shapes.append(photo.shape[:2])

    def finish(self) -> Pack:
        self.file.close()
        shapes = np.array(self.shapes, np.int32).reshape(-1, 2)
        np.save(self.folder / "unfinished.npy", shapes, allow_pickle=False)
        (self.folder / "unfinished.npy").replace(self.folder / "index.npy")
        return Pack(self.folder)


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
    """Set torch's random state to a function of these numbers alone."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


class Judged(Dataset):
    """Photos as they are evaluated: the central crop, uint8 (3, size, size)."""

    def __init__(self, pack: Pack, which: np.ndarray, size: int) -> None:
        self.pack, self.which, self.size = pack, which, size

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, k: int) -> Tensor:
        return torch.from_numpy(self.photo(k)).permute(2, 0, 1)

    def photo(self, k: int) -> np.ndarray:
        """uint8 (size, size, 3), to the bit what `photos.decode.prepare` gives for the file."""
        photo = self.pack[int(self.which[k])]
        top, left = ((side - self.size) // 2 for side in photo.shape[:2])
        return np.array(photo[top : top + self.size, left : left + self.size])


class Varied(Dataset):
    """Photos as they are trained on: item (pass, k) is photo k as that pass varies it, uint8 (3, size, size)."""

    def __init__(self, pack: Pack, which: np.ndarray, labels: np.ndarray, size: int, augment: str, seed: int) -> None:
        self.pack, self.which, self.labels, self.seed = pack, which, labels, seed
        self.transform = transform(augment, size)

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        turn, k = item
        draw(self.seed, 1, turn, k)
        photo = torch.from_numpy(np.array(self.pack[int(self.which[k])])).permute(2, 0, 1)
        return self.transform(photo), int(self.labels[k])


def transform(augment: str, size: int):
    """Name -> a function uint8 (3, h, w) -> uint8 (3, size, size)."""
    from torchvision.transforms import v2

    if augment == "none":
        return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    steps: list = [v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    if augment == "strong":
        steps += [v2.ColorJitter(0.2, 0.2, 0.2), v2.TrivialAugmentWide()]
    return v2.Compose(steps)


class Shuffle(Sampler):
    """Batches of an endless stream of shuffled passes over n photos, from `first` to `last` step.

    Yields lists of (pass, k). A batch may span two passes, so none is ever short.
    """

    def __init__(self, n: int, batch: int, first: int, last: int, seed: int) -> None:
        self.n, self.batch, self.first, self.last, self.seed = n, batch, first, last, seed

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        turn, order = -1, np.empty(0, int)
        for step in range(self.first, self.last):
            items = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                if position // self.n != turn:
                    turn = position // self.n
                    order = np.random.default_rng((self.seed, 2, turn)).permutation(self.n)
                items.append((turn, int(order[position % self.n])))
            yield items


def judged(pack: Pack, which: np.ndarray, size: int, batch: int = 32) -> DataLoader:
    """Loader of uint8 (n, 3, size, size), in order."""
    return DataLoader(Judged(pack, which, size), batch_size=batch, num_workers=_workers())


def varied(photos: Varied, batch: int, first: int, last: int) -> DataLoader:
    """Loader of (uint8 (n, 3, size, size), labels (n,)) for the steps from `first` to `last`."""
    steps = Shuffle(len(photos), batch, first, last, photos.seed)
    return DataLoader(photos, batch_sampler=steps, num_workers=_workers())


def _workers() -> int:
    """Two cores are two threads in all: there a loader of its own would only take from the network.

    Workers share the pack's pages only where processes are forked; elsewhere each would get a copy of all photos.
    """
    if multiprocessing.get_start_method() != "fork":
        return 0
    return 0 if (free := machine.cores() - 2) <= 0 or torch.get_num_threads() == 1 else min(free, 8)


@dataclass(frozen=True)
class Data:
    """The photos of one run: where the pixels are, and who is on which side."""

    pack: Pack
    labels: np.ndarray  # (photos,) class numbers
    train: np.ndarray  # photo numbers of each side
    val: np.ndarray
    test: np.ndarray
