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
    looked, agreement = [], duplicates.pair_similarity
    monkeypatch.setattr(duplicates, "pair_similarity", lambda i, *rest: looked.append(len(i)) or agreement(i, *rest))
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


def arrays(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([dhash(image) for image in images], np.uint64), np.array([thumbnail(image) for image in images])


def test_thousands_of_equal_images_are_compared_once(photos, monkeypatch):
    """As equal files and as files of equal pixels, in any set."""
    hashes, thumbnails = arrays(photos[:3])
    rows = np.repeat([0, 1, 0, 2], [1000, 1, 1000, 1])
    compared, similarity = [], duplicates.pair_similarity
    monkeypatch.setattr(duplicates, "pair_similarity", lambda i, *rest: compared.append(len(i)) or similarity(i, *rest))
    expected = np.repeat([0, 1000, 0, 2001], [1000, 1, 1000, 1])
    for first in (np.arange(2002), np.where(rows == 0, 0, np.arange(2002))):
        found = duplicates.cluster_duplicates(first, hashes[rows], thumbnails[rows])
        assert (found == expected).all()
        assert (duplicates.cluster_copies(found, first, hashes[rows], thumbnails[rows]) == expected).all()
    assert sum(compared) < 10


def scene_frames(n: int, noise: float = 3.0, seed: int = 0) -> list[Image.Image]:
    """Photos of a fixed camera, which differ by the noise of its sensor."""
    rng = np.random.default_rng(seed)
    scene = np.asarray(Image.fromarray(rng.integers(0, 255, (9, 9, 3)).astype(np.uint8)).resize((128, 128)))
    return [
        Image.fromarray((scene + rng.normal(0, noise, scene.shape)).clip(0, 255).astype(np.uint8)) for _ in range(n)
    ]


def test_frames_of_one_scene_cost_little(monkeypatch):
    """Each is nearly equal to all others: they are one cluster after a few comparisons of each."""
    hashes, thumbnails = arrays(scene_frames(300))
    compared, similarity = [], duplicates.pair_similarity
    monkeypatch.setattr(duplicates, "pair_similarity", lambda i, *rest: compared.append(len(i)) or similarity(i, *rest))
    assert len(np.unique(thumbnails.reshape(300, -1), axis=0)) == 300
    assert not duplicates.cluster_duplicates(np.arange(300), hashes, thumbnails).any()
    assert 0 < sum(compared) < 3 * 300


@pytest.fixture
def in_trees(monkeypatch):
    monkeypatch.setattr(duplicates, "EXHAUSTIVE_MAX", 0)
    monkeypatch.setattr("fieldmark.audit.search_trees.LEAF_SIZE", 90)


@pytest.mark.parametrize("change", sorted(COPIES))
def test_trees_find_planted_copies_too(photos, change, in_trees):
    found, n = clusters(photos + [COPIES[change](photo) for photo in photos]), len(photos)
    assert (found[:n] == np.arange(n)).all()
    assert (found[n:] == np.arange(n)).mean() >= (0.8 if change == "cropped" else 0.95)
    assert ((found[n:] == np.arange(n)) | (found[n:] == np.arange(n) + n)).all()


def test_trees_find_families(in_trees):
    """A scene of more frames than a leaf holds, products of one kind, and photos without anything alike."""
    products = images(np.repeat(random_thumbnails(1, seed=5), 100, axis=0) + 0.2 * random_thumbnails(100, seed=6))
    others = images(random_thumbnails(100, seed=7))
    blank = [Image.new("RGB", (64, 64))] * 50
    found = clusters(scene_frames(150) + products + others + blank)
    assert not found[:150].any() and (found[150:] != np.arange(150, 400)).sum() <= 2


def test_copies_are_few_and_frames_many(photos):
    """Copies stay together whatever they show; frames of a fixed camera agree as well, but are 40."""
    frames, n_frames = scene_frames(40), 40
    resaved = [COPIES[change](photo) for change in ("resized", "mirrored") for photo in photos[:5]]
    some = frames + photos[:5] + resaved + [cropped(photos[9]), photos[9]]
    (hashes, thumbnails), each = arrays(some), np.arange(len(some))
    near = duplicates.cluster_duplicates(each, hashes, thumbnails)
    assert near.tolist() == [0] * 40 + [*range(40, 45)] * 3 + [55, 55]
    copies = duplicates.cluster_copies(near, each, hashes, thumbnails)
    assert copies[:n_frames].tolist() == [*range(n_frames)]
    assert (copies[n_frames:-2] == np.tile(np.arange(40, 45), 3)).sum() >= 14  # one is so smooth that it agrees by less
    assert copies[-2:].tolist() == [55, 56]  # a crop is near, and no copy
    same_bytes = each.copy()
    same_bytes[7] = 3
    assert duplicates.cluster_copies(near, same_bytes, hashes, thumbnails)[7] == 3
    assert duplicates.cluster_copies(each[:0], each[:0], hashes[:0], thumbnails[:0]).shape == (0,)
