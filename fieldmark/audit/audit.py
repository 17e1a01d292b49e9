"""catalog -> findings: what cannot be read, what lies there twice, under two classes or on both sides of a split."""

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fieldmark.audit import duplicates as alike
from fieldmark.audit import outliers
from fieldmark.audit.outliers import Facts, GiveAway, Odd
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.catalog import Catalog, Photo, count, learnable, listing, printable
from fieldmark.data.image import Box, Unreadable, decode

T = TypeVar("T")
Groups = tuple[tuple[str, ...], ...]
IMBALANCE = 5  # the largest class has this many times the photos of the smallest: worth a warning


@dataclass(frozen=True)
class Audit:
    """Findings about a catalog; paths as in the catalog, the tuples `hashes` and `groups` photo by photo.

    `duplicates` are equal to the byte; `near_duplicates` are clusters of photos that show the same and are not all
    equal; `conflicts` and `leaks` are those duplicates that lie under several classes or given splits, `near_leaks`
    those near-duplicates that lie in several splits; `group_leaks` are the given groups that do. `groups` names the
    cluster of any kind, for the split. `odd` photos stand out, and `giveaways` tell a class without its picture.
    `hashes` are SHA-256 of the files, empty where the system would not give the file.
    """

    unreadable: tuple[tuple[str, str], ...]
    duplicates: Groups
    near_duplicates: Groups
    conflicts: Groups
    leaks: Groups
    near_leaks: Groups
    group_leaks: tuple[str, ...]
    odd: tuple[Odd, ...]
    giveaways: tuple[GiveAway, ...]
    groups: tuple[int, ...]
    hashes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def problems(self) -> bool:
        """Whether somebody should see to these photos (imbalance alone is no fault in them)."""
        found = (self.unreadable, self.duplicates, self.conflicts, self.leaks, self.near_leaks, self.group_leaks)
        return any(found)

    def to_json(self, catalog: Catalog) -> dict[str, Any]:
        """What `fieldmark check --json` prints. `label_errors` is null: this version does not look for them."""
        return {
            "classes": dict(sorted(Counter(photo.label for photo in catalog.photos).items())),
            "photos": len(catalog.photos),
            "given_groups": len({photo.group for photo in catalog.photos} - {None}),
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.unreadable],
            "duplicates": [list(paths) for paths in self.duplicates],
            "near_duplicates": [list(paths) for paths in self.near_duplicates],
            "conflicts": [list(paths) for paths in self.conflicts],
            "leaks": [list(paths) for paths in self.leaks],
            "near_leaks": [list(paths) for paths in self.near_leaks],
            "group_leaks": list(self.group_leaks),
            "odd": [odd._asdict() for odd in self.odd],
            "giveaways": [given._asdict() for given in self.giveaways],
            "label_errors": None,
            "warnings": [*catalog.warnings, *self.warnings],
        }


class Usable(NamedTuple):
    """What is left to train on; `rows` are the photos' places in the audited catalog."""

    catalog: Catalog
    groups: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """What the audit sees of a photo that can be read."""

    sha256: str
    pixels: np.ndarray  # uint8 (h, w, 3)
    dhash: tuple[int, int]
    thumbnail: np.ndarray  # uint8 (16, 16, 3)


class _Unseen(NamedTuple):
    sha256: str  # empty where not even the bytes could be read
    reason: str


def audit(
    catalog: Catalog,
    *,
    shorter: int = 256,
    interpolation: str = "bicubic",
    known: Callable[[str], Look | None] | None = None,
    keep: Callable[[int, Look], object] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Audit:
    """Look at every photo once: read, hash, decode with `shorter`, compare. Changes nothing.

    `known(sha256)` may have seen a file with these bytes before, decoded just so, and spare the decoding; it is asked
    in several threads. `keep(i, look)` gets photo i of the catalog, in the catalog's order and in this thread, so that
    nobody need decode it again; only a few photos are held at a time. `progress(done, total)` follows.
    """
    total = len(catalog.photos)
    reasons: dict[int, str] = {}
    hashes: list[str] = []
    dhashes = np.zeros((total, 2), np.uint64)
    thumbnails = np.zeros((total, alike.SIDE, alike.SIDE, 3), np.uint8)
    seen: list[tuple[int, Facts]] = []
    looks = _in_order(
        lambda photo: _look(catalog, photo, shorter, interpolation, known), catalog.photos, workers or runtime.cores()
    )
    for i, (look, known_of) in enumerate(looks):
        hashes.append(look.sha256)
        if isinstance(look, _Unseen):
            reasons[i] = look.reason
        elif known_of is not None:
            seen.append((i, known_of))
            dhashes[i], thumbnails[i] = look.dhash, look.thumbnail
            if keep:
                keep(i, look)
        if progress:
            progress(i + 1, total)

    first: dict[str, int] = {}
    same = np.array([i if i in reasons else first.setdefault(sha, i) for i, sha in enumerate(hashes)], dtype=int)
    return _findings(catalog, reasons, tuple(hashes), same, alike.clusters(same, dhashes, thumbnails), seen)


def fingerprint(catalog: Catalog, audit: Audit) -> str:
    """SHA-256 over what was trained on: every photo's path, label and bytes, in whatever order they were found."""
    rows = sorted((photo.path, photo.label, sha) for photo, sha in zip(catalog.photos, audit.hashes, strict=True))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def usable(catalog: Catalog, audit: Audit) -> Usable:
    """The readable photos of the classes that still have some; `FieldmarkError` where fewer than two classes do."""
    unreadable = {path for path, _ in audit.unreadable}
    known = learnable(photo for photo in catalog.photos if photo.path not in unreadable)
    if len(known) < 2:
        lost = count(len(unreadable), "unreadable photo")
        raise FieldmarkError(
            f"{printable(str(catalog.root))}: without its {lost} fewer than two classes are left;"
            " see `fieldmark check` for the reasons and replace them"
        )
    rows = [i for i, photo in enumerate(catalog.photos) if photo.label in known and photo.path not in unreadable]
    lost = sorted(set(catalog.classes) - known)
    warnings = (f"classes without readable photos to train on left out: {listing(lost)}",) if lost else ()
    left = replace(
        catalog,
        photos=tuple(catalog.photos[i] for i in rows),
        classes=tuple(sorted(known)),
        warnings=catalog.warnings + warnings,
    )
    return Usable(left, tuple(audit.groups[i] for i in rows), tuple(rows))


def _look(
    catalog: Catalog, photo: Photo, shorter: int, interpolation: str, known: Callable[[str], Look | None] | None
) -> tuple[Look, Facts] | tuple[_Unseen, None]:
    sha256 = ""
    try:
        content = catalog.contents(photo)
        sha256 = _identity(content, photo.box)
        if not (look := known(sha256) if known else None):
            image = decode(content, shorter, interpolation, photo.box)
            look = Look(sha256, np.asarray(image), alike.dhash(image), alike.thumbnail(image))
    except Unreadable as error:
        return _Unseen(sha256, str(error)), None
    return look, outliers.facts(content, look.pixels, look.thumbnail)


def _identity(content: bytes, box: Box | None) -> str:
    """SHA-256 of the file; where only a part of it is looked at, of both."""
    told = hashlib.sha256(content)
    if box:
        told.update(repr(box).encode())
    return told.hexdigest()


def _in_order(look: Callable[[Photo], T], photos: Iterable[Photo], workers: int) -> Iterator[T]:
    """`map` over threads (Pillow lets go of the GIL) that never runs further ahead than its caller can follow."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[T]] = deque()
        for photo in photos:
            ahead.append(pool.submit(look, photo))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _findings(
    catalog: Catalog,
    reasons: dict[int, str],
    hashes: tuple[str, ...],
    same: np.ndarray,
    groups: np.ndarray,
    seen: list[tuple[int, Facts]],
) -> Audit:
    photos = catalog.photos

    def several(clusters: np.ndarray, of: Callable[[int], object]) -> list[list[int]]:
        """The clusters whose photos are of several kinds."""
        members: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero(np.bincount(clusters)[clusters] > 1).tolist():
            members[clusters[i]].append(i)
        return [rows for rows in members.values() if len({of(i) for i in rows}) > 1]

    def paths(rows: list[list[int]]) -> Groups:
        return tuple(tuple(photos[i].path for i in row) for row in rows)

    near = several(groups, lambda i: same[i])
    given = defaultdict[str, list[int]](list)
    for i, photo in enumerate(photos):
        if photo.group is not None:
            given[photo.group].append(i)
    whole, known = _joined(groups, given.values()), [facts for _, facts in seen]
    found = Audit(
        unreadable=tuple((photos[i].path, reason) for i, reason in reasons.items()),
        duplicates=paths(several(same, lambda i: i)),
        near_duplicates=paths(near),
        conflicts=paths(several(same, lambda i: photos[i].label)),
        leaks=paths(several(same, lambda i: photos[i].split)),
        near_leaks=paths([rows for rows in near if len({photos[i].split for i in rows}) > 1]),
        group_leaks=tuple(name for name, rows in given.items() if len({photos[i].split for i in rows}) > 1),
        odd=tuple(outliers.odd([photos[i].path for i, _ in seen], known)),
        giveaways=tuple(outliers.giveaways([photos[i].label for i, _ in seen], known)),
        groups=tuple(whole.tolist()),
        hashes=hashes,
        warnings=(),
    )
    readable = Counter(photo.label for i, photo in enumerate(photos) if i not in reasons)
    return replace(found, warnings=tuple(_warnings(catalog, found, readable)))


def _joined(groups: np.ndarray, given: Iterable[list[int]]) -> np.ndarray:
    """Clusters as large as the groups that somebody gave make them."""
    whole, pairs = groups.copy(), [(rows[0], row) for rows in given for row in rows[1:]]
    if pairs:
        alike.join(whole, *np.array(pairs).T)
    return whole


def _warnings(catalog: Catalog, found: Audit, readable: Counter[str]) -> Iterator[str]:
    def told(noun: str, what: str, groups: Groups) -> str:
        return f"{count(len(groups), noun)} {what}: {listing([' = '.join(paths) for paths in groups], 3)}"

    if found.unreadable:
        named = listing([f"{path} ({reason})" for path, reason in found.unreadable], 3)
        yield f"{count(len(found.unreadable), 'unreadable photo')}: {named}"
    if found.duplicates:
        yield told("set", "of identical files", found.duplicates)
    if found.near_duplicates:
        yield told("set", "of photos that look the same (a split keeps each set on one side)", found.near_duplicates)
    if found.conflicts:
        yield told("photo", "under several classes (keep the right one)", found.conflicts)
    if found.leaks:
        yield told("photo", "in several splits (the test would not be fair)", found.leaks)
    if found.near_leaks:
        yield told("set", "of photos that look the same in several splits", found.near_leaks)
    if found.group_leaks:
        yield f"{count(len(found.group_leaks), 'group')} in several splits: {listing(found.group_leaks, 3)}"
    for kind, n in sorted(Counter(odd.kind for odd in found.odd).items()):
        yield f"{count(n, f'{kind} photo')}: {listing([odd.path for odd in found.odd if odd.kind == kind], 3)}"
    for given in found.giveaways:
        yield (
            f"{given.share:.0%} of {printable(given.label)} have the {given.what} {printable(given.value)} and"
            f" {given.elsewhere:.0%} of the others: a network may learn that in place of the picture"
        )
    if readable:
        (most, n_most), (least, n_least) = readable.most_common(1)[0], min(readable.items(), key=lambda item: item[1])
        if n_most >= IMBALANCE * n_least:
            yield f"the classes are uneven: {printable(most)} has {n_most:,} photos, {printable(least)} has {n_least:,}"
    alone = sorted(label for label, n in readable.items() if n == 1)
    if alone and not any(photo.split for photo in catalog.photos):
        yield f"a class with one photo trains but is not tested: {listing(alone)}"
