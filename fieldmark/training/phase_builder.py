"""Network + photos + recipe -> what each phase trains, on which batches.

Phase 1 trains the head on features computed once: exactly where that is a convex problem. Phase 2 trains the later
stages too, and where the recipe unfreezes gradually, phase 3 all of them; there the way of a batch is uint8 photos ->
normalise -> frozen prefix (no gradients) -> trained part.
"""

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
from fieldmark.models.heads import LinearHead
from fieldmark.models.profile import uncropped_size
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.frozen_features import FrozenFeatures
from fieldmark.training.phases import (
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
"""Bytes of a frozen part's maps that are kept for training on them again."""

FeaturePair = tuple[np.ndarray, np.ndarray]
"""Of the training photos (perhaps mirrored ones behind them), and of the validation photos."""


class PhaseBuilder:
    """The phases of fine-tuning `network` on `data`; `folder` keeps what is cached.

    `frozen` and `trained` are the two parts of the network in the phase that was entered last.
    """

    def __init__(self, network: Network, data: DatasetSplits, recipe: Recipe, folder: Path, fabric: Fabric) -> None:
        self.network, self.data, self.recipe, self.folder, self.fabric = network, data, recipe, folder, fabric
        self.image_size = recipe.image_size or uncropped_size(network)
        network.to(fabric.device).to(memory_format=torch.channels_last)
        self.last_frozen_layers = choose_last_frozen_layers(network, recipe)
        self.num_classes = int(data.labels.max()) + 1
        self.train_labels, self.val_labels = (torch.from_numpy(data.labels[side]) for side in (data.train, data.val))
        n, rank, world = len(data.val), fabric.global_rank, fabric.world_size
        self.val_shard = slice(n * rank // world, n * (rank + 1) // world)  # of the validation photos, behind phase 1
        weights = class_weights(self.train_labels.numpy(), self.num_classes)
        self.class_weights = fabric.to_device(weights) if recipe.imbalance == "weights" else None
        self.enter_phase(1)

    def enter_phase(self, phase: int) -> None:
        """Cut the network where this phase has it; phase 1 where the next one will."""
        cut = self.last_frozen_layers[max(0, phase - 2)]
        self.frozen_features = FrozenFeatures(self.network, cut, self.data, self.image_size, self.folder, self.fabric)
        self.trainable = nn.Sequential(self.frozen_features.trainable_backbone, self.network.head)

    def full_state_dict(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network's tensors under its own names, with these in place of those of `trained`."""
        homes = {"0": "backbone", "1": "head"}
        moved = {f"{homes[name[0]]}{name[1:]}": tensor for name, tensor in tensors.items()}
        return self.network.state_dict() | moved

    def init_attention_norms(self) -> None:
        """Start the norms of added attention from what they will see."""
        many = max(8, min(64, 64 * 224**2 // self.image_size**2))  # all at once, so fewer large ones
        few = self.data.train[:: max(1, len(self.data.train) // many)][:many]  # they lie class by class
        (photos,) = iter_eval_batches(self.data.images, few, self.image_size, batch_size=many)
        init_attention_norms(self.network, self.frozen_features.normalise(self.fabric.to_device(photos)))

    # ---- phase 1

    @property
    def has_exact_probe(self) -> bool:
        """Whether phase 1 is solved: it trains one linear layer on pooled features, and nothing else."""
        head, (_, tail) = self.network.head, self.frozen_features.split_at_last_stage()
        return self.recipe.exact and type(head) is LinearHead and not head.hidden and not list(tail.parameters())

    def solve_linear_probe(self, features: FeaturePair) -> Phase:
        """Solves phase 1. -> it as a phase of one step that changes nothing, so that it is judged like the others."""
        rows, val_rows = (some.reshape(len(some), math.prod(some.shape[1:])) for some in features)  # perhaps none
        labels = self.train_labels.repeat(len(rows) // len(self.train_labels))
        fc, smoothing = self.network.head.classifier, self.recipe.label_smoothing
        linear_probe.fit_logistic_regression(rows, labels, val_rows, self.val_labels, fc, smoothing, self.class_weights)
        train, steps = features[0][: len(self.data.train)], -(-len(self.data.train) // linear_probe.ROWS_PER_BLOCK)
        optimizer = torch.optim.SGD(self.network.head.parameters(), lr=0.0)

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            for k in range(
                first * linear_probe.ROWS_PER_BLOCK, last * linear_probe.ROWS_PER_BLOCK, linear_probe.ROWS_PER_BLOCK
            ):
                block = slice(k, k + linear_probe.ROWS_PER_BLOCK)
                yield torch.from_numpy(train[block].copy()), self.train_labels[block]

        return Phase(1, self.network.head, optimizer, batches, lambda: _iter_batches(features[1]), 1, steps, "cosine")

    def build_head_phase(self, features: FeaturePair) -> Phase:
        """The head, and attention behind the last stage, on cached features of the training photos."""
        recipe, (_, tail) = self.recipe, self.frozen_features.split_at_last_stage()
        module = nn.Sequential(tail, self.network.head)
        self.trainable.requires_grad_(False)
        for part in [*filter(is_added, tail.modules()), self.network.head]:
            part.requires_grad_(True)
        train, steps = len(self.data.train), max(1, len(self.data.train) // recipe.batch)

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            for step in range(first, last):
                turn, place = divmod(step, steps)
                order = np.random.default_rng((recipe.seed, 4, turn)).permutation(train)
                which = np.sort(order[place * recipe.batch : (place + 1) * recipe.batch])
                yield torch.from_numpy(features[0][which]), self.train_labels[torch.from_numpy(which)]

        parameters = [p for p in module.parameters() if p.requires_grad]
        if recipe.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=recipe.frozen_lr)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=recipe.frozen_lr, weight_decay=1e-2)
        return Phase(
            1, module, optimizer, batches, lambda: _iter_batches(features[1]), recipe.frozen_epochs, steps, "cosine"
        )

    # ---- the phases behind it

    def build_finetune_phase(self, number: int, recipe: Recipe) -> Phase:
        """Everything behind the frozen prefix, on photos that vary; `recipe` may have been planned meanwhile."""
        data, fabric = self.data, self.fabric
        self.trainable.requires_grad_(True)
        epochs = split_epochs(recipe.epochs, len(self.last_frozen_layers), number - 2)
        steps = recipe.steps_per_epoch or max(1, len(data.train) // recipe.batch)
        labels = self.train_labels.numpy()
        weights = class_weights(labels, self.num_classes).numpy()[labels] if recipe.imbalance == "sampling" else None
        seed = recipe.seed + 2**32 * (number - 2)  # each phase sees the photos anew
        mixer = (
            BatchMixer(self.num_classes, seed, recipe.mixup, recipe.cutmix) if recipe.mixup or recipe.cutmix else None
        )

        ranks = {"rank": fabric.global_rank, "world_size": fabric.world_size}

        def batches(first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
            size = progressive_crop_size(
                recipe.start_size, train_crop_size(recipe, self.image_size), first // steps, epochs
            )
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

        optimizer = make_optimizer(
            parameter_groups(self.network, self.frozen_features.trainable_backbone, recipe), recipe
        )
        average = make_ema_model(self.trainable, recipe.ema) if recipe.ema else None
        frozen = self.frozen_features
        return Phase(
            number, self.trainable, optimizer, batches, lambda: frozen.val_maps(self.val_shard), epochs, steps,
            recipe.schedule, average,
        )  # fmt: skip

    def _can_cache_maps(self, size: int) -> bool:
        """Whether there is a frozen part whose maps of all training photos may be kept."""
        if not len(self.frozen_features.prefix):
            return False
        feature_map = self.frozen_features.compute_maps(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        return feature_map.numel() * 4 * len(self.data.train) <= MAX_CACHED_BYTES

    def _cached_batches(self, size: int, sampler: ShuffledBatchSampler) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of photos that do not vary: the frozen part sees each of them once and for all."""
        maps = self.frozen_features.train_maps(size)
        for items in sampler:
            which = [k for _, k in items]
            yield torch.from_numpy(maps[which]).to(memory_format=torch.channels_last), self.train_labels[which]


def _iter_batches(features: np.ndarray) -> Iterator[Tensor]:
    for first in range(0, len(features), 256):
        yield torch.from_numpy(features[first : first + 256].copy())
