"""Photos -> what the frozen part of a network makes of them, computed once and kept in files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from fieldmark.dataset import Data, Normalise, judged
from fieldmark.network import Backbone, Network, is_added
from fieldmark.progress import Reporter


class Frozen:
    """The prefix of a network that never changes: normalisation and the layers up to the cut (none from scratch).

    `folder` keeps what is computed once: `features.npy` for phase 1, `val_maps.npy` for judging in phase 2.
    """

    def __init__(self, network: Network, cut: str | None, data: Data, size: int, folder: Path, fabric: Fabric) -> None:
        self.network, self.data, self.size, self.folder, self.fabric = network, data, size, folder, fabric
        look = network.preprocessing
        self.normalise = fabric.to_device(Normalise(look.mean, look.std))
        self.prefix, self.rest = network.backbone.split(cut) if cut else (Backbone(), network.backbone)
        self.prefix = self.prefix.to(fabric.device).eval().requires_grad_(False)

    def maps(self, photos: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) -> maps (n, c, h', w') at the cut, without gradients."""
        with torch.no_grad():
            return self.prefix(self.normalise(self.fabric.to_device(photos)))

    def end(self) -> tuple[Backbone, Backbone]:
        """`rest`, cut at the end of the last stage where attention was added behind it, and else behind everything."""
        middle, tail = self.rest.split(list(self.network.backbone.stages)[-1])
        return (middle, tail) if any(map(is_added, tail.modules())) else (self.rest, Backbone())

    def features(self, reporter: Reporter) -> np.ndarray:
        """Features of the training photos, then of the validation photos, by the weights as they are now.

        -> (photos, c, h', w') where `end` cuts, reduced as far as the head allows. On the way the
        validation photos' maps at the cut are kept, so that phase 2 judges them from there.
        """
        found = self.folder / "features.npy"
        if not found.exists():
            middle, tail = self.end()
            middle.eval()
            which = np.concatenate([self.data.train, self.data.val])
            train, done = len(self.data.train), 0
            with (
                torch.inference_mode(),
                reporter.bar("features", "photos") as advance,
                ArrayFile(self.folder / "features.half", len(which)) as features,
                ArrayFile(self.folder / "val_maps.npy", len(which) - train if len(self.prefix) else 0) as val_maps,
            ):
                for photos in judged(self.data.pack, which, self.size):
                    maps = self.maps(photos)
                    last = middle(maps)
                    features.append(last if len(tail) else self.network.head.reduce(last))
                    val_maps.append(maps[max(0, train - done) :] if len(self.prefix) else maps[:0])
                    done += len(photos)
                    advance(done, len(which))
            (self.folder / "features.half").replace(found)
        return np.load(found, mmap_mode="r", allow_pickle=False)

    def validation(self) -> Iterator[Tensor]:
        """The validation photos' maps at the cut, in order."""
        kept = self.folder / "val_maps.npy"
        if len(self.prefix) and kept.exists():
            maps = np.load(kept, mmap_mode="r", allow_pickle=False)
            for first in range(0, len(maps), 32):
                yield torch.from_numpy(maps[first : first + 32].copy()).to(memory_format=torch.channels_last)
        else:
            for photos in judged(self.data.pack, self.data.val, self.size):
                yield self.maps(photos)


class ArrayFile:
    """A float32 .npy file of so many rows, written in parts.

    On a full disk it raises OSError, where writing into a memory map would kill the process.
    """

    def __init__(self, file: Path, rows: int) -> None:
        self.file, self.rows, self.begun = file.open("wb"), rows, False

    def append(self, part: Tensor) -> None:
        """(n, ...) with the same trailing shape each time."""
        if not self.begun:
            header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *part.shape[1:])}
            np.lib.format.write_array_header_1_0(self.file, header)
            self.begun = True
        self.file.write(part.cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
