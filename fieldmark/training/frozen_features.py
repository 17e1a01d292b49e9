"""Photos -> what the frozen part of a network makes of them, computed once and kept in files."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import AugmentedDataset, DatasetSplits, Normalize, iter_eval_batches
from fieldmark.models import Backbone, Network, is_added
from fieldmark.models.fuse_bn import fuse_batch_norms


class FrozenFeatures:
    """The prefix of a network that never changes: normalisation and the layers up to the cut (none from scratch).

    `folder` keeps what is computed once: `train_features.npy` and `val_features.npy` for phase 1, `val_maps.npy` for
    judging in phase 2, `train_maps_SIZE.npy` where phase 2 trains on photos that do not vary. What is trained on is
    computed in the precision of the training, what is judged in 32 bits.
    """

    def __init__(
        self, network: Network, cut: str | None, data: DatasetSplits, size: int, folder: Path, fabric: Fabric
    ) -> None:
        self.network, self.data, self.image_size, self.folder, self.fabric = network, data, size, folder, fabric
        look = network.preprocessing
        self.normalise = fabric.to_device(Normalize(look.mean, look.std))
        self.prefix, self.trainable_backbone = (
            network.backbone.split_after(cut) if cut else (Backbone(), network.backbone)
        )
        self.prefix = self.prefix.to(fabric.device).eval().requires_grad_(False)

    @cached_property
    def fused_prefix(self) -> nn.Module:
        """The prefix with its norms folded: what computes."""
        return self._fuse_bn(self.prefix, nn.Identity())

    def compute_maps(self, photos: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) -> maps (n, c, h', w') at the cut, without gradients."""
        with torch.no_grad():
            return self.fused_prefix(self.normalise(self.fabric.to_device(photos)))

    def _fuse_bn(self, layers: nn.Module, before: nn.Module) -> nn.Module:
        """Layers in eval mode, as they are now, folded by the look of the first photos behind `before`."""
        photos = next(iter_eval_batches(self.data.images, self.data.train[:2], self.image_size))
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.fabric.device.type, enabled=False):
            return fuse_batch_norms(layers, before(self.normalise(self.fabric.to_device(photos))))

    def split_at_last_stage(self) -> tuple[Backbone, Backbone]:
        """`rest`, cut at the end of the last stage where attention was added behind it, and else behind everything."""
        middle, tail = self.trainable_backbone.split_after(list(self.network.backbone.stages)[-1])
        return (middle, tail) if any(map(is_added, tail.modules())) else (self.trainable_backbone, Backbone())

    def compute_features(self, reporter: Reporter, mirrored: Callable[[float], bool]) -> tuple[np.ndarray, np.ndarray]:
        """Features of the training photos, and of the validation photos.

        -> two times (photos, c, h', w') where `end` cuts, by the weights as they are now, reduced as far as the head
        allows. `mirrored` is told the seconds that the training photos took, and says whether they follow once more,
        mirrored. On the way the validation photos' maps at the cut are kept, so that phase 2 judges them from there.
        Several processes share the work; the first one writes and decides.
        """
        train, val = (self.folder / f"{side}_features.npy" for side in ("train", "val"))
        n_train, n_val = len(self.data.train), len(self.data.val)
        # The others do not look: a network disk would go on telling them that nothing is there.
        missing = (not train.exists(), not val.exists()) if self.fabric.is_global_zero else (False, False)
        needs_train, needs_val = self.fabric.broadcast(missing)
        middle, tail = self.split_at_last_stage()
        middle = self._fuse_bn(middle.eval(), self.fused_prefix) if needs_train or needs_val else middle

        def last(maps: Tensor) -> Tensor:
            return middle(maps) if len(tail) else self.network.head.pre_pool(middle(maps))

        def both(photos: Tensor) -> list[Tensor]:
            maps = self.compute_maps(photos)
            return [last(maps), maps]

        def train_parts() -> Iterator[list[Tensor]]:
            """Of the training photos, a batch after the other."""
            began = time.monotonic()
            yield from self._map_distributed(self.data.train, lambda photos: [last(self.compute_maps(photos))])
            if self.fabric.broadcast(mirrored(time.monotonic() - began)):
                yield from self._map_distributed(
                    self.data.train, lambda photos: [last(self.compute_maps(photos.flip(3)))]
                )

        with torch.inference_mode(), reporter.progress_bar("features", "photos") as advance:
            if needs_train:
                with self.fabric.autocast():
                    self._write_arrays([train], train_parts(), lambda done: advance(done, max(done, n_train) + n_val))
            if needs_val:
                files = [val, *([self.folder / "val_maps.npy"] if len(self.prefix) else [])]
                self._write_arrays(
                    files,
                    self._map_distributed(self.data.val, both),
                    lambda done: advance(n_train + done, n_train + n_val),
                )
        self.fabric.barrier()  # from here on all files are whole
        return np.load(train, mmap_mode="r", allow_pickle=False), np.load(val, mmap_mode="r", allow_pickle=False)

    def train_maps(self, size: int) -> np.ndarray:
        """Maps at the cut of the training photos as `augment: none` shows them: (photos, c, h', w'), in a file."""
        file = self.folder / f"train_maps_{size}.npy"
        if self.fabric.broadcast(self.fabric.is_global_zero and not file.exists()):
            dataset = AugmentedDataset(
                self.data.images, self.data.train, self.data.labels, size, "none", seed=0, crop=1.0
            )

            def load(which: np.ndarray, batch: int) -> Iterator[Tensor]:
                for first in range(0, len(which), batch):
                    yield torch.stack([dataset[0, int(k)][0] for k in which[first : first + batch]])

            with torch.inference_mode(), self.fabric.autocast():
                parts = self._map_distributed(np.arange(len(dataset)), lambda photos: [self.compute_maps(photos)], load)
                self._write_arrays([file], parts, lambda _: None)
        self.fabric.barrier()
        return np.load(file, mmap_mode="r", allow_pickle=False)

    def _map_distributed(
        self,
        which: np.ndarray,
        compute: Callable[[Tensor], list[Tensor]],
        load: Callable[[np.ndarray, int], Iterator[Tensor]] | None = None,
    ) -> Iterator[list[Tensor]]:
        """What `of` makes of these photos, a batch after the other and in order; several processes take turns.

        `load` makes batches of photo numbers; without it, they are seen as they are judged.
        """
        load = load or (
            lambda own_indices, batch: iter_eval_batches(self.data.images, own_indices, self.image_size, batch)
        )
        rank, world, batch = self.fabric.global_rank, self.fabric.world_size, 32
        turns = -(-len(which) // (world * batch))
        mine = np.resize(which, (turns, world, batch))[:, rank].ravel() if world > 1 else which
        for turn, photos in enumerate(load(mine, batch)):
            parts = compute(photos)
            if world > 1:
                left = len(which) - turn * world * batch
                parts = [tensor.flatten(0, 1)[:left] for tensor in self.fabric.all_gather(parts)]
            yield parts

    def _write_arrays(
        self, files: Sequence[Path], parts: Iterator[list[Tensor]], advance: Callable[[int], None]
    ) -> None:
        """Each of the parts into its file, by the first process."""
        with ExitStack() as stack:
            writers = [stack.enter_context(NpyWriter(file)) for file in files if self.fabric.is_global_zero]
            for tensors in parts:
                for writer, tensor in zip(writers, tensors, strict=False):
                    writer.append(tensor)
                    advance(writer.rows_written)

    def val_maps(self, selection: slice = slice(None)) -> Iterator[Tensor]:
        """The validation photos' maps at the cut, in order; all of them, or some."""
        kept = self.folder / "val_maps.npy"
        if len(self.prefix) and kept.exists():
            maps = np.load(kept, mmap_mode="r", allow_pickle=False)[selection]
            for first in range(0, len(maps), 32):
                yield torch.from_numpy(maps[first : first + 32].copy()).to(memory_format=torch.channels_last)
        else:
            for photos in iter_eval_batches(self.data.images, self.data.val[selection], self.image_size):
                yield self.compute_maps(photos)


class NpyWriter:
    """A float32 .npy file, written in parts; it appears when it is whole.

    On a full disk it raises OSError, where writing into a memory map would kill the process.
    """

    def __init__(self, file: Path) -> None:
        self.path, self.partial_path, self.rows_written = file, file.with_suffix(".half"), 0
        self.row_shape: tuple[int, ...] = ()  # of a row
        self.file = self.partial_path.open("wb")

    def append(self, part: Tensor) -> None:
        """(n, ...) with the same trailing shape each time."""
        if not self.rows_written:
            self.row_shape = tuple(part.shape[1:])
            self._write_header()
        self.file.write(part.float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        self.rows_written += len(part)

    def _write_header(self) -> None:
        """At the start of the file, always as long: numpy leaves room for the number of rows to grow."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows_written, *self.row_shape)}
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self.file:
            if not failed:
                self._write_header()
        if not failed:
            self.partial_path.replace(self.path)
