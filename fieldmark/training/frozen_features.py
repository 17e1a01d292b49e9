"""The frozen layers of a network, and what they compute once for each image, kept in .npy files."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fieldmark.core.io import partial_path
from fieldmark.core.progress import Reporter
from fieldmark.data.dataset import AugmentedDataset, DatasetSplits, Normalize, iter_eval_batches
from fieldmark.models import Backbone, Network, is_added
from fieldmark.models.fuse_bn import fuse_batch_norms
from fieldmark.models.stages import LayerInput, MultiStageBackbone, StageMaps, StagePrefix, run_in_two_parts

TRAIN_FEATURES, VAL_FEATURES = "train_features.npy", "val_features.npy"
TRAIN_MAPS, VAL_MAPS = "train_maps.npy", "val_maps.npy"
TUNED = "tuned_"
"""Before the names of the files of features that were computed after fine-tuning."""
BATCH_SIZE = 32

Split = Literal["train", "val"]
BatchLoader = Callable[[np.ndarray, int], Iterator[Tensor]]
"""(indices, batch size) -> uint8 batches (n, 3, h, w)."""
FeatureFunction = Callable[[Tensor], tuple[Tensor, LayerInput]]
"""Images -> features, and the maps after the last frozen layer."""


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
            fine-tuning, `TRAIN_MAPS` for the features of fine-tuned layers, and a `train_maps_SIZE.npy` where
            fine-tuning uses no augmentation.
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

    def compute_features(self, reporter: Reporter, *, keeps_train_maps: bool = False) -> FeaturePair:
        """Features of the training and the validation images, pooled as far as the head allows.

        The maps of the validation images are kept on the way for the evaluation while fine-tuning; with
        `keeps_train_maps` those of the training images too, for `compute_tuned_features`.
        """
        train_files, val_files = [self.folder / TRAIN_FEATURES], [self.folder / VAL_FEATURES]
        if len(self.prefix):
            val_files.append(self.folder / VAL_MAPS)
            train_files += [self.folder / TRAIN_MAPS] if keeps_train_maps else []
        return self._write_features(train_files, val_files, self._features_of_images, reporter)

    def compute_tuned_features(self, reporter: Reporter) -> FeaturePair:
        """The same by the present weights, after fine-tuning: from the maps after the frozen layers if they are kept.

        The files' names start with `TUNED`.
        """
        has_maps = self.fabric.broadcast(all((self.folder / name).exists() for name in (TRAIN_MAPS, VAL_MAPS)))
        train_files, val_files = ([self.folder / (TUNED + name)] for name in (TRAIN_FEATURES, VAL_FEATURES))
        compute = self._features_of_maps if has_maps and len(self.prefix) else self._features_of_images
        return self._write_features(train_files, val_files, compute, reporter)

    def _write_features(
        self,
        train_files: list[Path],
        val_files: list[Path],
        compute_parts: Callable[[], Callable[[Split], Iterator[list[Tensor]]]],
        reporter: Reporter,
    ) -> FeaturePair:
        """Write the files that are missing, and open the first of the training and of the validation images.

        Those of the training images are computed in the training precision, the others in float32.
        """
        # The other processes do not look: a network disk would show them old listings.
        missing = [not files[0].exists() for files in (train_files, val_files)] if self.fabric.is_global_zero else []
        needs_train, needs_val = self.fabric.broadcast(missing)
        n_train, total = len(self.data.train), len(self.data.train) + len(self.data.val)
        with torch.inference_mode(), reporter.progress_bar("features", "images") as advance:
            compute = compute_parts() if needs_train or needs_val else None
            if compute and needs_train:
                with self.fabric.autocast():
                    self._write_arrays(train_files, compute("train"), lambda n: advance(n, total))
            if compute and needs_val:
                self._write_arrays(val_files, compute("val"), lambda n: advance(n_train + n, total))
        self.fabric.barrier()  # from here on all files are whole
        return FeaturePair(
            *(np.load(files[0], mmap_mode="r", allow_pickle=False) for files in (train_files, val_files))
        )

    def _features_of_images(self) -> Callable[[Split], Iterator[list[Tensor]]]:
        """The function from a split to batches of its features and of its packed maps."""
        function = self._feature_function()

        def compute(images: Tensor) -> list[Tensor]:
            features, maps = function(images)
            return [features, pack_maps(maps)]

        return lambda split: self._map_distributed(getattr(self.data, split), compute)

    def _features_of_maps(self) -> Callable[[Split], Iterator[list[Tensor]]]:
        """The function from a split to batches of its features, from the maps that are kept."""
        layers = self._fuse_bn(self.split_at_last_stage()[0].eval(), self.fused_prefix)
        pool = self._pooling()

        def compute(rows: Tensor) -> list[Tensor]:
            return [pool(layers(self.fabric.to_device(self.unpack_maps(rows, self.image_size))))]

        def compute_split(split: Split) -> Iterator[list[Tensor]]:
            file = self.folder / {"train": TRAIN_MAPS, "val": VAL_MAPS}[split]
            maps = np.load(file, mmap_mode="r", allow_pickle=False)

            def load(indices: np.ndarray, size: int) -> Iterator[Tensor]:
                return (torch.from_numpy(maps[indices[k : k + size]]) for k in range(0, len(indices), size))

            return self._map_distributed(np.arange(len(maps)), compute, load)

        return compute_split

    def measure_seconds_per_image(self, batches: int = 4) -> float:
        """How long the features of a training image take."""
        compute, times = self._feature_function(), list[float]()
        with torch.inference_mode(), self.fabric.autocast():
            for images in islice(iter_eval_batches(self.data.images, self.data.train, self.image_size), batches):
                start = time.monotonic()
                compute(images)
                times.append((time.monotonic() - start) / len(images))
        return float(np.median(times))

    def _feature_function(self) -> FeatureFunction:
        """The function from images to the input of what the linear probe trains, and their maps."""
        head, pool = self.network.head, self._pooling()
        if not head.reads_stages:
            fused = self._fuse_bn(self.split_at_last_stage()[0].eval(), self.fused_prefix)

            def compute(images: Tensor) -> tuple[Tensor, LayerInput]:
                maps = self.compute_maps(images)
                return pool(fused(maps)), maps

            return compute
        whole = self._fuse_bn(self.network.backbone.eval(), nn.Identity())
        assert isinstance(whole, MultiStageBackbone)
        if not self.last_frozen_layer:
            return lambda images: (pool(whole(self.normalise(self.fabric.to_device(images)))), images)
        first, rest = whole.split_after(self.last_frozen_layer)
        assert isinstance(first, StagePrefix) and isinstance(rest, MultiStageBackbone)

        def compute_both(images: Tensor) -> tuple[Tensor, LayerInput]:
            maps, features = run_in_two_parts(first, rest, self.normalise(self.fabric.to_device(images)))
            return pool(features), maps

        return compute_both

    def _pooling(self) -> nn.Module | Callable[[Tensor], Tensor]:
        """What is done to the output of the backbone, as far as the linear probe trains nothing of it."""
        return nn.Identity() if len(self.split_at_last_stage()[1]) else self.network.head.pre_pool

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
