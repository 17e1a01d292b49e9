"""The frozen layers of a network, and what they compute once for each image, kept in .npy files."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fieldmark.core.io import partial_path
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import AugmentedDataset, DatasetSplits, Normalize, iter_eval_batches
from fieldmark.models import Backbone, Network, is_added
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.stages import LayerInput, StageMaps

TRAIN_FEATURES, VAL_FEATURES, VAL_MAPS = "train_features.npy", "val_features.npy", "val_maps.npy"
TUNED = "tuned_"
"""Before the names of the files of features that were computed after fine-tuning."""
BATCH_SIZE = 32

BatchLoader = Callable[[np.ndarray, int], Iterator[Tensor]]
"""(indices, batch size) -> uint8 batches (n, 3, h, w)."""
FeatureFunction = Callable[[Tensor, LayerInput | None], Tensor]
"""(images, their maps after the last frozen layer if they are computed already) -> features."""


class FeaturePair(NamedTuple):
    """Input of the linear probe, each (n, c, h, w) or (n, c), mapped from a file."""

    train: np.ndarray
    """Of the training images."""
    val: np.ndarray


class FrozenFeatures:
    """Normalisation and the layers up to the last frozen one (none from scratch), which never change.

    Training inputs are computed in the training precision, evaluation inputs in float32.

    Args:
        network: split into `prefix` and `trainable_backbone`, which share its modules.
        last_frozen_layer: where it is split.
        data: images, labels and splits.
        size: side of the evaluated images, in pixels.
        folder: keeps `TRAIN_FEATURES` and `VAL_FEATURES` for the linear probe, `VAL_MAPS` for the evaluation while
            fine-tuning, and a `train_maps_SIZE.npy` where fine-tuning uses no augmentation.
        fabric: devices and precision; several processes share the work.
    """

    def __init__(
        self,
        network: Network,
        last_frozen_layer: str | None,
        data: DatasetSplits,
        size: int,
        folder: Path,
        fabric: Fabric,
    ) -> None:
        self.network, self.data, self.image_size, self.folder, self.fabric = network, data, size, folder, fabric
        self.last_frozen_layer = last_frozen_layer
        self.normalise = fabric.to_device(Normalize(network.preprocessing.mean, network.preprocessing.std))
        self.prefix, self.trainable_backbone = (
            network.backbone.split_after(last_frozen_layer) if last_frozen_layer else (Backbone(), network.backbone)
        )
        self.prefix = self.prefix.to(fabric.device).eval().requires_grad_(False)
        self.map_shapes: dict[int, tuple[int, ...]] = {}  # image size -> (c, h', w')

    @cached_property
    def fused_prefix(self) -> nn.Module:
        """The prefix with its batch norms fused into the convolutions."""
        return self._fuse_bn(self.prefix, nn.Identity())

    def compute_maps(self, images: Tensor) -> LayerInput:
        """uint8 (n, 3, h, w) -> maps (n, c, h', w') after the last frozen layer, without gradients.

        For a multi-stage head they come with the moments of the stages before.
        """
        with torch.no_grad():
            return self.fused_prefix(self.normalise(self.fabric.to_device(images)))

    def _fuse_bn(self, layers: nn.Module, before: nn.Module) -> nn.Module:
        """Layers in eval mode with batch norms fused, checked on the first two images as `before` transforms them."""
        images = next(iter_eval_batches(self.data.images, self.data.train[:2], self.image_size))
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.fabric.device.type, enabled=False):
            return fuse_batch_norms(layers, before(self.normalise(self.fabric.to_device(images))))

    def unpack_maps(self, rows: Tensor, size: int) -> LayerInput:
        """Rows of a file of maps -> the maps, of images with `size` pixels."""
        if not self.network.head.reads_stages:
            return rows.to(memory_format=torch.channels_last)
        if size not in self.map_shapes:
            blank = self.compute_maps(torch.zeros(1, 3, size, size, dtype=torch.uint8))
            self.map_shapes[size] = tuple(blank[0].shape[1:])
        return StageMaps.unpack(rows, self.map_shapes[size])

    def split_at_last_stage(self) -> tuple[Backbone, Backbone]:
        """The trainable backbone, and what the linear probe trains of it: attention added after the last stage.

        A multi-stage head is fitted alone: that attention is the identity until fine-tuning.
        """
        if self.network.head.reads_stages:
            return self.trainable_backbone, Backbone()
        middle, tail = self.trainable_backbone.split_after(list(self.network.backbone.stages)[-1])
        return (middle, tail) if any(map(is_added, tail.modules())) else (self.trainable_backbone, Backbone())

    # ---- features for the linear probe

    def compute_features(self, reporter: Reporter, prefix: str = "") -> FeaturePair:
        """Features of the training and the validation images, by the present weights, pooled as far as the head allows.

        The maps of the validation images are kept on the way for the evaluation while fine-tuning. `prefix` is that of
        the files' names: `TUNED` after fine-tuning.
        """
        train_file, val_file = self.folder / (prefix + TRAIN_FEATURES), self.folder / (prefix + VAL_FEATURES)
        n_train, n_val = len(self.data.train), len(self.data.val)
        # The other processes do not look: a network disk would show them old listings.
        missing = (not train_file.exists(), not val_file.exists()) if self.fabric.is_global_zero else (False, False)
        needs_train, needs_val = self.fabric.broadcast(missing)
        compute = self._feature_function() if needs_train or needs_val else lambda images, maps: images
        with torch.inference_mode(), reporter.progress_bar("features", "images") as advance:
            if needs_train:
                parts = self._map_distributed(self.data.train, lambda images: [compute(images, None)])
                with self.fabric.autocast():
                    self._write_arrays([train_file], parts, lambda n: advance(n, n_train + n_val))
            if needs_val:
                keeps_maps = len(self.prefix) and not prefix
                files = [val_file, *([self.folder / VAL_MAPS] if keeps_maps else [])]
                compute_val = self._features_and_maps(compute) if keeps_maps else lambda images: [compute(images, None)]
                parts = self._map_distributed(self.data.val, compute_val)
                self._write_arrays(files, parts, lambda n: advance(n_train + n, n_train + n_val))
        self.fabric.barrier()  # from here on all files are whole
        return FeaturePair(*(np.load(file, mmap_mode="r", allow_pickle=False) for file in (train_file, val_file)))

    def measure_seconds_per_image(self, batches: int = 4) -> float:
        """How long the features of a training image take."""
        compute, times = self._feature_function(), list[float]()
        with torch.inference_mode(), self.fabric.autocast():
            for images in islice(iter_eval_batches(self.data.images, self.data.train, self.image_size), batches):
                start = time.monotonic()
                compute(images, None)
                times.append((time.monotonic() - start) / len(images))
        return float(np.median(times))

    def _feature_function(self) -> FeatureFunction:
        """The function from images, and their maps if they are there, to the input of what the linear probe trains."""
        head = self.network.head
        if head.reads_stages:
            # Of images, not of maps: the moments of a stage are rounded differently before and behind a split, and runs
            # that share features split at different layers.
            whole = self._fuse_bn(self.network.backbone.eval(), nn.Identity())
            return lambda images, _: head.pre_pool(whole(self.normalise(self.fabric.to_device(images))))
        middle, tail = self.split_at_last_stage()
        fused = self._fuse_bn(middle.eval(), self.fused_prefix)
        pool = nn.Identity() if len(tail) else head.pre_pool
        return lambda images, maps: pool(fused(self.compute_maps(images) if maps is None else maps))

    def _features_and_maps(self, compute: FeatureFunction) -> Callable[[Tensor], list[Tensor]]:
        def both(images: Tensor) -> list[Tensor]:
            maps = self.compute_maps(images)
            return [compute(images, maps), pack_maps(maps)]

        return both

    # ---- maps for fine-tuning

    def train_maps(self, size: int) -> np.ndarray:
        """Maps of the training images at `size` pixels without augmentation, mapped from a file (`unpack_maps`)."""
        file = self.folder / f"train_maps_{size}.npy"
        if self.fabric.broadcast(self.fabric.is_global_zero and not file.exists()):
            dataset = AugmentedDataset(
                self.data.images, self.data.train, self.data.labels, size, "none", seed=0, crop=1.0
            )

            def load(indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
                for first in range(0, len(indices), batch_size):
                    yield torch.stack([dataset[0, int(k)][0] for k in indices[first : first + batch_size]])

            with torch.inference_mode(), self.fabric.autocast():
                parts = self._map_distributed(
                    np.arange(len(dataset)), lambda images: [pack_maps(self.compute_maps(images))], load
                )
                self._write_arrays([file], parts, lambda _: None)
        self.fabric.barrier()
        return np.load(file, mmap_mode="r", allow_pickle=False)

    def val_maps(self, selection: slice = slice(None)) -> Iterator[LayerInput]:
        """Batches of the validation images' maps, in order; of all images, or of some."""
        file = self.folder / VAL_MAPS
        if len(self.prefix) and file.exists():
            maps = np.load(file, mmap_mode="r", allow_pickle=False)[selection]
            for batch in iter_batches(maps, BATCH_SIZE):
                yield self.unpack_maps(batch, self.image_size)
        else:
            for images in iter_eval_batches(self.data.images, self.data.val[selection], self.image_size):
                yield self.compute_maps(images)

    # ---- several processes

    def _map_distributed(
        self,
        indices: np.ndarray,
        compute: Callable[[Tensor], list[Tensor]],
        load: BatchLoader | None = None,
    ) -> Iterator[list[Tensor]]:
        """`compute` of batches of these images, in order; several processes take turns, and all get all results.

        `load` makes the batches; by default evaluation preprocessing is used.
        """
        load = load or (lambda indices, size: iter_eval_batches(self.data.images, indices, self.image_size, size))
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        turns = -(-len(indices) // (world_size * BATCH_SIZE))
        own = np.resize(indices, (turns, world_size, BATCH_SIZE))[:, rank].ravel() if world_size > 1 else indices
        for turn, images in enumerate(load(own, BATCH_SIZE)):
            parts = compute(images)
            if world_size > 1:
                n_left = len(indices) - turn * world_size * BATCH_SIZE
                parts = [tensor.flatten(0, 1)[:n_left] for tensor in self.fabric.all_gather(parts)]
            yield parts

    def _write_arrays(self, files: list[Path], parts: Iterator[list[Tensor]], advance: Callable[[int], None]) -> None:
        """Write the k-th tensor of every batch to the k-th file, in the main process."""
        with ExitStack() as stack:
            writers = [stack.enter_context(NpyWriter(file)) for file in files if self.fabric.is_global_zero]
            for tensors in parts:
                for writer, tensor in zip(writers, tensors, strict=False):
                    writer.append(tensor)
                    advance(writer.rows_written)


def pack_maps(maps: LayerInput) -> Tensor:
    """Maps -> rows of a file; the inverse is `FrozenFeatures.unpack_maps`."""
    return maps.pack() if isinstance(maps, StageMaps) else maps


def iter_batches(array: np.ndarray, size: int) -> Iterator[Tensor]:
    """Copies of consecutive rows as tensors."""
    for first in range(0, len(array), size):
        yield torch.from_numpy(array[first : first + size].copy())


class NpyWriter:
    """A float32 .npy file, written in parts; it gets its name when it is whole.

    On a full disk it raises OSError, where writing into a memory map would kill the process.
    """

    def __init__(self, file: Path) -> None:
        self.path, self.partial_path, self.rows_written = file, partial_path(file), 0
        self.row_shape: tuple[int, ...] = ()
        self.file = self.partial_path.open("wb")

    def append(self, part: Tensor) -> None:
        """Append rows (n, ...), with the same trailing shape each time."""
        if not self.rows_written:
            self.row_shape = tuple(part.shape[1:])
            self._write_header()
        self.file.write(part.float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        self.rows_written += len(part)

    def _write_header(self) -> None:
        """Write the header at the start of the file; numpy leaves room in it for the number of rows to grow."""
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
