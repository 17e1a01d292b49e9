"""Builds each phase of a training: its modules, optimiser and batches.

The linear probe (phase 1) trains the head on features computed once: exactly where that is a convex problem.
Fine-tuning (phase 2) trains the later stages too, and where the recipe unfreezes gradually, phase 3 all of them; there
a batch goes uint8 images -> normalise -> frozen prefix (no gradients) -> trainable part. A head that can be fitted
exactly is fitted once more on the features of the fine-tuned layers (phase 4).

A multi-stage head is fitted so well that the loss of the training images has nothing left to teach the backbone. So
fine-tuning goes through a linear classifier of the last map, and the refit takes all stages again
(docs/lab/features-and-fine-tuning.md).
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fieldmark.data.augment import BatchMixer, class_weights
from fieldmark.data.dataset import (
    AugmentedDataset,
    DatasetSplits,
    ShuffledBatchSampler,
    iter_eval_batches,
    iter_train_batches,
)
from fieldmark.models import Network, is_added, linear_probe
from fieldmark.models.heads import Head, LastMapHead, LinearHead, MultiStage
from fieldmark.models.profile import uncropped_size
from fieldmark.models.stages import LastMapBackbone, LayerInput
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.frozen_features import TRAIN_MAPS, FeaturePair, FrozenFeatures, iter_batches, pack_maps
from fieldmark.training.history import HEAD_REFIT, LINEAR_PROBE
from fieldmark.training.phases import (
    BatchSource,
    Phase,
    choose_last_frozen_layers,
    init_attention_norms,
    make_ema_model,
    make_optimizer,
    parameter_groups,
    progressive_crop_size,
    split_epochs,
    train_crop_size,
)

MAX_CACHED_BYTES = 4 << 30
"""Largest size of the cached maps of all training images, in bytes."""


class PhaseBuilder:
    """Builds the phases of training `network` on `data`; `folder` keeps the cached features.

    `frozen_features` and `trainable` are the two parts of the network in the current phase (`enter_phase`).
    """

    def __init__(self, network: Network, data: DatasetSplits, recipe: Recipe, folder: Path, fabric: Fabric) -> None:
        self.network, self.data, self.recipe, self.folder, self.fabric = network, data, recipe, folder, fabric
        self.image_size = recipe.image_size or uncropped_size(network)
        network.to(fabric.device).to(memory_format=torch.channels_last)
        self.last_frozen_layers = choose_last_frozen_layers(network, recipe)
        self.num_classes = int(data.labels.max()) + 1
        self.train_labels, self.val_labels = (torch.from_numpy(data.labels[split]) for split in (data.train, data.val))
        n, rank, world = len(data.val), fabric.global_rank, fabric.world_size
        self.val_shard = slice(n * rank // world, n * (rank + 1) // world)  # while fine-tuning
        weights = class_weights(self.train_labels.numpy(), self.num_classes)
        self.class_weights = fabric.to_device(weights) if recipe.imbalance == "weights" else None
        self.last_map_classifier: nn.Linear | None = None  # of the features of the last exact solution
        self.enter_phase(LINEAR_PROBE)

    def enter_phase(self, phase: int) -> None:
        """Split the network for this phase: to fit the head alone as for the fine-tuning that follows or precedes."""
        cut = self.last_frozen_layers[-1 if phase == HEAD_REFIT else max(0, phase - 2)]
        self.frozen_features = FrozenFeatures(self.network, cut, self.data, self.image_size, self.folder, self.fabric)
        self.trainable = nn.Sequential(self.frozen_features.trainable_backbone, self.network.head)

    def full_state_dict(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network's state dict with the tensors of `trainable` replaced by these."""
        parts = {"0": "backbone", "1": "head"}
        moved = {f"{parts[name[0]]}{name[1:]}": tensor for name, tensor in tensors.items()}
        return self.network.state_dict() | moved

    def init_attention_norms(self) -> None:
        """Start the norms of added attention from their input's statistics over some training images."""
        count = max(8, min(64, 64 * 224**2 // self.image_size**2))  # all in one batch, so fewer large ones
        indices = self.data.train[:: max(1, len(self.data.train) // count)][:count]  # they are ordered by class
        (images,) = iter_eval_batches(self.data.images, indices, self.image_size, batch_size=count)
        init_attention_norms(self.network, self.frozen_features.normalise(self.fabric.to_device(images)))

    def features_fingerprint(self, dataset: str, split: bytes) -> str:
        """Hash of everything that decides the features of the linear probe; `dataset` and `split` identify the data."""
        recipe, network_spec, head = self.recipe, self.network.spec, self.network.head
        _, tail = self.frozen_features.split_at_last_stage()
        changes = (
            [] if network_spec.inserted else [text for text in (network_spec.attention, network_spec.after) if text]
        )
        if network_spec.attention and network_spec.attention.startswith(("replace(", "none")):
            changes.append(network_spec.attention)
        is_pooled = not len(tail) and type(head).pre_pool is not Head.pre_pool
        parts = [
            network_spec.backbone,
            network_spec.channels,
            recipe.weights,
            changes,
            f"{type(head).__name__} {getattr(head, 'pool', '')}" if is_pooled else "",
            self.image_size,
            recipe.precision,
            network_spec.pad,
            dataset,
            hashlib.sha256(split).hexdigest(),
            recipe.crop_boxes,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    # ---- linear probe

    @property
    def has_exact_probe(self) -> bool:
        """Whether the linear probe is solved exactly: it is one linear layer on pooled features, and nothing else."""
        head, (_, tail) = self.network.head, self.frozen_features.split_at_last_stage()
        is_linear = type(head) in (LinearHead, MultiStage) and not head.hidden  # type: ignore[union-attr]
        return self.recipe.exact and is_linear and not list(tail.parameters())

    @property
    def refits_head(self) -> bool:
        """Whether the head is fitted once more after fine-tuning."""
        return self.has_exact_probe and self.recipe.frozen_epochs > 0 and not self.recipe.is_from_scratch

    @property
    def keeps_train_maps(self) -> bool:
        """Whether the refit starts from the maps of the training images after the layers that stay frozen."""
        return (
            self.refits_head
            and self.recipe.epochs != 0
            and len(self.last_frozen_layers) == 1
            and self._can_cache_maps(self.image_size)
        )

    @property
    def has_train_maps(self) -> bool:
        """Whether those maps were kept, in this run or before it was resumed."""
        return self.keeps_train_maps and (self.folder / TRAIN_MAPS).exists()

    @property
    def tunes_last_map(self) -> bool:
        """Whether fine-tuning goes through a linear classifier of the last map."""
        return self.refits_head and isinstance(self.network.head, MultiStage)

    def solve_linear_probe(self, features: FeaturePair, phase: int = LINEAR_PROBE) -> Phase:
        """Fit the linear head exactly, in `LINEAR_PROBE` or in `HEAD_REFIT`.

        Returns:
            a phase of one epoch with learning rate 0, so that the head is evaluated like the others.
        """
        rows, val_rows = (part.reshape(len(part), math.prod(part.shape[1:])) for part in features)  # perhaps none
        fc = self.network.head.classifier
        if isinstance(self.network.head, MultiStage):
            self.network.head.standardize.reset()  # the solution is one for the features as they are
        self._fit(fc, rows, val_rows)
        if isinstance(self.network.head, MultiStage):
            columns, smoothing = self.network.head.last_map_columns, self.recipe.label_smoothing
            other = self.last_map_classifier = self._fit_last_map(features)
            linear_probe.average_classifiers(fc, other, columns, val_rows, self.val_labels, smoothing)
            mean, scale = linear_probe.mean_and_scale(rows, fc.weight.device)
            self.network.head.set_standardization(mean, len(mean) * scale.item() ** 2)
        train, size = features.train, linear_probe.ROWS_PER_BLOCK
        optimizer = torch.optim.SGD(self.network.head.parameters(), lr=0.0)

        def batches(first: int, last: int) -> Iterator[tuple[LayerInput, Tensor]]:
            block = slice(first * size, last * size)
            yield from zip(iter_batches(train[block], size), self.train_labels[block].split(size), strict=True)

        steps = -(-len(train) // size)
        return Phase(
            phase,
            self.network.head,
            optimizer,
            batches,
            lambda: iter_batches(features.val, 256),
            epochs=1,
            steps_per_epoch=steps,
            schedule="cosine",
        )

    def _fit_last_map(self, features: FeaturePair) -> nn.Linear:
        """The best linear classifier of the means of the last map."""
        head = self.network.head
        assert isinstance(head, MultiStage)
        rows, val_rows = (part[:, head.last_map_columns] if len(part) else part for part in features)
        fc = nn.Linear(rows.shape[1], self.num_classes, device=head.fc.weight.device)
        self._fit(fc, rows, val_rows)
        return fc

    def _fit(self, fc: nn.Linear, rows: np.ndarray, val_rows: np.ndarray) -> None:
        """Set `fc` to the best linear classifier of features of the training and the validation images."""
        smoothing, weights = self.recipe.label_smoothing, self.class_weights
        linear_probe.fit_logistic_regression(rows, self.train_labels, val_rows, self.val_labels, fc, smoothing, weights)

    def build_head_phase(self, features: FeaturePair) -> Phase:
        """Train the head, and attention added after the last stage, on cached features by gradient descent."""
        recipe, (_, tail) = self.recipe, self.frozen_features.split_at_last_stage()
        module = nn.Sequential(tail, self.network.head)
        self.trainable.requires_grad_(False)
        for part in [*filter(is_added, tail.modules()), self.network.head]:
            part.requires_grad_(True)
        n_train, steps = len(self.data.train), max(1, len(self.data.train) // recipe.batch)

        def batches(first: int, last: int) -> Iterator[tuple[LayerInput, Tensor]]:
            for step in range(first, last):
                epoch, position = divmod(step, steps)
                order = np.random.default_rng((recipe.seed, 4, epoch)).permutation(n_train)
                indices = np.sort(order[position * recipe.batch : (position + 1) * recipe.batch])
                yield torch.from_numpy(features.train[indices]), self.train_labels[torch.from_numpy(indices)]

        parameters = [p for p in module.parameters() if p.requires_grad]
        if recipe.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=recipe.frozen_lr)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=recipe.frozen_lr, weight_decay=1e-2)
        return Phase(
            LINEAR_PROBE,
            module,
            optimizer,
            batches,
            lambda: iter_batches(features.val, 256),
            recipe.frozen_epochs,
            steps,
            schedule="cosine",
        )

    # ---- fine-tuning

    def start_from_last_map(self, features: FeaturePair) -> None:
        """Let a multi-stage head that was fitted exactly classify by the last map alone, as well as that can."""
        head = self.network.head
        if not self.tunes_last_map:
            return
        assert isinstance(head, MultiStage)
        rows, fc = features.train[:, head.last_map_columns], self.last_map_classifier
        assert fc is not None  # the linear probe was solved before
        _, scale = linear_probe.mean_and_scale(rows, fc.weight.device)
        head.set_standardization(head.standardize.mean.clone(), rows.shape[1] * scale.item() ** 2)
        head.classify_by_last_map(fc.weight.detach(), fc.bias.detach())

    def _tuned_module(self) -> nn.Module:
        """What fine-tuning trains, with the parameters and their names in `trainable`."""
        if not self.tunes_last_map:
            return self.trainable
        assert isinstance(self.network.head, MultiStage)
        backbone = LastMapBackbone.of(self.frozen_features.trainable_backbone)
        return nn.Sequential(backbone, LastMapHead(self.network.head))

    def build_finetune_phase(self, number: int, recipe: Recipe) -> Phase:
        """Train everything after the frozen prefix on augmented images; `recipe` may be a planned one."""
        self.trainable.requires_grad_(True)
        epochs = split_epochs(recipe.epochs, len(self.last_frozen_layers), number - 2)
        steps = recipe.steps_per_epoch or max(1, len(self.data.train) // recipe.batch)
        frozen = self.frozen_features
        groups = parameter_groups(self.network, frozen.trainable_backbone, recipe)
        module = self._tuned_module()
        return Phase(
            number,
            module,
            make_optimizer(groups, recipe),
            self._finetune_batches(number, recipe, epochs, steps),
            lambda: frozen.val_maps(self.val_shard),
            epochs,
            steps,
            recipe.schedule,
            make_ema_model(module, recipe.ema) if recipe.ema else None,
        )

    def _finetune_batches(self, number: int, recipe: Recipe, epochs: int, steps: int) -> BatchSource:
        """Batches of maps at the cut and their targets, different in each phase."""
        data, labels, fabric = self.data, self.train_labels.numpy(), self.fabric
        weights = class_weights(labels, self.num_classes).numpy()[labels] if recipe.imbalance == "sampling" else None
        seed = recipe.seed + 2**32 * (number - 2)
        has_mixing = recipe.mixup or recipe.cutmix
        mixer = BatchMixer(self.num_classes, seed, recipe.mixup, recipe.cutmix) if has_mixing else None
        ranks = {"rank": fabric.global_rank, "world_size": fabric.world_size}

        def batches(first: int, last: int) -> Iterator[tuple[LayerInput, Tensor]]:
            end_size = train_crop_size(recipe, self.image_size)
            size = progressive_crop_size(recipe.start_size, end_size, first // steps, epochs)
            if recipe.augment == "none" and mixer is None and self._can_cache_maps(size):
                yield from self._cached_batches(
                    size, ShuffledBatchSampler(len(labels), recipe.batch, first, last, seed, weights=weights, **ranks)
                )
                return
            dataset = AugmentedDataset(data.images, data.train, labels, size, recipe.augment, seed, crop=1.0)
            loader = iter_train_batches(dataset, recipe.batch, first, last, weights=weights, **ranks)
            for step, (images, targets) in enumerate(loader, first):
                if mixer is not None:
                    images, targets = mixer(images, targets, step)
                with fabric.autocast():
                    maps = self.frozen_features.compute_maps(images)
                yield maps, targets

        return batches

    def _can_cache_maps(self, size: int) -> bool:
        """Whether there are frozen layers, and the maps of all training images are small enough to keep."""
        if not len(self.frozen_features.prefix):
            return False
        row = pack_maps(self.frozen_features.compute_maps(torch.zeros(1, 3, size, size, dtype=torch.uint8)))
        return row.numel() * 4 * len(self.data.train) <= MAX_CACHED_BYTES

    def _cached_batches(self, size: int, sampler: ShuffledBatchSampler) -> Iterator[tuple[LayerInput, Tensor]]:
        """Batches of cached feature maps, for training without augmentation."""
        maps = self.frozen_features.train_maps(size)
        for items in sampler:
            indices = [k for _, k in items]
            yield self.frozen_features.unpack_maps(torch.from_numpy(maps[indices]), size), self.train_labels[indices]
