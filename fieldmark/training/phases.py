"""One phase of a training, and the functions that decide it: frozen layers, optimiser groups, loss, crop sizes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from fieldmark.models import AuxiliaryHead, Network, is_added
from fieldmark.models.stages import LayerInput
from fieldmark.recipes.recipe import Recipe
from fieldmark.training.history import HEAD_REFIT, LINEAR_PROBE

MAX_GRADIENT_NORM = 1.0
"""On natural photos the gradients of a pretrained network have a norm of 1 to 10. On images with other statistics they
can have hundreds, and a few such steps destroy it (docs/lab/features-and-fine-tuning.md)."""
BatchSource = Callable[[int, int], Iterable[tuple[LayerInput, Tensor]]]
"""(first step, last step) -> batches of (input of the module, labels)."""


@dataclass(frozen=True)
class Phase:
    """Module, optimiser, batches and length of one phase."""

    number: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    batches: BatchSource
    val_batches: Callable[[], Iterator[LayerInput]]  # the validation images as inputs of the module
    epochs: float  # a part of an epoch where a budget ends within it
    steps_per_epoch: int
    schedule: str
    ema_model: AveragedModel | None = None  # EMA of the weights; evaluated instead of `module`

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return int(self.epochs * self.steps_per_epoch)

    @property
    def is_finetuning(self) -> bool:
        """Whether layers of the backbone train."""
        return LINEAR_PROBE < self.number < HEAD_REFIT

    @property
    def eval_module(self) -> nn.Module:
        """The module that is evaluated and kept."""
        return self.module if self.ema_model is None else self.ema_model.module


def choose_last_frozen_layers(network: Network, recipe: Recipe) -> list[str | None]:
    """For each phase of fine-tuning: the last layer that stays frozen, or None where everything trains."""
    if recipe.weights == "none" or recipe.unfreeze == "all" or network.freeze_boundary is None:
        return [None]
    return [network.freeze_boundary] if recipe.unfreeze == "late" else [network.freeze_boundary, None]


def split_epochs(epochs: int, phases: int, index: int) -> int:
    """How many of the epochs of fine-tuning its phase `index` gets; the first ones get the remainder."""
    return epochs // phases + (index < epochs % phases)


def new_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that pretrained weights do not cover: added attention and auxiliary heads."""
    return (part for part in module.modules() if is_added(part) or isinstance(part, AuxiliaryHead))


def parameter_groups(network: Network, rest: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimiser's groups: backbone and new modules, each with weight decay and without.

    Biases and norms have no weight decay, unless the recipe says `decay_all`.
    """
    fresh = {id(p) for part in new_modules(rest) for p in part.parameters()}
    old = [p for p in rest.parameters() if id(p) not in fresh]
    new = [p for p in rest.parameters() if id(p) in fresh] + list(network.head.parameters())
    head_lr, backbone_lr = recipe.learning_rates
    groups = []
    for parameters, lr in ((old, backbone_lr), (new, head_lr)):
        for decayed in (False, True):
            some = [p for p in parameters if (p.ndim > 1) == decayed]
            decay = recipe.weight_decay if decayed or recipe.decay_all else 0.0
            if some:
                groups.append({"params": some, "lr": lr, "weight_decay": decay})
    return groups


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of fine-tuning; fused steps take a fifth to a half of the time (docs/lab/network-speed.md)."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rates[0], momentum=0.9, nesterov=True, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, lr=recipe.learning_rates[0], fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def clip_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Scale all gradients so that their 2-norm is at most `MAX_GRADIENT_NORM` (Pascanu et al. 2013)."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)


def make_ema_model(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the module's weights.

    The first steps follow faster, as in TensorFlow's ExponentialMovingAverage: by min(decay, (1 + n) / (10 + n)).
    """

    def update_ema(means: Any, weights: Any, n: Any) -> None:
        weight_share = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
        for mean, weight in zip(means, weights, strict=True):
            mean.lerp_(weight, weight_share)

    return AveragedModel(module, multi_avg_fn=update_ema)


def set_train_mode(module: nn.Module, keep_norms: bool) -> None:
    """Train mode for what trains; what is frozen stays in eval mode, batch norms with their running statistics too.

    With `keep_norms` the pretrained batch norms keep their statistics as well, although their scale and shift train:
    those of a few crops are worse (docs/lab/fine-tuning.md). Norms in new modules always update their statistics.
    """
    module.train()
    added = {id(norm) for part in new_modules(module) for norm in part.modules()}
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        frozen = parameters and not any(p.requires_grad for p in parameters)
        if frozen or (keep_norms and isinstance(part, nn.modules.batchnorm._BatchNorm) and id(part) not in added):
            part.eval()


def training_loss(
    module: nn.Module, inputs: LayerInput, targets: Tensor, smoothing: float, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a batch, auxiliary heads by their weight included, and the logits (n, classes).

    `targets` are class numbers (n,) or probabilities (n, classes). The mean is over the images, so that the losses of
    the chunks of a batch add up, whatever weights their classes have.
    """

    def mean(logits: Tensor) -> Tensor:
        each = F.cross_entropy(logits.float(), targets, class_weights, reduction="none", label_smoothing=smoothing)
        return each.mean()

    logits = module(inputs)
    loss = mean(logits)
    for auxiliary in module.modules():
        if isinstance(auxiliary, AuxiliaryHead) and auxiliary.training:
            loss = loss + auxiliary.loss_weight * mean(auxiliary.logits)
            del auxiliary.logits  # with its graph: nothing may copy the module while it is there
    return loss, logits


def train_crop_size(recipe: Recipe, size: int) -> int:
    """Pixels of a training crop for images evaluated at `size` pixels: a part of it in steps of 32, unless it is small.

    From scratch it is 6/7. A crop shows things larger than the whole image does; so much smaller, it shows them at the
    same size (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"). With pretrained weights it is 3/4:
    the time is better spent on more steps (docs/lab/features-and-fine-tuning.md).
    """
    whole = size < 96 or recipe.augment in ("none", "flip-crop")
    share = 6 / 7 if recipe.is_from_scratch else 3 / 4
    return recipe.train_size or (size if whole else round(size * share / 32) * 32)


def progressive_crop_size(start: int | None, end: int, epoch: int, epochs: int) -> int:
    """Pixels of the crops in `epoch` of `epochs`: from `start` to `end` in three steps of a multiple of 32.

    Howard's progressive resizing: early epochs use small, cheap crops.
    """
    if start is None or start >= end or end < 96:
        return end
    third = min(2, 3 * epoch // max(1, epochs))
    return round((start + (end - start) * third / 2) / 32) * 32 if third < 2 else end


def init_attention_norms(network: Network, images: Tensor) -> None:
    """Start the norms in added attention from their input's statistics over these normalised images (n, 3, h, w)."""

    def measure(slot: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert is_added(slot)
        slot.set_norm_statistics(inputs[0])

    with_norm = [
        slot for slot in network.added_attention.values() if isinstance(getattr(slot, "norm", None), nn.BatchNorm2d)
    ]
    hooks = [slot.register_forward_pre_hook(measure) for slot in with_norm]
    if hooks:
        network.eval()
        with torch.no_grad():
            network(images)
    for hook in hooks:
        hook.remove()
