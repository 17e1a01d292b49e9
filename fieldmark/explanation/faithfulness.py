"""Faithfulness of attribution maps: deletion and insertion, with random maps as the baseline.

Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", section 4.3: pixels are
hidden in the order of the map (deletion), or shown in that order (insertion), and the score is the area under the
curve of the class's probability over the share of pixels. A faithful map has a low deletion and a high insertion.

Unlike in the paper, hidden pixels are blurred in deletion too. Painting them in one colour makes edges that no network
has seen in training, and part of the decrease is due to those. Besides, both areas have one scale then: a random map
has the same expected value in both, and deleting the top of a map is inserting the top of its negative.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from fieldmark.explanation import overlay

N_STEPS = 16
"""Steps of each curve."""
BATCH_SIZE = 32
BLUR_SIGMA = 1 / 16
"""Standard deviation of the blur, as a share of the image's shorter side."""


def blur_image(image: np.ndarray) -> np.ndarray:
    """The image, uint8 (H, W, 3), without its details (Gaussian blur)."""
    radius = BLUR_SIGMA * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def random_map(shape: Sequence[int], *seed: int) -> np.ndarray:
    """White noise float32 at a map's resolution (h, w): as smooth as the map once both are resized to the image."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@torch.inference_mode()
def deletion_insertion(
    network: nn.Module,
    x: Tensor,
    baseline: Tensor,
    maps: Sequence[np.ndarray],
    target: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Deletion and insertion of each map.

    Args:
        network: in eval mode.
        x: the normalised image, (1, channels, H, W).
        baseline: the same image blurred.
        maps: (h, w) each, of any resolution; resized to the image.
        target: the class whose probability is followed.
        temperature: of the softmax.

    Returns:
        float32 (maps, 2): areas under the two curves (trapezoidal rule, 16 equal steps), 0 to 1.
    """
    x, baseline = (image.contiguous(memory_format=torch.channels_last) for image in (x, baseline))

    def probabilities(images: Tensor) -> Tensor:
        return (network(images) / temperature).softmax(1)[:, target]

    ranks = torch.stack([torch.from_numpy(_rank_pixels(importance, *x.shape[2:])) for importance in maps])
    shares = torch.arange(1, N_STEPS).view(1, -1, 1, 1) / N_STEPS
    top = ranks[:, None] < shares  # (maps, N_STEPS - 1, H, W)
    masks = torch.cat((top, ~top), 1).flatten(0, 1)[:, None]
    batches = [probabilities(torch.where(part, baseline, x)) for part in masks.split(BATCH_SIZE)]
    inner = torch.cat(batches).view(len(maps), 2, N_STEPS - 1)
    ends = probabilities(torch.cat((x, baseline))).mean()
    return ((inner.sum(2) + ends) / N_STEPS).numpy()  # trapezoids; both curves have the same two ends


def _rank_pixels(importance: np.ndarray, height: int, width: int) -> np.ndarray:
    """The rank of each pixel as a share, float32 (height, width) from 0, the most important, to below 1.

    Ties are broken at random with a fixed seed; otherwise the top half of a constant map would be its upper rows.
    """
    values = overlay.upsample(importance, height, width).ravel()
    order = np.lexsort((np.random.default_rng(0).random(values.size), -values))
    ranks = np.empty(values.size, np.float32)
    ranks[order] = np.arange(values.size) / values.size
    return ranks.reshape(height, width)
