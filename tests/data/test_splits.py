"""A split is a partition, stratified, keeps groups whole, and depends on nothing but its inputs."""

import os
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Catalog, Photo
from fieldmark.data.readers.files import Folder
from fieldmark.data.splits import SPLITS, assign_splits, draw_splits, read_split_file, write_split_file


def catalog(labels: list[str], splits: list[str] | None = None) -> Catalog:
    photos = tuple(Photo(f"{label}/{i}.jpg", label, splits[i] if splits else None) for i, label in enumerate(labels))
    return Catalog(Folder(Path("photos")), photos, tuple(sorted(set(labels))))


@st.composite
def tables(draw) -> tuple[Catalog, list[int]]:
    """Up to four classes; groups lie inside one class."""
    labels: list[str] = []
    groups: list[int] = []
    for label in "abcd"[: draw(st.integers(2, 4))]:
        for size in draw(st.lists(st.sampled_from([1, 2, 4, 30]), min_size=1, max_size=12)):
            groups += [len(set(groups))] * size
            labels += [label] * size
    return catalog(labels), groups


def sides_of(keys, assigned) -> dict:
    found = defaultdict(set)
    for key, side in zip(keys, assigned, strict=True):
        found[key].add(side)
    return found


@given(tables(), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_groups_are_whole_and_classes_on_every_side(table, seed):
    photos, groups = table
    assigned = assign_splits(photos, groups, seed=seed)
    assert assigned == assign_splits(photos, groups, seed=seed)
    assert all(len(sides) == 1 for sides in sides_of(groups, assigned).values())
    labels = [photo.label for photo in photos.photos]
    sides = sides_of(labels, assigned)
    for label in photos.classes:
        n = len({group for group, other in zip(groups, labels, strict=True) if other == label})
        assert sides[label] == {1: {"train"}, 2: {"train", "test"}}.get(n, {"train", "val", "test"})


@given(tables(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_without_a_test_set_the_rest_is_trained_on(table, seed):
    photos, groups = table
    assigned = assign_splits(photos, groups, seed=seed, test_share=0.0)
    labels = [photo.label for photo in photos.photos]
    assert all(len(sides) == 1 for sides in sides_of(groups, assigned).values())
    for label, sides in sides_of(labels, assigned).items():
        n = len({group for group, other in zip(groups, labels, strict=True) if other == label})
        assert sides == ({"train"} if n == 1 else {"train", "val"})


@pytest.mark.parametrize(("share", "counts"), [(0.0, (68, 12, 0)), (0.15, (56, 12, 12)), (0.5, (28, 12, 40))])
def test_the_share_of_the_test_set(share: float, counts: tuple[int, int, int]):
    photos = catalog(["a"] * 40 + ["b"] * 40)
    drawn = draw_splits(photos, range(80), range(80), test_share=share)
    assert tuple(drawn.splits.count(split) for split in SPLITS) == counts
    given = catalog(["a"] * 40 + ["b"] * 40, (["test"] * 4 + ["train"] * 36) * 2)
    assert draw_splits(given, range(80), range(80), test_share=share).splits.count("test") == 8, "a given one is kept"
    every_one = draw_splits(photos, range(80), range(80), test_share=0.0, trained_on=range(80)).splits
    assert set(every_one) == {"train"}  # weights may be trained further where nothing is to be tested


@given(tables(), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_and_numbering_do_not_matter(table, seed, rng: random.Random):
    photos, groups = table
    order = list(range(len(groups)))
    rng.shuffle(order)
    shuffled = Catalog(photos.files, tuple(photos.photos[i] for i in order), photos.classes)
    again = assign_splits(shuffled, [1000 - groups[i] for i in order], seed=seed)
    assert [again[order.index(i)] for i in range(len(order))] == list(assign_splits(photos, groups, seed=seed))


@given(st.lists(st.integers(3, 80), min_size=2, max_size=5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_single_photos_are_split_to_the_unit(sizes, seed):
    photos = catalog([f"c{k}" for k, size in enumerate(sizes) for _ in range(size)])
    assigned = assign_splits(photos, range(len(photos.photos)), seed=seed)
    counts = Counter(zip((photo.label for photo in photos.photos), assigned, strict=True))
    for k, size in enumerate(sizes):
        assert counts[f"c{k}", "test"] == counts[f"c{k}", "val"] == max(1, round(0.15 * size))


def test_groups_cost_little_balance():
    groups = [i // 4 for i in range(800)]
    assigned = assign_splits(catalog(["a"] * 400 + ["b"] * 400), groups)
    for part in (assigned[:400], assigned[400:]):
        assert abs(part.count("test") - 60) <= 2
        assert abs(part.count("val") - 60) <= 2


def test_a_group_that_spans_classes_is_placed_once():
    photos = catalog([label for label in "ab" for _ in range(30)])
    groups = [*range(30), 0, 1, 2, *range(33, 60)]
    for seed in range(20):
        assert all(len(sides) == 1 for sides in sides_of(groups, assign_splits(photos, groups, seed=seed)).values())


def test_seeds_differ_and_a_new_photo_moves_few():
    photos = catalog(["a"] * 100 + ["b"] * 100)
    first = assign_splits(photos, range(200))
    assert first != assign_splits(photos, range(200), seed=1)
    fewer = Catalog(photos.files, photos.photos[:-1], photos.classes)
    assert sum(a != b for a, b in zip(first, assign_splits(fewer, range(199)), strict=False)) <= 4


def given_splits(*names: str, size: int = 40) -> Catalog:
    rows = [(label, side) for label in "ab" for side in names for _ in range(size)]
    return catalog([label for label, _ in rows], [side for _, side in rows])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "val", "test"), {"train": 80, "val": 80, "test": 80}),
        (("train", "test"), {"train": 68, "val": 12, "test": 80}),
        (("train", "val"), {"train": 68, "val": 80, "test": 12}),
        (("train",), {"train": 56, "val": 12, "test": 12}),
    ],
)
def test_given_splits_stay_and_what_is_missing_comes_from_train(names, expected):
    photos = given_splits(*names)
    assigned = assign_splits(photos, range(len(photos.photos)))
    assert Counter(assigned) == expected
    for photo, side in zip(photos.photos, assigned, strict=True):
        assert side == photo.split or photo.split == "train"


def test_a_test_folder_alone_cannot_be_trained_on():
    with pytest.raises(FieldmarkError, match="no photos to train on"):
        assign_splits(given_splits("test"), range(80))


def test_leaks_refuse():
    photos = given_splits("train", "test")
    with pytest.raises(FieldmarkError, match=r"1 photo in more than one .*test/1 = train/1.*--allow-leaks"):
        assign_splits(photos, range(160), leaks=[("test/1", "train/1")])
    assert assign_splits(photos, range(160), leaks=[("test/1", "train/1")], allow_leaks=True)


names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=12)


ROWS = st.tuples(names, names, st.sampled_from(["train", "val", "test"]))


@given(st.lists(ROWS, min_size=1, max_size=6, unique_by=lambda row: row[:2]))
@settings(max_examples=60, deadline=None)
def test_a_split_file_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "split.csv"
    odd = os.fsdecode(b"caf\xe9 \xff.jpg")
    photos = tuple(Photo(f"{label}/{name}{odd}", label, side) for name, label, side in rows)
    write_split_file(path, Catalog(Folder(Path("p")), photos, ()), [photo.split or "" for photo in photos])
    assert read_split_file(path) == photos


def test_further_columns_are_passed_over_and_wrong_files_refused(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("path,label,split,note\na/1.jpg,a,val,7\n")
    assert read_split_file(path) == (Photo("a/1.jpg", "a", "val"),)
    for text in ("", "path,label\na,b\n", "path,label,split\na,b,dev\n", "\0"):
        path.write_text(text)
        with pytest.raises(FieldmarkError, match="split"):
            read_split_file(path)
    with pytest.raises(FieldmarkError, match="cannot be read"):
        read_split_file(tmp_path / "gone.csv")


def test_folds_are_a_partition_of_even_parts():
    photos = catalog([f"{label}" for label in range(20) for _ in range(7)])
    tested = Counter()
    for k in range(1, 6):
        assigned = assign_splits(photos, range(140), fold=(k, 5))
        assert {"train", "test"} <= set(assigned)
        sizes = Counter(assigned)["test"]
        assert 20 <= sizes <= 40
        tested.update(photo.path for photo, side in zip(photos.photos, assigned, strict=True) if side == "test")
    assert set(tested.values()) == {1} and len(tested) == 140


@given(tables(), st.integers(2, 5))
@settings(max_examples=60)
def test_folds_keep_groups_whole(table, of):
    photos, groups = table
    tested = set()
    for k in range(1, of + 1):
        assigned = assign_splits(photos, groups, fold=(k, of))
        assert all(len(sides) == 1 for sides in sides_of(groups, assigned).values())
        rows = {i for i, side in enumerate(assigned) if side == "test"}
        assert not rows & tested
        tested |= rows
    assert tested == set(range(len(groups)))


# ---- classes of one family, and weights that have been trained


def photos_of(**classes):
    rows = [Photo(f"{label}/{k}.jpg", label) for label, n in classes.items() for k in range(n)]
    return Catalog(Folder(Path("photos")), tuple(rows), tuple(sorted(classes)))


def test_a_class_of_one_family_is_tested():
    """A fixed camera: 40 nearly equal frames of one class."""
    photos = photos_of(ok=40, defect=40)
    groups, alone = [100] * 40 + list(range(40)), list(range(80))
    drawn = draw_splits(photos, groups, alone)
    assert drawn.divided_classes == ("ok",)
    for split in SPLITS:
        assert drawn.classes_without(split, photos) == []
    kept = draw_splits(photos, groups, groups)  # copies, or images of one patient, are never divided
    assert kept.divided_classes == () and kept.classes_without("test", photos) == ["ok"]


@pytest.mark.parametrize(("n_alone", "is_divided"), [(2, True), (5, True), (6, False), (20, False)])
def test_families_that_a_class_can_spare_stay_whole(n_alone, is_divided):
    photos = photos_of(a=40, b=40)
    groups = [100] * (40 - n_alone) + list(range(40 + n_alone))
    assert (draw_splits(photos, groups, range(80)).divided_classes == ("a",)) == is_divided


def test_each_fold_tests_a_class_of_one_family():
    photos = photos_of(ok=20, defect=20)
    groups = [100] * 20 + list(range(20))
    tested = [draw_splits(photos, groups, range(40), fold=(k, 5)) for k in range(1, 6)]
    assert all(drawn.classes_without("test", photos) == [] for drawn in tested)
    assert all(sum(drawn.splits[i] == "test" for drawn in tested) == 1 for i in range(40))


def test_images_that_the_weights_know_stay_in_train():
    photos = photos_of(a=40, b=40)
    known = [i for i in range(80) if i % 4]
    drawn = draw_splits(photos, range(80), range(80), trained_on=known, seed=3)
    assert {drawn.splits[i] for i in known} == {"train"}
    for split in SPLITS:  # of the others, some validate and some test
        assert drawn.classes_without(split, photos) == []
    with pytest.raises(FieldmarkError, match="trained on all of these images"):
        draw_splits(photos, range(80), range(80), trained_on=range(80))
    with pytest.raises(FieldmarkError, match="60 images that are in a fold"):
        draw_splits(photos, range(80), range(80), trained_on=known, fold=(1, 5))
    rows = (replace(photo, split="test" if photo.path < "a/2" else "train") for photo in photos.photos)
    given = replace(photos, photos=tuple(rows))
    with pytest.raises(FieldmarkError, match="in the given test or validation images"):
        draw_splits(given, range(80), range(80), trained_on=known)
    assert draw_splits(given, range(80), range(80), trained_on=known, allow_leaks=True).splits.count("test") > 0


def test_a_group_of_a_known_image_stays_with_it():
    photos = photos_of(a=20, b=20)
    drawn = draw_splits(photos, [i // 2 for i in range(40)], range(40), trained_on=[0, 20])
    assert {drawn.splits[i] for i in (0, 1, 20, 21)} == {"train"}
