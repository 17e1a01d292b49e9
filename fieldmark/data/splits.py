"""table + groups -> train / val / test, a side for every photo."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable
from fieldmark.data.catalog import Catalog, Photo

_SPLITS = ("train", "val", "test")
_SPLIT_COLUMNS = ["path", "label", "split", "group"]


def assign_splits(
    catalog: Catalog,
    groups: Sequence[int],
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    leaks: Sequence[Sequence[str]] = (),
    group_leaks: Sequence[str] = (),
    allow_leaks: bool = False,
    fold: tuple[int, int] | None = None,
) -> tuple[str, ...]:
    """A side for every photo (train, val or test): stratified by class, the photos of one group together.

    A given split keeps its test and validation photos; what is missing is taken from its training photos, by the same
    `fractions` (train, val, test). A class of three groups or more is on every side, of two in train and test, of one
    in train alone; only groups that span classes can stand against that. Paths, groups and seed decide, never the
    order. With `fold` (k, of), k from 1, the k-th of so many parts is the test, whatever sides are given.
    `leaks` and `group_leaks` (those of `Audit`) raise `FieldmarkError`, as does a split without training photos.
    """
    if fold:
        return _assign_fold(catalog, groups, seed, fractions[1], fold)
    if leaks and not allow_leaks:
        pair = " = ".join(map(printable, leaks[0][:2]))
        raise FieldmarkError(
            f"{pluralize(len(leaks), 'photo')} in more than one of the given splits ({pair}): "
            "the test would not be fair;"
            " remove them there, or accept it with --allow-leaks"
        )
    if group_leaks and not allow_leaks:
        raise FieldmarkError(
            f"{pluralize(len(group_leaks), 'group')} in more than one of the given splits "
            f"({printable(group_leaks[0])}):"
            " the test would not be fair; keep each on one side, or accept it with --allow-leaks"
        )
    splits = [photo.split or "train" for photo in catalog.photos]
    missing_fractions = {side: fractions[_SPLITS.index(side)] for side in ("test", "val") if side not in splits}
    members = _rows_by_group(groups, (i for i, side in enumerate(splits) if side == "train"))
    if not members:
        raise FieldmarkError(f"{printable(str(catalog.root))} holds no photos to train on: add a folder train/")
    for group, side in _assign_groups(catalog, members, missing_fractions, seed).items():
        for i in members[group]:
            splits[i] = side
    return tuple(splits)


def write_split_file(path: Path, catalog: Catalog, splits: Sequence[str]) -> None:
    """The split as CSV, `path,label,split`, and `group` where there are any; names keep their bytes."""
    columns = _SPLIT_COLUMNS if any(photo.group is not None for photo in catalog.photos) else _SPLIT_COLUMNS[:-1]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for photo, split_name in zip(catalog.photos, splits, strict=True):
            rows.writerow((photo.path, photo.label, split_name, photo.group)[: len(columns)])


def read_split_file(path: Path) -> tuple[Photo, ...]:
    """The rows of a split file; further columns are passed over. Raises `FieldmarkError` where it is none."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise FieldmarkError(f"{printable(str(path))} cannot be read as a split file ({error})") from error
    photos = tuple(
        Photo(*(row.get(column) or "" for column in _SPLIT_COLUMNS[:3]), group=row.get("group") or None) for row in rows
    )
    wrong = next((line for line, photo in enumerate(photos, 2) if not photo.path or photo.split not in _SPLITS), None)
    if wrong or not photos:
        raise FieldmarkError(
            f"{printable(str(path))}, row {wrong or 1}: expected path,label,split with train, val or test as the split"
        )
    if len({photo.path for photo in photos}) < len(photos):
        raise FieldmarkError(f"{printable(str(path))} names a photo twice")
    return photos


def _rows_by_group(groups: Sequence[int], rows: Iterable[int]) -> dict[int, list[int]]:
    """Group -> its photos among `rows`."""
    members: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        members[groups[i]].append(i)
    return members


def _assign_fold(
    catalog: Catalog, groups: Sequence[int], seed: int, validation_fraction: float, fold: tuple[int, int]
) -> tuple[str, ...]:
    """All photos in so many parts, stratified and with groups whole: one is the test, of the rest some choose."""
    fold_index, n_folds = fold
    members = _rows_by_group(groups, range(len(groups)))
    test_groups, remaining_groups = set[int](), dict(members)
    for k in range(1, fold_index + 1):  # each takes its share of what is left, the last one all of it
        share = {"test": 1 / (n_folds - k + 1)}
        test_groups = (
            set(_assign_groups(catalog, remaining_groups, share, seed)) if k < n_folds else set(remaining_groups)
        )
        remaining_groups = {group: rows for group, rows in remaining_groups.items() if group not in test_groups}
    rest = {group: rows for group, rows in members.items() if group not in test_groups}
    split_by_group = dict.fromkeys(test_groups, "test") | _assign_groups(
        catalog, rest, {"val": validation_fraction}, seed
    )
    return tuple(split_by_group.get(group, "train") for group in groups)


def _assign_groups(
    catalog: Catalog, members: dict[int, list[int]], fractions: dict[str, float], seed: int
) -> dict[int, str]:
    """Group -> side, for the groups that leave train; `missing` is side -> share of each class's photos."""
    label_counts = {group: Counter(catalog.photos[i].label for i in rows) for group, rows in members.items()}
    photos = sum(label_counts.values(), Counter[str]())
    groups_left = Counter(
        label for labels in label_counts.values() for label in labels
    )  # each class's groups still in train
    splits_by_label = {
        label: list(fractions)[: n - 1] for label, n in groups_left.items()
    }  # so that one group is left for train
    order = sorted(
        members, key=lambda group: _random_order_key(seed, min(catalog.photos[i].path for i in members[group]))
    )
    split_by_group: dict[int, str] = {}
    for rank, (split_name, share) in enumerate(fractions.items(), 1):
        wanted_counts = {
            label: max(1, round(share * n))
            for label, n in photos.items()
            if split_name in splits_by_label[label] and share
        }
        assigned_counts: Counter[str] = Counter()
        # First whatever brings a class nearer to its share; then, for a class of large groups only, its smallest.
        smallest = sorted(order, key=lambda group: label_counts[group].total())
        for group, only_needed in [(group, False) for group in order] + [(group, True) for group in smallest]:
            labels = label_counts[group]
            spare = all(
                label in wanted_counts and groups_left[label] > len(splits_by_label[label][rank:]) + 1
                for label in labels
            )
            nearer = all(n <= 2 * (wanted_counts.get(label, 0) - assigned_counts[label]) for label, n in labels.items())
            needed = any(not assigned_counts[label] for label in labels)
            if group not in split_by_group and spare and (needed if only_needed else nearer):
                split_by_group[group] = split_name
                assigned_counts.update(labels)
                groups_left.subtract(labels.keys())
    return split_by_group


def _random_order_key(seed: int, path: str) -> bytes:
    """A place in the lottery that depends on nothing else, so that a photo more does not shuffle all others."""
    return hashlib.sha256(f"{seed}\0{path}".encode("utf-8", "surrogateescape")).digest()
