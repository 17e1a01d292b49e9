"""When fine-tuning diverges: the rule by which it is noticed within a few steps.

A learning rate that suits natural photos can destroy the pretrained layers on images with other statistics. The loss of
the first steps, in which the learning rate is still small, is about that of the linear probe. A mean loss clearly above
it means that the last steps did harm: the trainer goes back to the best weights and continues with a lower rate.
"""

import math

CHECK_EVERY_STEPS = 10
"""Steps whose mean loss is compared: 320 images of the usual batch, whose mean varies by a few hundredths."""
MAX_LOSS_RATIO = 1.3
"""Largest mean loss, as a multiple of that of the first steps."""
LR_REDUCTION = 0.3
"""Factor of the learning rates after each divergence."""
MAX_REDUCTIONS = 6
"""After so many, the learning rates are below a thousandth of the recipe's; a loss that still rises is left alone."""


def has_diverged(loss: float, reference: float) -> bool:
    """Whether the mean loss of some steps is clearly above that of the phase's first steps, or not finite."""
    return not math.isfinite(loss) or loss > MAX_LOSS_RATIO * reference


def can_reduce(lr_scale: float) -> bool:
    """Whether the learning rates may be reduced once more."""
    return lr_scale > LR_REDUCTION ** (MAX_REDUCTIONS - 0.5)
