"""A packed photo -> one of the many ways to see it; a batch -> mixtures of its photos; labels -> the weight of a class.

What a call draws comes from torch's own generator on the CPU: who seeds that with `seed_of` decides what is seen.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ERASE_VALUE = 117.0
"""ImageNet's mean brightness: what an erased patch shows (Zhong et al. 2020, "RE-M")."""


def derive_seed(*numbers: int) -> int:
    """A seed for `torch.Generator.manual_seed` that is a function of these numbers alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def build_transform(name: str, size: int, *, crop: float = 0.875, erasing: float = 0.25) -> Callable[[Tensor], Tensor]:
    """Name -> a function uint8 (3, h, w) -> uint8 (3, size, size), which draws anew at each call.

    - `none`: what is judged, at this size: the middle square, `crop` of the shorter side wide.
    - `flip-crop`: that square moved by up to an eighth of its width, mirrored where the photo ends, and flipped half of
      the time: He et al. 2016, section 4.2 (there 4 black pixels round 32; photos mostly go on where the square ends).
    - `standard`: a crop of 50 to 100 % of the area, 3:4 to 4:3 (Szegedy et al. 2015; there 8 to 100 %; fine
      details want more: docs/performance.md), and flipped half of the time.
    - `strong`: `standard`, then one operation on colours or geometry (TrivialAugment, Mueller & Hutter 2021), then with
      the probability `erasing` a patch of 2 to 33 % turns grey (random erasing, Zhong et al. 2020).
    """
    from torchvision.transforms import v2

    # The functions behind v2's classes: those walk through what a sample is made of, a third of all the time.
    resized = partial(v2.functional.resize_image, size=[size, size], antialias=True)
    random_area = v2.RandomResizedCrop(size, scale=(0.5, 1.0))
    one_operation, erase = v2.TrivialAugmentWide(), v2.RandomErasing(erasing, value=ERASE_VALUE)

    def none(photo: Tensor) -> Tensor:
        top, left, side = _center_square(photo, crop)
        return resized(photo[:, top : top + side, left : left + side])

    def flip_crop(photo: Tensor) -> Tensor:
        top, left, side = _center_square(photo, crop)
        down, right = torch.randint(-(side // 8), side // 8 + 1, (2,)).tolist()
        return _random_flip(resized(_reflected_crop(photo, top + down, left + right, side)))

    def standard(photo: Tensor) -> Tensor:
        box = random_area.make_params([photo])
        return _random_flip(resized(v2.functional.crop_image(photo, **box)))

    def strong(photo: Tensor) -> Tensor:
        return erase(one_operation(standard(photo)))

    return {"none": none, "flip-crop": flip_crop, "standard": standard, "strong": strong}[name]


def _center_square(photo: Tensor, crop: float) -> tuple[int, int, int]:
    """Top, left and width of the middle square; at the size that is judged, to the pixel `photos.decode.centre`."""
    h, w = photo.shape[1:]
    side = max(1, round(crop * min(h, w)))
    return (h - side) // 2, (w - side) // 2, side


def _reflected_crop(photo: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square that may reach beyond the photo, by less than its own width."""
    h, w = photo.shape[1:]
    beyond = [max(0, -left), max(0, left + side - w), max(0, -top), max(0, top + side - h)]
    inside = photo[:, max(0, top) : top + side, max(0, left) : left + side]
    return F.pad(inside, beyond, mode="reflect") if any(beyond) else inside


def _random_flip(photo: Tensor) -> Tensor:
    return photo.flip(-1) if torch.rand(()) < 0.5 else photo


class BatchMixer:
    """Mixes each photo of a batch with another: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha), from which the share of the other photo is drawn, one for
    the batch; 0 leaves a way out, and of two each step takes one at random. What a step draws is a function of (seed,
    step) alone. A photo's partner stands half a batch further: so it is the same when processes share out the batch
    as `dataset.Shuffle` does, provided that each has an even number.
    """

    def __init__(self, classes: int, seed: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        from torchvision.transforms import v2

        self.classes, self.seed = classes, seed
        self.transforms = [way(alpha=a) for way, a in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if a > 0]
        if not self.transforms:
            raise ValueError("mixing needs a positive alpha: of mixup, of cutmix or of both")

    def __call__(self, photos: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """uint8 (n, 3, h, w), class numbers (n,) -> uint8 (n, 3, h, w), float (n, classes) whose rows sum to 1."""
        torch.default_generator.manual_seed(derive_seed(self.seed, 6, step))
        transform_drawn = self.transforms[int(torch.randint(len(self.transforms), ()))]
        params = transform_drawn.make_params([photos])
        others, targets = photos.roll(len(photos) // 2, 0), F.one_hot(labels, self.classes).float()
        if "box" in params:
            (left, top, right, bottom), lam = params["box"], params["lam_adjusted"]
            mixed = photos.clone()
            mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        else:
            lam = params["lam"]
            mixed = photos.float().mul_(lam).add_(others, alpha=1 - lam).round_().to(torch.uint8)
        return mixed, targets * lam + targets.roll(len(photos) // 2, 0) * (1 - lam)


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Class numbers (n,) -> weights (classes,): inversely as frequent, of mean 1 over the photos, 0 without a photo.

    scikit-learn's `class_weight="balanced"`: n / (classes that occur * photos of the class).
    """
    counts = torch.bincount(torch.from_numpy(labels), minlength=classes)
    weights = len(labels) / (int(counts.count_nonzero()) * counts.clamp(min=1))
    return weights.where(counts > 0, 0.0)
