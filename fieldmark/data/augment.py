"""Augmentations, batch mixing (mixup, CutMix) and class weights.

Random numbers come from PyTorch's default generator on the CPU: seed it with `derive_seed` to repeat a draw.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ERASE_VALUE = 117.0
"""Grey level of erased patches: ImageNet's mean brightness (Zhong et al. 2020, "RE-M")."""


def derive_seed(*numbers: int) -> int:
    """A seed for `torch.Generator.manual_seed` that is a function of these numbers alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def build_transform(name: str, size: int, *, crop: float = 0.875, erasing: float = 0.25) -> Callable[[Tensor], Tensor]:
    """The augmentation of this name: a function uint8 (3, h, w) -> uint8 (3, size, size), random at each call.

    - `none`: no augmentation: the center crop of evaluation, `crop` of the shorter side wide, resized to `size`.
    - `flip-crop`: that square, shifted by up to an eighth of its width, reflected beyond the border, and flipped with
      probability 1/2: He et al. 2016, section 4.2 (there with 4 black pixels around 32).
    - `standard`: a crop of 50 to 100 % of the area, aspect ratio 3:4 to 4:3 (Szegedy et al. 2015, there 8 to 100 %;
      why: docs/lab/fine-tuning.md), flipped with probability 1/2.
    - `strong`: `standard`, then one operation on colours or geometry (TrivialAugment, Mueller & Hutter 2021), then
      with probability `erasing` a patch of 2 to 33 % is set to grey (random erasing, Zhong et al. 2020).
    """
    from torchvision.transforms import v2

    # The functions behind v2's classes, which spend a third of the time on walking through a sample's structure.
    resized = partial(v2.functional.resize_image, size=[size, size], antialias=True)
    random_area = v2.RandomResizedCrop(size, scale=(0.5, 1.0))
    one_operation, erase = v2.TrivialAugmentWide(), v2.RandomErasing(erasing, value=ERASE_VALUE)

    def none(image: Tensor) -> Tensor:
        top, left, side = _center_square(image, crop)
        return resized(image[:, top : top + side, left : left + side])

    def flip_crop(image: Tensor) -> Tensor:
        top, left, side = _center_square(image, crop)
        down, right = torch.randint(-(side // 8), side // 8 + 1, (2,)).tolist()
        return _random_flip(resized(_reflected_crop(image, top + down, left + right, side)))

    def standard(image: Tensor) -> Tensor:
        box = random_area.make_params([image])
        return _random_flip(resized(v2.functional.crop_image(image, **box)))

    def strong(image: Tensor) -> Tensor:
        return erase(one_operation(standard(image)))

    return {"none": none, "flip-crop": flip_crop, "standard": standard, "strong": strong}[name]


def _center_square(image: Tensor, crop: float) -> tuple[int, int, int]:
    """Top, left and width of the central square; at the size of evaluation exactly that of `image.center_crop`."""
    h, w = image.shape[1:]
    side = max(1, round(crop * min(h, w)))
    return (h - side) // 2, (w - side) // 2, side


def _reflected_crop(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square that may reach beyond the image by less than its own width, reflected there."""
    h, w = image.shape[1:]
    beyond = [max(0, -left), max(0, left + side - w), max(0, -top), max(0, top + side - h)]
    inside = image[:, max(0, top) : top + side, max(0, left) : left + side]
    return F.pad(inside, beyond, mode="reflect") if any(beyond) else inside


def _random_flip(image: Tensor) -> Tensor:
    return image.flip(-1) if torch.rand(()) < 0.5 else image


class BatchMixer:
    """Mixes each image of a batch with another one: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    The mixing weight is drawn from Beta(alpha, alpha), once a batch, as a function of (seed, step) alone. An image is
    mixed with that half a batch further on, which is the same one if processes share the batch as
    `ShuffledBatchSampler` does and each has an even number of images.

    Args:
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it. With both, each step picks one at random.
    """

    def __init__(self, classes: int, seed: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        from torchvision.transforms import v2

        self.classes, self.seed = classes, seed
        self.transforms = [way(alpha=a) for way, a in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if a > 0]
        if not self.transforms:
            raise ValueError("mixing needs a positive alpha: of mixup, of cutmix or of both")

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix images uint8 (n, 3, h, w) with labels (n,). Returns images and float targets (n, classes)."""
        torch.default_generator.manual_seed(derive_seed(self.seed, 6, step))
        transform_drawn = self.transforms[int(torch.randint(len(self.transforms), ()))]
        params = transform_drawn.make_params([images])
        others, targets = images.roll(len(images) // 2, 0), F.one_hot(labels, self.classes).float()
        if "box" in params:
            (left, top, right, bottom), lam = params["box"], params["lam_adjusted"]
            mixed = images.clone()
            mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        else:
            lam = params["lam"]
            mixed = images.float().mul_(lam).add_(others, alpha=1 - lam).round_().to(torch.uint8)
        return mixed, targets * lam + targets.roll(len(images) // 2, 0) * (1 - lam)


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights (classes,) inversely proportional to the frequency of each class in the class numbers (n,).

    As scikit-learn's `class_weight="balanced"`: n / (number of classes that occur * images of the class); 0 for a
    class without images. Their mean over the images is 1.
    """
    counts = torch.bincount(torch.from_numpy(labels), minlength=classes)
    weights = len(labels) / (int(counts.count_nonzero()) * counts.clamp(min=1))
    return weights.where(counts > 0, 0.0)
