"""Splits into train, val and test: stratified by class, groups kept whole; and the split file."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import Catalog, Photo

SPLITS = ("train", "val", "test")
SPLIT_COLUMNS = ["path", "label", "split", "group"]
VALIDATION_SHARE = 0.15
"""Part of each class for the validation split."""
MIN_SPARED_SHARE = 0.15
"""Part of a class beside its largest family of near-duplicates below which the family is divided: half of what the
validation and the test split take together."""


@dataclass(frozen=True)
class DrawnSplits:
    """The splits of a dataset.

    Attributes:
        splits: train, val or test for each image.
        divided_classes: classes of which near-duplicates are in several splits, since they have hardly anything else.
    """

    splits: tuple[str, ...]
    divided_classes: tuple[str, ...] = ()

    def classes_without(self, split: str, catalog: Catalog) -> list[str]:
        """The classes that have no image in a split."""
        present = {photo.label for photo, name in zip(catalog.photos, self.splits, strict=True) if name == split}
        return [name for name in catalog.classes if name not in present]


def draw_splits(
    catalog: Catalog,
    groups: Sequence[int],
    hard_groups: Sequence[int],
    *,
    seed: int = 0,
    test_share: float = 0.15,
    fold: tuple[int, int] | None = None,
    trained_on: Collection[int] = (),
    **options: Any,
) -> DrawnSplits:
    """`assign_splits`, where classes that would have no test images divide their near-duplicates.

    A fixed camera makes all images of a class near-duplicates. Kept together, they would all be training images.

    Args:
        groups: of near-duplicates and given groups, as `AuditReport.groups`.
        hard_groups: of copies and given groups, which are never divided, as `AuditReport.hard_groups`.
        test_share: as `assign_splits`.
        trained_on: images that the initial weights were trained on, as positions in the catalog; they stay in train.
        options: as `assign_splits`.

    Raises:
        FieldmarkError: as `assign_splits`; or the weights were trained on test images, or on all images.
    """
    n_splits = max(3 if test_share else 2, fold[1] if fold else 0)
    divided = _classes_of_one_family(catalog, groups, hard_groups, n_splits)
    offset = max(groups, default=0) + 1
    used = [
        offset + hard if photo.label in divided else group
        for photo, group, hard in zip(catalog.photos, groups, hard_groups, strict=True)
    ]
    pinned = _refuse_trained_on(catalog, trained_on, fold, options.get("allow_leaks", False))
    splits = assign_splits(catalog, used, seed=seed, test_share=test_share, fold=fold, pinned=pinned, **options)
    if pinned and test_share and "test" not in splits:
        raise FieldmarkError(
            f"the initial weights were trained on {'all' if len(pinned) == len(splits) else 'nearly all'} of these "
            "images, so that none are left for a test: give a test/ folder, or other weights"
        )
    return DrawnSplits(splits, tuple(sorted(divided)))


def _classes_of_one_family(
    catalog: Catalog, groups: Sequence[int], hard_groups: Sequence[int], n_splits: int
) -> set[str]:
    """Classes of which hardly an image could leave the training split unless near-duplicates are divided."""
    families: dict[str, Counter[int]] = defaultdict(Counter)
    copies: dict[str, set[int]] = defaultdict(set)
    for photo, group, hard in zip(catalog.photos, groups, hard_groups, strict=True):
        if photo.split in (None, "train"):
            families[photo.label][group] += 1
            copies[photo.label].add(hard)
    return {
        label
        for label, sizes in families.items()
        if len(copies[label]) > len(sizes)
        and (len(sizes) < n_splits or sizes.total() - sizes.most_common(1)[0][1] < MIN_SPARED_SHARE * sizes.total())
    }


def _refuse_trained_on(
    catalog: Catalog, trained_on: Collection[int], fold: tuple[int, int] | None, allow_leaks: bool
) -> Collection[int]:
    """The images that must stay in train; raises FieldmarkError if they are to be tested on."""
    if not trained_on or allow_leaks:
        return ()
    tested = [i for i in trained_on if catalog.photos[i].split in ("test", "val")]
    if fold or tested:
        n, where = len(trained_on) if fold else len(tested), "a fold" if fold else "the given test or validation images"
        raise FieldmarkError(
            f"the initial weights were trained on {pluralize(n, 'image')} that are in {where}: test metrics would be "
            "optimistic (leakage); start from other weights, or accept it with --allow-leaks"
        )
    return trained_on


def assign_splits(
    catalog: Catalog,
    groups: Sequence[int],
    *,
    seed: int = 0,
    test_share: float = 0.15,
    leaks: Sequence[Sequence[str]] = (),
    group_leaks: Sequence[str] = (),
    allow_leaks: bool = False,
    fold: tuple[int, int] | None = None,
    pinned: Collection[int] = (),
) -> tuple[str, ...]:
    """The split of each image (train, val or test), stratified by class; a group is never divided.

    The test and validation images of a given split are kept; a missing one is taken from the training images. A class
    of three or more groups is in every split, of two in train and test, of one in train alone, unless groups that span
    classes prevent it. The result depends on paths, groups and seed, and not on the order.

    Args:
        groups: group number of each image, as `AuditReport.groups`.
        test_share: part of each class for the test split where none is given; 0: there is no test split.
        leaks: images in several of the given splits, as `AuditReport.leaks`.
        group_leaks: groups in several of the given splits.
        fold: (k, n) makes the k-th of n parts the test split, k from 1, whatever splits are given.
        pinned: images that stay in train, with their groups, as positions in the catalog.

    Raises:
        FieldmarkError: there are leaks and `allow_leaks` is not set, or no training images.
    """
    if fold:
        return _assign_fold(catalog, groups, seed, fold)
    if not allow_leaks:
        _refuse_leaks(leaks, group_leaks)
    splits = [photo.split or "train" for photo in catalog.photos]
    fractions = {"test": test_share, "val": VALIDATION_SHARE}
    missing_fractions = {split: share for split, share in fractions.items() if share and split not in splits}
    members = _rows_by_group(groups, (i for i, split in enumerate(splits) if split == "train"))
    if not members:
        raise FieldmarkError(f"{printable(str(catalog.root))} holds no photos to train on: add a folder train/")
    pinned_groups = {groups[i] for i in pinned}
    for group, split in _assign_groups(catalog, members, missing_fractions, seed, pinned_groups).items():
        for i in members[group]:
            splits[i] = split
    return tuple(splits)


def write_split_file(path: Path, catalog: Catalog, splits: Sequence[str]) -> None:
    """Write the split as CSV with the columns path, label, split, and group if any image has one; atomically."""
    columns = SPLIT_COLUMNS if any(photo.group is not None for photo in catalog.photos) else SPLIT_COLUMNS[:-1]
    rows = (
        dict(zip(columns, (photo.path, photo.label, split, photo.group), strict=False))
        for photo, split in zip(catalog.photos, splits, strict=True)
    )
    io.write_csv(path, rows, columns)


def read_split_file(path: Path) -> tuple[Photo, ...]:
    """The images in a split file; further columns are ignored.

    Raises:
        FieldmarkError: it is missing, damaged or no split file.
    """
    if not path.is_file():
        raise FieldmarkError(f"{printable(str(path))} cannot be read as a split file (no such file)")
    return parse_split_rows(path, io.read_csv(path))


def parse_split_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[Photo, ...]:
    """The images in the rows of the split file `path`; raises as `read_split_file`."""
    photos = list[Photo]()
    for number, row in enumerate(rows, 2):
        image_path, label, split = (row.get(column) or "" for column in SPLIT_COLUMNS[:3])
        if not image_path or split not in SPLITS:
            raise _not_a_split_file_error(path, number)
        photos.append(Photo(image_path, label, split, group=row.get("group") or None))
    if not photos:
        raise _not_a_split_file_error(path, 1)
    if len({photo.path for photo in photos}) < len(photos):
        raise FieldmarkError(f"{printable(str(path))} lists an image twice")
    return tuple(photos)


def _not_a_split_file_error(path: Path, row: int) -> FieldmarkError:
    return FieldmarkError(
        f"{printable(str(path))}, row {row}: expected path,label,split with train, val or test as the split"
    )


def _refuse_leaks(leaks: Sequence[Sequence[str]], group_leaks: Sequence[str]) -> None:
    optimistic = "test metrics would be optimistic (leakage)"
    if leaks:
        pair = " = ".join(map(printable, leaks[0][:2]))
        raise FieldmarkError(
            f"{pluralize(len(leaks), 'photo')} in more than one of the given splits ({pair}): {optimistic};"
            " remove them there, or accept it with --allow-leaks"
        )
    if group_leaks:
        raise FieldmarkError(
            f"{pluralize(len(group_leaks), 'group')} in more than one of the given splits"
            f" ({printable(group_leaks[0])}): {optimistic}; keep each group in one split, or accept it with"
            " --allow-leaks"
        )


def _rows_by_group(groups: Sequence[int], rows: Iterable[int]) -> dict[int, list[int]]:
    """The images of each group among `rows`."""
    members: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        members[groups[i]].append(i)
    return members


def _assign_fold(catalog: Catalog, groups: Sequence[int], seed: int, fold: tuple[int, int]) -> tuple[str, ...]:
    """The split of each image in one fold of a stratified, grouped cross-validation; val is taken from the rest."""
    fold_index, n_folds = fold
    members = _rows_by_group(groups, range(len(groups)))
    test_groups, remaining_groups = set[int](), dict(members)
    for k in range(1, fold_index + 1):  # each fold takes its part of what the ones before have left
        share = {"test": 1 / (n_folds - k + 1)}
        test_groups = (
            set(_assign_groups(catalog, remaining_groups, share, seed)) if k < n_folds else set(remaining_groups)
        )
        remaining_groups = {group: rows for group, rows in remaining_groups.items() if group not in test_groups}
    rest = {group: rows for group, rows in members.items() if group not in test_groups}
    split_by_group = dict.fromkeys(test_groups, "test") | _assign_groups(catalog, rest, {"val": VALIDATION_SHARE}, seed)
    return tuple(split_by_group.get(group, "train") for group in groups)


def _assign_groups(
    catalog: Catalog,
    members: dict[int, list[int]],
    fractions: dict[str, float],
    seed: int,
    pinned: Collection[int] = (),
) -> dict[int, str]:
    """The groups that leave the training split, by number, and the split that each gets.

    Args:
        members: the images of each group, as rows of the catalog.
        fractions: the splits to fill, in this order, with this part of the images of each class.
        pinned: groups that stay.
    """
    photos = catalog.photos
    label_counts = {group: Counter(photos[i].label for i in rows) for group, rows in members.items()}
    n_images = sum(label_counts.values(), Counter[str]())
    n_free = sum((labels for group, labels in label_counts.items() if group not in pinned), Counter[str]())
    groups_left = Counter(label for labels in label_counts.values() for label in labels)  # still in train, by class
    # A class of n groups serves the first n - 1 splits, so that one group is left for training.
    splits_of_class = {label: list(fractions)[: n - 1] for label, n in groups_left.items()}
    order = sorted(members, key=lambda group: _random_order_key(seed, min(photos[i].path for i in members[group])))
    smallest_first = sorted(order, key=lambda group: label_counts[group].total())
    split_by_group: dict[int, str] = {}
    for rank, (split, fraction) in enumerate(fractions.items(), 1):
        of_free = fraction / sum(fractions.values())  # of few images that may leave, each split gets its part
        shares = {label: min(fraction * n, of_free * n_free[label]) for label, n in n_images.items()}
        quota = _Quota({label: share for label, share in shares.items() if split in splits_of_class[label]})
        n_later = {label: len(splits[rank:]) for label, splits in splits_of_class.items()}
        # First the groups that fit the quota; then, for classes of large groups only, their smallest.
        candidates = [(group, quota.is_approached_by) for group in order]
        candidates += [(group, quota.lacks_class_in) for group in smallest_first]
        for group, is_candidate in candidates:
            labels = label_counts[group]
            can_leave_train = group not in pinned and all(
                label in quota.wanted and groups_left[label] > n_later[label] + 1 for label in labels
            )
            if group not in split_by_group and can_leave_train and is_candidate(labels):
                split_by_group[group] = split
                quota.assigned.update(labels)
                groups_left.subtract(labels.keys())
    return split_by_group


class _Quota:
    """The number of images of each class that a split is to get, and how many it has got."""

    def __init__(self, shares: dict[str, float]) -> None:
        self.wanted = {label: max(1, round(share)) for label, share in shares.items() if share}
        self.assigned = Counter[str]()

    def is_approached_by(self, labels: Counter[str]) -> bool:
        """Whether a group brings each of its classes nearer to the wanted number."""
        return all(n <= 2 * (self.wanted.get(label, 0) - self.assigned[label]) for label, n in labels.items())

    def lacks_class_in(self, labels: Counter[str]) -> bool:
        """Whether the split has no image yet of one of the group's classes."""
        return any(not self.assigned[label] for label in labels)


def _random_order_key(seed: int, path: str) -> bytes:
    """A pseudo-random sort key that depends on seed and path alone, so that a new image does not reorder the others."""
    return hashlib.sha256(f"{seed}\0{path}".encode("utf-8", "surrogateescape")).digest()
