"""Network + photo + maps -> which map points at what counts: deletion and insertion, and the maps of who knows nothing.

Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models": pixels are
hidden in the order of the map, or shown in it, and the area under the curve of the class's probability is taken over
the share of pixels. A good map makes the first fall and the second rise at once.

What is hidden is blurred, in both. The paper's deletion paints it in one colour, whose sharp edges no network has seen
in training, so that part of the fall is the edges'. And so both areas have one scale: of a map that knows nothing both
have the same mean, and hiding the top of a map is showing the top of its negative.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from fieldmark.explanation import overlay

N_STEPS, BATCH_SIZE = 16, 32
BLUR_SIGMA = 1 / 16
"""Standard deviation of the blur, of the photo's shorter side."""
CENTRE_SIGMA = 1 / 4
"""Standard deviation of the centred Gaussian, of the map's side; the order of the pixels does not depend on it."""


def blur_image(photo: np.ndarray) -> np.ndarray:
    """A photo, uint8 (H, W, 3) -> the same without what can be told from detail."""
    radius = BLUR_SIGMA * min(photo.shape[:2])
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius)))


def random_map(shape: Sequence[int], *seed: int) -> np.ndarray:
    """Noise at a map's resolution (h, w), as smooth as the map once it has the photo's size."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def centred_map(shape: Sequence[int]) -> np.ndarray:
    """A Gaussian in the middle (h, w): the guess that the thing is there, which photographers make true."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / CENTRE_SIGMA for n in shape)
    return np.exp(-(rows[:, None] ** 2 + columns**2) / 2).astype(np.float32)


@torch.inference_mode()
def deletion_insertion(
    network: nn.Module,
    x: Tensor,
    baseline: Tensor,
    maps: Sequence[np.ndarray],
    target: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Deletion and insertion of each map, (maps, 2): areas between 0 and 1 under the probability of class `target`.

    x and hidden (1, channels, H, W) are the photo and its blurred self, normalised; a map (h, w) of any resolution is
    brought to the photo's size. The curves have STEPS equal steps.
    """
    x, baseline = (photo.contiguous(memory_format=torch.channels_last) for photo in (x, baseline))

    def probabilities(photos: Tensor) -> Tensor:
        return (network(photos) / temperature).softmax(1)[:, target]

    ranks = torch.stack([torch.from_numpy(_rank_pixels(importance, *x.shape[2:])) for importance in maps])
    shares = torch.arange(1, N_STEPS).view(1, -1, 1, 1) / N_STEPS
    top = ranks[:, None] < shares  # (maps, STEPS - 1, H, W)
    masks = torch.cat((top, ~top), 1).flatten(0, 1)[:, None]
    batches = [probabilities(torch.where(part, baseline, x)) for part in masks.split(BATCH_SIZE)]
    inner = torch.cat(batches).view(len(maps), 2, N_STEPS - 1)
    ends = probabilities(torch.cat((x, baseline))).mean()
    return ((inner.sum(2) + ends) / N_STEPS).numpy()  # trapezoids; both curves have the same two ends


def _rank_pixels(importance: np.ndarray, height: int, width: int) -> np.ndarray:
    """The place of each pixel in the order of importance, float32 (height, width) from 0, the most, to below 1.

    Equals follow each other at random (always the same), or half of a map of zeros would be its upper half.
    """
    values = overlay.upsample(importance, height, width).ravel()
    order = np.lexsort((np.random.default_rng(0).random(values.size), -values))
    ranks = np.empty(values.size, np.float32)
    ranks[order] = np.arange(values.size) / values.size
    return ranks.reshape(height, width)
