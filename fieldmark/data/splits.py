"""table + groups -> train / val / test, a side for every photo."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Catalog, Photo, count, printable

_SIDES = ("train", "val", "test")
_COLUMNS = ["path", "label", "split", "group"]


def split(
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
        return _fold(catalog, groups, seed, fractions[1], fold)
    if leaks and not allow_leaks:
        pair = " = ".join(map(printable, leaks[0][:2]))
        raise FieldmarkError(
            f"{count(len(leaks), 'photo')} in more than one of the given splits ({pair}): the test would not be fair;"
            " remove them there, or accept it with --allow-leaks"
        )
    if group_leaks and not allow_leaks:
        raise FieldmarkError(
            f"{count(len(group_leaks), 'group')} in more than one of the given splits ({printable(group_leaks[0])}):"
            " the test would not be fair; keep each on one side, or accept it with --allow-leaks"
        )
    assigned = [photo.split or "train" for photo in catalog.photos]
    missing = {side: fractions[_SIDES.index(side)] for side in ("test", "val") if side not in assigned}
    members = _members(groups, (i for i, side in enumerate(assigned) if side == "train"))
    if not members:
        raise FieldmarkError(f"{printable(str(catalog.root))} holds no photos to train on: add a folder train/")
    for group, side in _place(catalog, members, missing, seed).items():
        for i in members[group]:
            assigned[i] = side
    return tuple(assigned)


def write_split(path: Path, catalog: Catalog, assigned: Sequence[str]) -> None:
    """The split as CSV, `path,label,split`, and `group` where there are any; names keep their bytes."""
    columns = _COLUMNS if any(photo.group is not None for photo in catalog.photos) else _COLUMNS[:-1]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for photo, side in zip(catalog.photos, assigned, strict=True):
            rows.writerow((photo.path, photo.label, side, photo.group)[: len(columns)])


def read_split(path: Path) -> tuple[Photo, ...]:
    """The rows of a split file; further columns are passed over. Raises `FieldmarkError` where it is none."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise FieldmarkError(f"{printable(str(path))} cannot be read as a split file ({error})") from error
    photos = tuple(
        Photo(*(row.get(column) or "" for column in _COLUMNS[:3]), group=row.get("group") or None) for row in rows
    )
    wrong = next((line for line, photo in enumerate(photos, 2) if not photo.path or photo.split not in _SIDES), None)
    if wrong or not photos:
        raise FieldmarkError(
            f"{printable(str(path))}, row {wrong or 1}: expected path,label,split with train, val or test as the split"
        )
    if len({photo.path for photo in photos}) < len(photos):
        raise FieldmarkError(f"{printable(str(path))} names a photo twice")
    return photos


def _members(groups: Sequence[int], rows: Iterable[int]) -> dict[int, list[int]]:
    """Group -> its photos among `rows`."""
    members: dict[int, list[int]] = defaultdict(list)
    for i in rows:
        members[groups[i]].append(i)
    return members


def _fold(
    catalog: Catalog, groups: Sequence[int], seed: int, validation: float, fold: tuple[int, int]
) -> tuple[str, ...]:
    """All photos in so many parts, stratified and with groups whole: one is the test, of the rest some choose."""
    number, of = fold
    members = _members(groups, range(len(groups)))
    tested, left = set[int](), dict(members)
    for k in range(1, number + 1):  # each takes its share of what is left, the last one all of it
        share = {"test": 1 / (of - k + 1)}
        tested = set(_place(catalog, left, share, seed)) if k < of else set(left)
        left = {group: rows for group, rows in left.items() if group not in tested}
    rest = {group: rows for group, rows in members.items() if group not in tested}
    sides = dict.fromkeys(tested, "test") | _place(catalog, rest, {"val": validation}, seed)
    return tuple(sides.get(group, "train") for group in groups)


def _place(catalog: Catalog, members: dict[int, list[int]], missing: dict[str, float], seed: int) -> dict[int, str]:
    """Group -> side, for the groups that leave train; `missing` is side -> share of each class's photos."""
    inside = {group: Counter(catalog.photos[i].label for i in rows) for group, rows in members.items()}
    photos = sum(inside.values(), Counter[str]())
    left = Counter(label for labels in inside.values() for label in labels)  # each class's groups still in train
    gets = {label: list(missing)[: n - 1] for label, n in left.items()}  # so that one group is left for train
    order = sorted(members, key=lambda group: _lot(seed, min(catalog.photos[i].path for i in members[group])))
    placed: dict[int, str] = {}
    for rank, (side, share) in enumerate(missing.items(), 1):
        wanted = {label: max(1, round(share * n)) for label, n in photos.items() if side in gets[label] and share}
        have: Counter[str] = Counter()
        # First whatever brings a class nearer to its share; then, for a class of large groups only, its smallest.
        smallest = sorted(order, key=lambda group: inside[group].total())
        for group, only_needed in [(group, False) for group in order] + [(group, True) for group in smallest]:
            labels = inside[group]
            spare = all(label in wanted and left[label] > len(gets[label][rank:]) + 1 for label in labels)
            nearer = all(n <= 2 * (wanted.get(label, 0) - have[label]) for label, n in labels.items())
            needed = any(not have[label] for label in labels)
            if group not in placed and spare and (needed if only_needed else nearer):
                placed[group] = side
                have.update(labels)
                left.subtract(labels.keys())
    return placed


def _lot(seed: int, path: str) -> bytes:
    """A place in the lottery that depends on nothing else, so that a photo more does not shuffle all others."""
    return hashlib.sha256(f"{seed}\0{path}".encode("utf-8", "surrogateescape")).digest()
