"""Photos -> what the frozen part of a network makes of them, computed once and kept in files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
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

    `folder` keeps what is computed once: `train_features.npy` and `val_features.npy` for phase 1, `val_maps.npy` for
    judging in phase 2. What is trained on is computed in the precision of the training, what is judged in 32 bits.
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

    def features(self, reporter: Reporter, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Features of the training photos, `mirrored` ones behind them, and of the validation photos.

        -> two times (photos, c, h', w') where `end` cuts, by the weights as they are now, reduced as far as the head
        allows. On the way the validation photos' maps at the cut are kept, so that phase 2 judges them from there.
        Several processes share the work; the first one writes.
        """
        train, val = (self.folder / f"{side}_features.npy" for side in ("train", "val"))
        looks, kept = (1 + mirrored) * len(self.data.train), len(self.data.val)
        total = looks + kept
        lack_train, lack_val = self.fabric.broadcast((not train.exists(), not val.exists()))

        def ends(photos: Tensor) -> list[Tensor]:
            return [self._last(self.maps(photos))]

        def both(photos: Tensor) -> list[Tensor]:
            maps = self.maps(photos)
            return [self._last(maps), maps]

        with torch.inference_mode(), reporter.bar("features", "photos") as advance:
            if lack_train:
                with self.fabric.autocast():
                    flips = [ends, lambda photos: ends(photos.flip(3))][: 1 + mirrored]
                    parts = (part for of in flips for part in self._by_all(self.data.train, of))
                    self._write([train], looks, parts, lambda done: advance(done, total))
            if lack_val:
                files = [val, *([self.folder / "val_maps.npy"] if len(self.prefix) else [])]
                parts = self._by_all(self.data.val, both)
                self._write(files, kept, parts, lambda done: advance(looks + done, total))
        self.fabric.barrier()  # from here on all files are whole
        return np.load(train, mmap_mode="r", allow_pickle=False), np.load(val, mmap_mode="r", allow_pickle=False)

    def _by_all(self, which: np.ndarray, of: Callable[[Tensor], list[Tensor]]) -> Iterator[list[Tensor]]:
        """What `of` makes of these photos, a batch after the other and in order; several processes take turns."""
        rank, world, batch = self.fabric.global_rank, self.fabric.world_size, 32
        turns = -(-len(which) // (world * batch))
        mine = np.resize(which, (turns, world, batch))[:, rank].ravel() if world > 1 else which
        for turn, photos in enumerate(judged(self.data.pack, mine, self.size, batch)):
            parts = of(photos)
            if world > 1:
                left = len(which) - turn * world * batch
                parts = [tensor.flatten(0, 1)[:left] for tensor in self.fabric.all_gather(parts)]
            yield parts

    def _write(
        self, files: Sequence[Path], rows: int, parts: Iterator[list[Tensor]], advance: Callable[[int], None]
    ) -> None:
        """Each of the parts into its file, by the first process."""
        with ExitStack() as stack:
            writers = [stack.enter_context(ArrayFile(file, rows)) for file in files if self.fabric.is_global_zero]
            for tensors in parts:
                for writer, tensor in zip(writers, tensors, strict=False):
                    writer.append(tensor)
                    advance(writer.written)

    def _last(self, maps: Tensor) -> Tensor:
        middle, tail = self.end()
        last = middle.eval()(maps)
        return last if len(tail) else self.network.head.reduce(last)

    def validation(self, some: slice = slice(None)) -> Iterator[Tensor]:
        """The validation photos' maps at the cut, in order; all of them, or some."""
        kept = self.folder / "val_maps.npy"
        if len(self.prefix) and kept.exists():
            maps = np.load(kept, mmap_mode="r", allow_pickle=False)[some]
            for first in range(0, len(maps), 32):
                yield torch.from_numpy(maps[first : first + 32].copy()).to(memory_format=torch.channels_last)
        else:
            for photos in judged(self.data.pack, self.data.val[some], self.size):
                yield self.maps(photos)


class ArrayFile:
    """A float32 .npy file of so many rows, written in parts; it appears when it is whole.

    On a full disk it raises OSError, where writing into a memory map would kill the process.
    """

    def __init__(self, file: Path, rows: int) -> None:
        self.whole, self.half, self.rows, self.written = file, file.with_suffix(".half"), rows, 0
        self.file = self.half.open("wb")

    def append(self, part: Tensor) -> None:
        """(n, ...) with the same trailing shape each time."""
        if not self.written:
            self._begin(tuple(part.shape[1:]))
        self.file.write(part.float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        self.written += len(part)

    def _begin(self, shape: tuple[int, ...]) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self.file:
            if not failed and not self.rows:
                self._begin((0,))
        if not failed:
            self.half.replace(self.whole)
