"""What a name makes of a photo, what mixing makes of a batch, and what a class weighs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from fieldmark.data.augment import ERASE_VALUE, BatchMixer, build_transform, class_weights
from fieldmark.data.image import center_crop

NAMES = ("none", "flip-crop", "standard", "strong")
SEEDS = st.integers(0, 2**32 - 1)


def seen(name: str, photo: Tensor, size: int, seed: int = 0, **options: float) -> Tensor:
    torch.manual_seed(seed)
    return build_transform(name, size, **options)(photo)


def places(h: int, w: int) -> Tensor:
    """A photo that says where each pixel was: red its column, green its row."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([columns, rows, rows * 0]).to(torch.uint8)


@pytest.mark.parametrize("name", NAMES)
@given(h=st.integers(1, 40), w=st.integers(1, 40), size=st.integers(2, 40), seed=SEEDS)
@settings(max_examples=40)
def test_any_photo_becomes_a_square_and_grey_stays_grey(name: str, h: int, w: int, size: int, seed: int):
    grey = torch.randint(0, 256, (1, h, w), dtype=torch.uint8).expand(3, h, w)
    photo = seen(name, grey.permute(1, 2, 0).contiguous().permute(2, 0, 1), size, seed)
    assert (photo.shape, photo.dtype) == ((3, size, size), torch.uint8)
    assert torch.equal(photo[0], photo[1]) and torch.equal(photo[0], photo[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 2), (2, 1)])
def test_a_single_pixel_is_enough(name: str, h: int, w: int):
    for seed in range(20):
        assert seen(name, torch.full((3, h, w), 9, dtype=torch.uint8), 32, seed).shape == (3, 32, 32)


@pytest.mark.parametrize(("size", "crop"), [(224, 0.875), (225, 0.9), (64, 1.0), (31, 0.77), (299, 0.95), (32, 0.875)])
@pytest.mark.parametrize("longer", [0, 1, 30])
def test_none_is_what_is_judged(size: int, crop: float, longer: int):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (round(size / crop), round(size / crop) + longer, 3), np.uint8)
    for photo in (pixels, np.ascontiguousarray(pixels.transpose(1, 0, 2))):
        expected = torch.from_numpy(center_crop(Image.fromarray(photo), size)).permute(2, 0, 1)
        assert torch.equal(seen("none", torch.from_numpy(photo).permute(2, 0, 1), size, crop=crop), expected)


def test_none_keeps_the_frame_at_another_size():
    columns, rows, _ = seen("none", places(64, 96), 28).float()  # columns 20 to 75, rows 4 to 59
    torch.testing.assert_close(columns.mean(), torch.tensor(47.5), rtol=0, atol=0.5)
    torch.testing.assert_close(rows.mean(), torch.tensor(31.5), rtol=0, atol=0.5)
    assert 20 <= columns.min() <= 22 and 73 <= columns.max() <= 75


def test_flip_crop_is_every_near_square_both_ways():
    h, w, side, most = 32, 48, 28, 3  # an eighth of 28, and 2 rows round the middle square: some go beyond the photo
    beyond = np.pad(places(h, w).numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    expected = {}
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            top, left = 4 + (h - side) // 2 + down, 4 + (w - side) // 2 + right
            square = beyond[:, top : top + side, left : left + side]
            expected |= {square.tobytes(): (down, right, False), square[..., ::-1].tobytes(): (down, right, True)}
    found = {expected[seen("flip-crop", places(h, w), side, seed).numpy().tobytes()] for seed in range(500)}
    assert {down for down, _, _ in found} == {right for _, right, _ in found} == set(range(-most, most + 1))
    assert {flipped for _, _, flipped in found} == {False, True}


def test_standard_crops_half_to_all_of_the_photo():
    shares, flips = [], 0
    for seed in range(300):
        columns, rows, _ = seen("standard", places(200, 200), 50, seed).float()
        slope = columns.diff(dim=1)[:, 5:-5].mean() * 50 / 200, rows.diff(dim=0)[5:-5].mean() * 50 / 200
        w, h = abs(float(slope[0])), float(slope[1])
        assert 0.72 < w / h < 1.37
        shares.append(w * h)
        flips += slope[0] < 0
    assert 0.48 < min(shares) < 0.55 and 0.9 < max(shares) < 1.03
    assert 120 < flips < 180


@given(seed=SEEDS, name=st.sampled_from(NAMES[:3]))
def test_nothing_but_strong_erases_or_recolours(seed: int, name: str):
    plain = torch.tensor([10, 200, 90], dtype=torch.uint8).view(3, 1, 1).expand(3, 30, 40)
    assert torch.equal(seen(name, plain, 24, seed, erasing=1.0), plain[:, :24, :24])


def test_strong_erases_a_patch_at_the_end():
    photo = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    for seed in range(50):
        whole, erased = seen("strong", photo, 32, seed, erasing=0.0), seen("strong", photo, 32, seed, erasing=1.0)
        rows, columns = torch.nonzero((whole != erased).any(0), as_tuple=True)
        patch = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (patch == ERASE_VALUE).all()
        assert 0.01 < patch[0].numel() / 32**2 < 0.36


def test_strong_erases_a_quarter_and_recolours():
    photo = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    looks = [
        [
            seen("standard", photo, 20, seed),
            seen("strong", photo, 20, seed, erasing=0.0),
            seen("strong", photo, 20, seed),
        ]
        for seed in range(400)
    ]
    changed = sum(not torch.equal(plain, recoloured) for plain, recoloured, _ in looks)
    erased = sum(not torch.equal(recoloured, strong) for _, recoloured, strong in looks)
    assert 70 < erased < 130
    assert changed > 300  # TrivialAugment does nothing once in fourteen, or at a strength of nothing


# ---- mixing

BATCHES = st.integers(1, 12)


def plain(n: int, side: int = 16) -> Tensor:
    """n photos of one value each."""
    return (torch.arange(n) * 255 // max(1, n - 1)).to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, side, side)


@given(n=BATCHES, step=st.integers(0, 2**40), seed=SEEDS, way=st.sampled_from(["mixup", "cutmix"]))
def test_labels_are_mixed_as_the_pixels_are(n: int, step: int, seed: int, way: str):
    photos, labels = plain(n).contiguous(), torch.arange(n)
    before = photos.clone()
    mixed, targets = BatchMixer(n, seed, **{way: 1.0})(photos, labels, step)
    assert torch.equal(photos, before)
    assert (mixed.dtype, mixed.shape, targets.shape) == (torch.uint8, photos.shape, (n, n))
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    assert (targets >= 0).all()
    values = targets @ plain(n)[:, 0, 0, 0].float()
    torch.testing.assert_close(mixed.float().mean((1, 2, 3)), values, rtol=0, atol=0.51 if way == "mixup" else 0.01)


def test_each_way_has_its_turn_and_its_own_look():
    photos, both = plain(8), BatchMixer(8, 0, mixup=0.4, cutmix=1.0)
    kinds = [len(both(photos, torch.arange(8), step)[0][1].unique()) for step in range(60)]
    assert 10 < kinds.count(1) < 50  # mixup leaves one value; cutmix two, or one where it took all or nothing
    assert kinds.count(1) + kinds.count(2) == 60


def test_a_mixture_is_a_function_of_seed_and_step():
    photos, labels = torch.randint(0, 256, (6, 3, 90, 90), dtype=torch.uint8), torch.arange(6)

    def mixed(seed: int, step: int) -> tuple[float, ...]:
        torch.rand(3)
        return tuple(BatchMixer(6, seed, mixup=1.0, cutmix=1.0)(photos, labels, step)[1].flatten().tolist())

    assert mixed(1, 7) == mixed(1, 7)
    assert len({mixed(seed, step) for seed in (0, 1) for step in range(5)}) == 10


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_processes_mix_what_one_would(world: int, way: str):
    photos, labels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8), torch.arange(16)
    mix = BatchMixer(16, 0, **{way: 1.0})
    for step in range(5):
        whole = mix(photos, labels, step)
        for rank in range(world):
            for ours, theirs in zip(mix(photos[rank::world], labels[rank::world], step), whole, strict=True):
                assert torch.equal(ours, theirs[rank::world])


def test_label_smoothing_goes_on_top():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    _, targets = BatchMixer(4, 0, mixup=1.0)(plain(6), labels, 3)
    share = targets[2, 2]
    ours = F.cross_entropy(logits, targets, label_smoothing=0.1)
    apart = [F.cross_entropy(logits, of, label_smoothing=0.1) for of in (labels, labels.roll(3))]
    torch.testing.assert_close(ours, share * apart[0] + (1 - share) * apart[1])


def test_mixing_nothing_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        BatchMixer(3, 0)


# ---- what a class weighs


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_class_weights_are_those_of_scikit_learn(labels: list[int]):
    weights = class_weights(np.array(labels), 8)
    occurring = np.unique(labels)
    expected = np.zeros(8)
    expected[occurring] = compute_class_weight("balanced", classes=occurring, y=labels)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
