"""When fine-tuning is undone: after an explosion at once, after a rise of the loss only where it lasts."""

import math

import pytest

from fieldmark.training import divergence


@pytest.mark.parametrize(
    ("loss", "progress", "diverged"),
    [
        (0.5, 0.05, False),
        (1.2, 0.05, False),  # the first steps of AdamW raise the loss even where the training ends well
        (1.2, 0.5, True),
        (0.55, 0.5, False),
        (2.0, 0.05, True),
        (math.inf, 0.05, True),
        (math.nan, 0.9, True),
    ],
)
def test_a_loss_above_that_of_the_first_steps(loss: float, progress: float, diverged: bool):
    assert divergence.has_diverged(loss, 0.5, 320, progress) == diverged


def test_a_few_images_prove_less():
    assert divergence.has_diverged(0.8, 0.5, 1000, 0.5) and not divergence.has_diverged(0.8, 0.5, 16, 0.5)
