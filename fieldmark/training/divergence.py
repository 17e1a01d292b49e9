"""When fine-tuning diverges: the rule by which it is noticed within a few steps.

A learning rate that suits natural photos can destroy the pretrained layers on images with other statistics. The first
steps leave the weights as they are, and measure the loss of the linear probe on augmented images. A later mean loss
clearly above it means that the last steps did harm: the trainer goes back to the best weights and lowers the rates.
"""

import math

IMAGES_PER_CHECK = 320
"""Images whose mean loss is compared."""
MAX_SHARE_OF_STEPS = 0.05
"""Largest share of the steps of a phase between two checks."""
MAX_LOSS_RATIO, MAX_NOISE = 1.2, 1.5
"""Largest mean loss of n images: the ratio times that of the first steps, plus the noise divided by the root of n."""
LR_REDUCTION = 0.3
"""Factor of the learning rates after each divergence."""
MAX_REDUCTIONS = 6
"""After so many, the learning rates are below a thousandth of the recipe's; a loss that still rises is left alone."""


def steps_per_check(batch: int, total_steps: int) -> int:
    """Steps between two checks, and at the start without changes, of a phase of `total_steps`."""
    return max(1, min(math.ceil(IMAGES_PER_CHECK / batch), int(MAX_SHARE_OF_STEPS * total_steps)))


def has_diverged(loss: float, reference: float, images: int) -> bool:
    """Whether the mean loss of some images is clearly above that of the phase's first steps, or not finite."""
    return not math.isfinite(loss) or loss > MAX_LOSS_RATIO * reference + MAX_NOISE / math.sqrt(images)


def can_reduce(lr_scale: float) -> bool:
    """Whether the learning rates may be reduced once more."""
    return lr_scale > LR_REDUCTION ** (MAX_REDUCTIONS - 0.5)
