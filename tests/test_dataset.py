"""Packed photos are the decoded ones to the bit, and every random draw is a function of (seed, pass, photo) alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark import dataset
from fieldmark.dataset import Judged, Normalise, Pack, Packer, Shuffle, Varied
from fieldmark.photos.audit import audit
from fieldmark.photos.catalog import read
from fieldmark.photos.decode import prepare

SIDES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def packed(folder: Path, shapes: list[tuple[int, int]], seed: int = 0) -> tuple[Pack, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    photos = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
    packer = Packer(folder)
    for photo in photos:
        packer.add(photo)
    return packer.finish(), photos


@given(shapes=st.lists(SIDES, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_pack_gives_back_every_bit(shapes: list[tuple[int, int]], seed: int, tmp_path: Path):
    pack, photos = packed(tmp_path, shapes, seed)
    for opened in (pack, Pack(tmp_path)):
        assert len(opened) == len(photos)
        for i in reversed(range(len(photos))):
            np.testing.assert_array_equal(opened[i], photos[i], strict=True)


def test_a_packed_view_is_its_pixels(tmp_path: Path):
    photo = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    packer = Packer(tmp_path)
    packer.add(photo[::-1, ::2])  # strides that no file has
    np.testing.assert_array_equal(packer.finish()[0], photo[::-1, ::2])


def test_a_half_written_pack_does_not_exist(tmp_path: Path):
    assert not Pack.exists(tmp_path / "none")
    packer = Packer(tmp_path)
    for _ in range(3):
        packer.add(np.zeros((5, 4, 3), np.uint8))
        assert not Pack.exists(tmp_path)
    packer.finish()
    assert Pack.exists(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"photos.u8", "index.npy"}


def test_beginning_anew_ends_the_old_pack(tmp_path: Path):
    packed(tmp_path, [(5, 4), (3, 3)])
    packer = Packer(tmp_path)
    assert not Pack.exists(tmp_path)
    packer.add(np.ones((9, 9, 3), np.uint8))
    assert len(packer.finish()) == 1


# ---- photos as they are judged


def pack_of(folder: Path, cache: Path, size: int, crop: float) -> tuple[Pack, list[Path]]:
    """The photos as a training packs them."""
    catalog, packer = read(folder), Packer(cache)
    audit(catalog, shorter=round(size / crop), keep=lambda i, photo: packer.add(photo))
    return packer.finish(), [folder / photo.path for photo in catalog.photos]


def equal_to_prepare(folder: Path, cache: Path, size: int, crop: float) -> None:
    pack, files = pack_of(folder, cache, size, crop)
    judged = Judged(pack, np.arange(len(files))[::-1], size)
    for k, file in enumerate(reversed(files)):
        expected = prepare(file, {"size": size, "crop": crop})
        np.testing.assert_array_equal(judged.photo(k), expected, strict=True)
        assert torch.equal(judged[k], torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize(("size", "crop"), [(224, 0.875), (225, 0.9), (64, 1.0), (31, 0.77)])
def test_judged_photos_equal_prepared_ones(size: int, crop: float, trashnet: Path, tmp_path: Path):
    shapes = [(511, 383), (301, 300), (300, 301), (513, 97), (63, 200), (224, 224), (1, 5)]
    for k, file in enumerate(sorted(trashnet.glob("*/*.jpg"))[:: 2400 // len(shapes)][: len(shapes)]):
        (tmp_path / "photos" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.open(file).resize(shapes[k]).save(tmp_path / "photos" / "ab"[k % 2] / f"{k}.{('jpg', 'png')[k % 3 > 0]}")
    equal_to_prepare(tmp_path / "photos", tmp_path / "cache", size, crop)


def test_judged_synthetic_photos_equal_prepared_ones(small_photos: Path, tmp_path: Path):
    equal_to_prepare(small_photos, tmp_path, 64, 0.875)


def test_normalise():
    photos = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    got = Normalise((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))(photos)
    expected = [(photos[:, c].double() - (c + 1)) / (c + 4) for c in range(3)]
    torch.testing.assert_close(got.double(), torch.stack(expected, 1), rtol=1e-6, atol=1e-6)


# ---- the shuffle


@given(n=st.integers(1, 30), batch=st.integers(1, 12), passes=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_pass_is_a_permutation(n: int, batch: int, passes: int, seed: int):
    steps = -(-n * passes // batch)
    stream = [item for items in Shuffle(n, batch, 0, steps, seed) for item in items]
    assert len(stream) == steps * batch
    for turn in range(passes):
        mine = stream[turn * n : (turn + 1) * n]
        assert {t for t, _ in mine} == {turn}
        assert sorted(k for _, k in mine) == list(range(n))


@given(
    n=st.integers(1, 30), batch=st.integers(1, 12), first=st.integers(0, 9), more=st.integers(0, 9), seed=st.integers(0)
)
def test_a_late_start_gives_the_tail_of_the_stream(n: int, batch: int, first: int, more: int, seed: int):
    whole, tail = Shuffle(n, batch, 0, first + more, seed), Shuffle(n, batch, first, first + more, seed)
    assert list(whole)[first:] == list(tail)
    assert len(tail) == len(list(tail)) == more
    assert all(len(items) == batch for items in tail)


def test_passes_and_seeds_differ():
    a, b = ([k for items in Shuffle(50, 50, 0, 2, seed) for _, k in items] for seed in (0, 1))
    assert a[:50] != a[50:]
    assert a != b


# ---- photos as they are trained on


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return packed(tmp_path_factory.mktemp("pack"), [(40, 50), (50, 40), (40, 40), (40, 70)])[0]


def varying(pack: Pack, augment: str) -> Varied:
    return Varied(pack, np.array([3, 0, 2]), np.array([1, 0, 1]), 24, augment, seed=0)


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
def test_an_item_depends_on_pass_photo_and_seed_alone(pack: Pack, augment: str):
    items = [(turn, k) for turn in range(3) for k in range(3)]
    photos = varying(pack, augment)
    first = {item: photos[item] for item in items}
    torch.manual_seed(5)
    again = varying(pack, augment)
    for item in reversed(items):
        torch.rand(3)
        photo, label = again[item]
        assert photo.shape == (3, 24, 24)
        assert photo.dtype == torch.uint8
        assert torch.equal(photo, first[item][0])
        assert label == first[item][1] == [1, 0, 1][item[1]]


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_passes_photos_and_seeds_vary(pack: Pack, augment: str):
    which, labels = np.array([1, 1, 1]), np.zeros(3, int)  # one photo, so that nothing else tells them apart
    seeds = [Varied(pack, which, labels, 24, augment, seed) for seed in (0, 1)]
    seen = [photos[turn, k][0] for photos in seeds for turn in range(2) for k in range(3)]
    assert len({tuple(photo.flatten().tolist()) for photo in seen}) == len(seen)


def test_a_worker_changes_nothing(pack: Pack, monkeypatch: pytest.MonkeyPatch):
    def everything(number: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        monkeypatch.setattr(dataset, "_workers", lambda: number)
        batches = list(dataset.varied(varying(pack, "strong"), 2, 1, 6))
        looks = list(dataset.judged(pack, np.array([1, 0, 3, 2]), 30, batch=3))
        return [tensor for batch in batches for tensor in batch], looks

    for ours, theirs in zip(everything(0), everything(1), strict=True):
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_draw_is_a_function_of_its_numbers():
    def numbers(*of: int) -> list[float]:
        dataset.draw(*of)
        return torch.rand(3).tolist()

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    assert len({tuple(numbers(*of)) for of in [(1, 2, 3), (1, 2, 4), (3, 2, 1), (1, 2), (0, 1, 2, 3)]}) == 5


def test_one_channel_is_the_luma():
    photos = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    grey = Normalise((100.0,), (50.0,))(photos) * 50 + 100
    assert grey.shape == (2, 1, 9, 7)
    for photo, found in zip(photos, grey, strict=True):
        expected = np.asarray(Image.fromarray(photo.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(found[0].numpy() - expected).max() <= 1  # Pillow rounds
