"""Copies of real photos are found, look-alikes are not."""

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fieldmark.audit import duplicates
from fieldmark.data.decoded import dhash, thumbnail
from fieldmark.data.image import decode


def reencoded(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return decode(buffer.getvalue())


def cropped(image: Image.Image) -> Image.Image:
    """2 % less on every side."""
    x, y = image.width // 50, image.height // 50
    return image.crop((x, y, image.width - x, image.height - y))


COPIES = {
    "resized": lambda image: image.resize((image.width // 2, image.height // 2)),
    "re-encoded": reencoded,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "mirrored": ImageOps.mirror,
    "cropped": cropped,
}


def clusters(images: list[Image.Image]) -> np.ndarray:
    hashes = np.array([dhash(image) for image in images], np.uint64).reshape(-1, 2)
    thumbnails = np.array([thumbnail(image) for image in images], np.uint8).reshape(
        -1, duplicates.THUMBNAIL_SIDE, duplicates.THUMBNAIL_SIDE, 3
    )
    return duplicates.cluster_duplicates(np.arange(len(images)), hashes, thumbnails)


@pytest.fixture(scope="module")
def photos(trashnet, birds100) -> list[Image.Image]:
    """40 photos of things on plain boards and 40 of birds, none of them a copy of another."""
    paths = sorted(trashnet.glob("*/*.jpg"))[7::64][:40] + sorted(birds100.glob("train/*/*.jpg"))[11::71][:40]
    return [decode(path, shorter=256) for path in paths]


@pytest.mark.parametrize("change", sorted(COPIES))
def test_planted_copies_are_found_and_nothing_else(photos, change):
    found = clusters(photos + [COPIES[change](photo) for photo in photos])
    n = len(photos)
    assert (found[:n] == np.arange(n)).all()
    assert (found[n:] == np.arange(n)).mean() >= 0.95
    assert ((found[n:] == np.arange(n)) | (found[n:] == np.arange(n) + n)).all()


def test_blank_photos_match_nothing():
    rng = np.random.default_rng(0)
    blank = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in (0, 100, 254, 255)]
    shaded = [Image.linear_gradient("L").convert("RGB"), Image.linear_gradient("L").rotate(180).convert("RGB")]
    noisy = [Image.fromarray((250 + rng.normal(0, 2, (256, 256, 3))).clip(0, 255).astype(np.uint8)) for _ in range(20)]
    found = clusters(blank + shaded + noisy)
    assert (found == np.arange(len(found))).all()


def test_many_copies_of_one_photo_are_one_cluster(photos):
    many = [photos[0]] * 30 + [photos[1]]
    assert (clusters(many) == [0] * 30 + [30]).all()


def random_thumbnails(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 40, (n, 16, 16, 3))


def images(thumbnails: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray((128 + one).clip(0, 255).astype(np.uint8)).resize((256, 256)) for one in thumbnails]


def test_a_chain_of_lookalikes_is_not_one_photo():
    """Each is like the next (an agreement of 0.97 or so), but no longer like the one some steps on."""
    angles = np.linspace(0, np.pi / 2, 6, endpoint=False)
    steps = [np.cos(t) * a + np.sin(t) * b for a, b in pairwise(random_thumbnails(9)) for t in angles]
    found = clusters(images(np.array(steps)))
    assert len(set(found)) > 1 and np.bincount(found).max() <= len(angles)


@pytest.mark.parametrize("variation", [4, 8, 12])
def test_products_of_one_kind_are_not_one_photo(variation):
    """All agree by more than the usual bound; only a copy is far nearer than the others are to each other."""
    kinds = np.repeat(random_thumbnails(3), 40, axis=0)
    products = images(kinds + variation / 40 * random_thumbnails(len(kinds), seed=1))
    copies = [COPIES[change](products[7]) for change in ("resized", "re-encoded", "darker", "mirrored")]
    assert clusters(products + copies).tolist() == [*range(120), 7, 7, 7, 7]


def test_copies_inside_a_family_that_is_known_already_are_found(monkeypatch):
    """Where all agree with all, only those that may be copies are looked at."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 40, (16, 16, 3))
    varied = [128 + base + rng.normal(0, 11, base.shape) for _ in range(60)]
    family = [Image.fromarray(one.clip(0, 255).astype(np.uint8)).resize((256, 256)) for one in varied]
    monkeypatch.setattr(duplicates, "_ROWS", 10)
    looked, agreement = [], duplicates._pair_similarity
    monkeypatch.setattr(duplicates, "_pair_similarity", lambda i, *rest: looked.append(len(i)) or agreement(i, *rest))
    copies = [ImageEnhance.Brightness(photo).enhance(0.99) for photo in family[-3:]]
    assert clusters(family + copies).tolist() == [*range(60), *range(57, 60)]
    assert 0 < sum(looked) < 63 * 62 / 2 / 2


def test_the_short_look_at_a_pair_loses_none(monkeypatch):
    """All pairs compared in full, as they are and mirrored, in blocks that are smaller than the photos are many."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(duplicates, "_ROWS", 50)
    monkeypatch.setattr(duplicates, "_COLUMNS", 70)
    first = rng.integers(0, 256, (60, duplicates.THUMBNAIL_SIDE, duplicates.THUMBNAIL_SIDE, 3))
    near = [(first + rng.normal(0, noise, first.shape)).clip(0, 255) for noise in (10, 30, 38, 42, 46)]
    thumbnails = np.concatenate([first, *near]).astype(np.uint8)
    thumbnails[::7] = thumbnails[::7, :, ::-1]
    full = [duplicates.local_descriptors(side) for side in (thumbnails, thumbnails[:, :, ::-1])]
    agreement = [np.einsum("id,jd->ij", full[0], side, dtype=np.float32) for side in full]
    alikes = sum((np.triu(side >= duplicates.MIN_SIMILARITY, 1) for side in agreement), np.zeros(len(full[0]), bool))
    found = np.zeros((360, 360), bool)
    for i, j, _ in duplicates._duplicate_pairs(np.zeros((360, 2), np.uint64), thumbnails, np.arange(360)):
        found[i, j] = True
    assert 400 < found.sum() < 60 * 15 and (found == alikes).all()


def test_equal_files_stay_together_and_order_does_not_matter(photos):
    some = [*photos[:9], ImageOps.mirror(photos[3]), cropped(photos[5])]
    order = np.random.default_rng(1).permutation(len(some))
    plain, shuffled = clusters(some), clusters([some[i] for i in order])
    for i in range(len(some)):
        for j in range(len(some)):
            where = np.argsort(order)
            assert (plain[i] == plain[j]) == (shuffled[where[i]] == shuffled[where[j]])
    same = np.array([0, 0, 2])
    nothing = np.zeros((3, duplicates.THUMBNAIL_SIDE, duplicates.THUMBNAIL_SIDE, 3), np.uint8)
    assert (duplicates.cluster_duplicates(same, np.zeros((3, 2), np.uint64), nothing) == same).all()
    assert clusters([]).shape == (0,)
