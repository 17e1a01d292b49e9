"""Packed photos are the decoded ones to the bit, and every random draw is a function of (seed, place, photo) alone."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark.audit.audit import DecodedImage, audit_catalog
from fieldmark.core.errors import FieldmarkError
from fieldmark.data import dataset
from fieldmark.data.augment import class_weights
from fieldmark.data.cache.pack import MemmapImages, MemmapWriter
from fieldmark.data.dataset import AugmentedDataset, EvalDataset, Normalize, ShuffledBatchSampler
from fieldmark.data.image import preprocess
from fieldmark.data.readers import read_catalog


def packed(folder: Path, shapes: list[tuple[int, int]]) -> MemmapImages:
    rng, packer = np.random.default_rng(0), MemmapWriter(folder)
    for h, w in shapes:
        packer.add(
            DecodedImage("00" * 32, rng.integers(0, 256, (h, w, 3), dtype=np.uint8), (0, 0), np.zeros((16, 16, 3)))
        )
    return packer.finish()


# ---- photos as they are judged


def pack_of(folder: Path, cache: Path, size: int, crop: float) -> tuple[MemmapImages, list[Path]]:
    """The photos as a training packs them."""
    catalog, packer = read_catalog(folder), MemmapWriter(cache)
    audit_catalog(catalog, shorter=round(size / crop), on_decoded=lambda i, look: packer.add(look))
    return packer.finish(), [folder / photo.path for photo in catalog.photos]


def equal_to_prepare(folder: Path, cache: Path, size: int, crop: float) -> None:
    pack, files = pack_of(folder, cache, size, crop)
    judged = EvalDataset(pack, np.arange(len(files))[::-1], size)
    for k, file in enumerate(reversed(files)):
        expected = preprocess(file, {"size": size, "crop": crop, "fit": "squash"})
        np.testing.assert_array_equal(judged.read_image(k), expected, strict=True)
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
    got = Normalize((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))(photos)
    expected = [(photos[:, c].double() - (c + 1)) / (c + 4) for c in range(3)]
    torch.testing.assert_close(got.double(), torch.stack(expected, 1), rtol=1e-6, atol=1e-6)


# ---- the shuffle


@given(n=st.integers(1, 30), batch=st.integers(1, 12), passes=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_pass_is_a_permutation(n: int, batch: int, passes: int, seed: int):
    steps = -(-n * passes // batch)
    stream = [item for items in ShuffledBatchSampler(n, batch, 0, steps, seed) for item in items]
    assert len(stream) == steps * batch
    for turn in range(passes):
        assert sorted(k for _, k in stream[turn * n : (turn + 1) * n]) == list(range(n))
    assert [place for place, _ in stream] == list(range(steps * batch))


@given(
    n=st.integers(1, 30), batch=st.integers(1, 12), first=st.integers(0, 9), more=st.integers(0, 9), seed=st.integers(0)
)
def test_a_late_start_gives_the_tail_of_the_stream(n: int, batch: int, first: int, more: int, seed: int):
    whole, tail = (
        ShuffledBatchSampler(n, batch, 0, first + more, seed),
        ShuffledBatchSampler(n, batch, first, first + more, seed),
    )
    assert list(whole)[first:] == list(tail)
    assert len(tail) == len(list(tail)) == more
    assert all(len(items) == batch for items in tail)


def test_passes_and_seeds_differ():
    a, b = ([k for items in ShuffledBatchSampler(50, 50, 0, 2, seed) for _, k in items] for seed in (0, 1))
    assert a[:50] != a[50:]
    assert a != b


@given(n=st.integers(1, 30), share=st.integers(1, 5), world=st.integers(1, 4), balanced=st.booleans())
def test_processes_share_out_the_batches_of_one(n: int, share: int, world: int, balanced: bool):
    batch, weights = share * world, np.arange(1.0, n + 1) if balanced else None
    shares = [
        ShuffledBatchSampler(n, batch, 2, 9, 0, weights=weights, rank=rank, world_size=world) for rank in range(world)
    ]
    for whole, *parts in zip(ShuffledBatchSampler(n, batch, 2, 9, 0, weights=weights), *shares, strict=True):
        assert {len(part) for part in parts} == {share}
        assert [item for items in zip(*parts, strict=True) for item in items] == whole


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(FieldmarkError, match="--batch is 32, but must be a multiple of the 3 processes"):
        ShuffledBatchSampler(100, 32, 0, 1, 0, world_size=3)


def test_balanced_passes_show_every_class_equally_often():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    weights = class_weights(labels, 3).numpy()[labels]
    steps = list(ShuffledBatchSampler(1000, 50, 0, 60, 7, weights=weights))
    drawn = np.array([k for items in steps for _, k in items])
    counts = np.bincount(labels[drawn])
    assert counts.sum() == 3000
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)  # five standard deviations
    assert len(np.unique(drawn[labels[drawn] == 2])) == 10
    assert list(ShuffledBatchSampler(1000, 50, 31, 60, 7, weights=weights)) == steps[31:]
    assert (drawn[:1000] != drawn[1000:2000]).any()


# ---- photos as they are trained on


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> MemmapImages:
    return packed(tmp_path_factory.mktemp("pack"), [(40, 50), (50, 40), (40, 40), (40, 70)])


def varying(pack: MemmapImages, augment: str) -> AugmentedDataset:
    return AugmentedDataset(pack, np.array([3, 0, 2]), np.array([1, 0, 1]), 24, augment, seed=0)


@pytest.mark.parametrize("augment", ["none", "flip-crop", "standard", "strong"])
def test_an_item_depends_on_look_photo_and_seed_alone(pack: MemmapImages, augment: str):
    items = [(look, k) for look in range(3) for k in range(3)]
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
def test_looks_photos_and_seeds_vary(pack: MemmapImages, augment: str):
    which, labels = np.array([1, 1, 1]), np.zeros(3, int)  # one photo, so that nothing else tells them apart
    seeds = [AugmentedDataset(pack, which, labels, 24, augment, seed) for seed in (0, 1)]
    seen = [photos[look, k][0] for photos in seeds for look in range(2) for k in range(3)]
    assert len({tuple(photo.flatten().tolist()) for photo in seen}) == len(seen)


def test_judged_photos_are_those_of_no_augmentation_at_their_size(pack: MemmapImages):
    which = np.arange(4)
    seen = AugmentedDataset(pack, which, np.zeros(4, int), 35, "none", seed=0)  # 0.875 of 40
    (judged,) = dataset.iter_eval_batches(pack, which, 35)
    assert torch.equal(judged, torch.stack([seen[0, k][0] for k in range(4)]))


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("number", [1, 2])
def test_a_worker_changes_nothing(number: int, pack: MemmapImages, monkeypatch: pytest.MonkeyPatch):
    def everything(number: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        monkeypatch.setattr(dataset, "_num_workers", lambda *_: number)
        weights = np.array([1.0, 5.0, 1.0])
        batches = [*dataset.iter_train_batches(varying(pack, "strong"), 2, 1, 6)]
        batches += dataset.iter_train_batches(varying(pack, "standard"), 4, 0, 3, weights=weights, rank=1, world_size=2)
        looks = list(dataset.iter_eval_batches(pack, np.array([1, 0, 3, 2]), 30, batch_size=3))
        return [tensor for batch in batches for tensor in batch], looks

    for ours, theirs in zip(everything(0), everything(number), strict=True):
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_worker_that_dies_ends_in_one_line(pack: MemmapImages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "_num_workers", lambda *_: 1)
    before = signal.getsignal(signal.SIGCHLD)
    batches = dataset.iter_train_batches(varying(pack, "standard"), 2, 0, 10**6)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # torch would raise here, in the middle of a training step
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(FieldmarkError, match=r"a data-loading worker died .*--resume"):
        for _ in batches:
            pass


@pytest.mark.parametrize("number", [0, 1])
def test_what_fails_in_a_worker_is_no_death(number: int, pack: MemmapImages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "_num_workers", lambda *_: number)
    with pytest.raises(IndexError, match="out of bounds"):
        list(dataset.iter_eval_batches(pack, np.array([0, 99]), 30))


def test_workers_are_the_cores_that_are_free(monkeypatch: pytest.MonkeyPatch):
    def workers(cores: int, world: int = 1, threads: int = 4, shared: int = 2**34) -> int:
        monkeypatch.setattr(dataset.runtime, "available_cpus", lambda: cores)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(dataset, "_free_shared_memory", lambda: shared)
        return dataset._num_workers(world)

    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [workers(cores) for cores in (1, 2, 4, 6, 64)] == [0, 0, 2, 4, 8]
    assert workers(16, world=2) == 6
    assert workers(16, threads=1) == workers(16, shared=2**26) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of 8 processes, the others on a second machine
    assert workers(32, world=8) == 6
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert workers(16) == 0


def test_draw_is_a_function_of_its_numbers():
    def numbers(*of: int) -> list[float]:
        dataset.seed_torch(*of)
        return torch.rand(3).tolist()

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    assert len({tuple(numbers(*of)) for of in [(1, 2, 3), (1, 2, 4), (3, 2, 1), (1, 2), (0, 1, 2, 3)]}) == 5


def test_one_channel_is_the_luma():
    photos = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    grey = Normalize((100.0,), (50.0,))(photos) * 50 + 100
    assert grey.shape == (2, 1, 9, 7)
    for photo, found in zip(photos, grey, strict=True):
        expected = np.asarray(Image.fromarray(photo.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(found[0].numpy() - expected).max() <= 1  # Pillow rounds
