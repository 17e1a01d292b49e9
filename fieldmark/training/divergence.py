"""When fine-tuning diverges: the rule by which it is noticed within a few steps.

A learning rate that suits natural photos can destroy the pretrained layers on images with other statistics. The first
steps leave the weights as they are, and measure the loss of the linear probe on augmented images. The next ones raise
it even where fine-tuning ends well, but an explosion is noticed within a few steps; later, a mean loss clearly above
that of the first steps means harm. The trainer goes back to the best weights and lowers the rates.
"""

import math

IMAGES_PER_CHECK = 320
"""Images whose mean loss is compared."""
MAX_SHARE_OF_STEPS = 0.05
"""Largest share of the steps of a phase between two checks."""
EARLY_SHARE = 0.3
"""Share of the steps in which the loss may rise."""
MAX_EARLY_LOSS_RATIO, MAX_LOSS_RATIO, MAX_NOISE = 3.0, 1.2, 1.5
"""Largest mean loss of n images: a ratio times that of the first steps, plus the noise divided by the root of n."""
LR_REDUCTION = 0.3
"""Factor of the learning rates after each divergence."""
MAX_REDUCTIONS = 6
"""After so many, the learning rates are below a thousandth of the recipe's; a loss that still rises is left alone."""


def steps_per_check(batch: int, total_steps: int) -> int:
    """Steps between two checks, and at the start without changes, of a phase of `total_steps`."""
    return max(1, min(math.ceil(IMAGES_PER_CHECK / batch), int(MAX_SHARE_OF_STEPS * total_steps)))


def has_diverged(loss: float, reference: float, images: int, progress: float) -> bool:
    """Whether the mean loss of some images is clearly above that of the phase's first steps, or not finite.

    `progress` is the share of the phase's steps that are done.
    """
    ratio = MAX_EARLY_LOSS_RATIO if progress < EARLY_SHARE else MAX_LOSS_RATIO
    return not math.isfinite(loss) or loss > ratio * reference + MAX_NOISE / math.sqrt(images)


def can_reduce(lr_scale: float) -> bool:
    """Whether the learning rates may be reduced once more."""
    return lr_scale > LR_REDUCTION ** (MAX_REDUCTIONS - 0.5)
