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
from fieldmark.audit.outliers import ImageStats, Outlier, Shortcut
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo, trainable_classes
from fieldmark.data.image import Box, UnreadableImageError, decode

T = TypeVar("T")
PathGroups = tuple[tuple[str, ...], ...]
MAX_CLASS_RATIO = 5  # the largest class has this many times the photos of the smallest: worth a warning


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
    duplicates: PathGroups
    near_duplicates: PathGroups
    conflicts: PathGroups
    leaks: PathGroups
    near_leaks: PathGroups
    group_leaks: tuple[str, ...]
    outliers: tuple[Outlier, ...]
    shortcuts: tuple[Shortcut, ...]
    groups: tuple[int, ...]
    file_hashes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def has_issues(self) -> bool:
        """Whether somebody should see to these photos (imbalance alone is no fault in them)."""
        issues = (self.unreadable, self.duplicates, self.conflicts, self.leaks, self.near_leaks, self.group_leaks)
        return any(issues)

    def to_dict(self, catalog: Catalog) -> dict[str, Any]:
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
            "odd": [odd._asdict() for odd in self.outliers],
            "giveaways": [given._asdict() for given in self.shortcuts],
            "label_errors": None,
            "warnings": [*catalog.warnings, *self.warnings],
        }


class ReadableSubset(NamedTuple):
    """What is left to train on; `rows` are the photos' places in the audited catalog."""

    catalog: Catalog
    groups: tuple[int, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class DecodedImage:
    """What the audit sees of a photo that can be read."""

    sha256: str
    pixels: np.ndarray  # uint8 (h, w, 3)
    dhash: tuple[int, int]
    thumbnail: np.ndarray  # uint8 (16, 16, 3)


class _DecodeFailure(NamedTuple):
    sha256: str  # empty where not even the bytes could be read
    reason: str


def audit_catalog(
    catalog: Catalog,
    *,
    shorter: int = 256,
    interpolation: str = "bicubic",
    find_cached: Callable[[str], DecodedImage | None] | None = None,
    on_decoded: Callable[[int, DecodedImage], object] | None = None,
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
    thumbnails = np.zeros((total, alike.THUMBNAIL_SIDE, alike.THUMBNAIL_SIDE, 3), np.uint8)
    readable_stats: list[tuple[int, ImageStats]] = []
    decoded = _ordered_map(
        lambda photo: _decode_image(catalog, photo, shorter, interpolation, find_cached),
        catalog.photos,
        workers or runtime.available_cpus(),
    )
    for i, (image, stats) in enumerate(decoded):
        hashes.append(image.sha256)
        if isinstance(image, _DecodeFailure):
            reasons[i] = image.reason
        elif stats is not None:
            readable_stats.append((i, stats))
            dhashes[i], thumbnails[i] = image.dhash, image.thumbnail
            if on_decoded:
                on_decoded(i, image)
        if progress:
            progress(i + 1, total)

    first: dict[str, int] = {}
    first_identical = np.array(
        [i if i in reasons else first.setdefault(sha, i) for i, sha in enumerate(hashes)], dtype=int
    )
    return _build_audit(
        catalog,
        reasons,
        tuple(hashes),
        first_identical,
        alike.cluster_duplicates(first_identical, dhashes, thumbnails),
        readable_stats,
    )


def dataset_fingerprint(catalog: Catalog, audit: Audit) -> str:
    """SHA-256 over what was trained on: every photo's path, label and bytes, in whatever order they were found."""
    rows = sorted((photo.path, photo.label, sha) for photo, sha in zip(catalog.photos, audit.file_hashes, strict=True))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def drop_unreadable(catalog: Catalog, audit: Audit) -> ReadableSubset:
    """The readable photos of the classes that still have some; `FieldmarkError` where fewer than two classes do."""
    unreadable = {path for path, _ in audit.unreadable}
    readable_classes = trainable_classes(photo for photo in catalog.photos if photo.path not in unreadable)
    if len(readable_classes) < 2:
        missing_classes = pluralize(len(unreadable), "unreadable photo")
        raise FieldmarkError(
            f"{printable(str(catalog.root))}: without its {missing_classes} fewer than two classes are left;"
            " see `fieldmark check` for the reasons and replace them"
        )
    rows = [
        i for i, photo in enumerate(catalog.photos) if photo.label in readable_classes and photo.path not in unreadable
    ]
    missing_classes = sorted(set(catalog.classes) - readable_classes)
    warnings = (
        (f"classes without readable photos to train on left out: {summarize_names(missing_classes)}",)
        if missing_classes
        else ()
    )
    subset = replace(
        catalog,
        photos=tuple(catalog.photos[i] for i in rows),
        classes=tuple(sorted(readable_classes)),
        warnings=catalog.warnings + warnings,
    )
    return ReadableSubset(subset, tuple(audit.groups[i] for i in rows), tuple(rows))


def _decode_image(
    catalog: Catalog,
    photo: Photo,
    shorter: int,
    interpolation: str,
    find_cached: Callable[[str], DecodedImage | None] | None,
) -> tuple[DecodedImage, ImageStats] | tuple[_DecodeFailure, None]:
    sha256 = ""
    try:
        content = catalog.read_bytes(photo)
        sha256 = _content_hash(content, photo.box)
        if not (image_record := find_cached(sha256) if find_cached else None):
            image = decode(content, shorter, interpolation, photo.box)
            image_record = DecodedImage(sha256, np.asarray(image), alike.dhash(image), alike.thumbnail(image))
    except UnreadableImageError as error:
        return _DecodeFailure(sha256, str(error)), None
    return image_record, outliers.image_stats(content, image_record.pixels, image_record.thumbnail)


def _content_hash(content: bytes, box: Box | None) -> str:
    """SHA-256 of the file; where only a part of it is looked at, of both."""
    digest = hashlib.sha256(content)
    if box:
        digest.update(repr(box).encode())
    return digest.hexdigest()


def _ordered_map(function: Callable[[Photo], T], photos: Iterable[Photo], workers: int) -> Iterator[T]:
    """`map` over threads (Pillow lets go of the GIL) that never runs further ahead than its caller can follow."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[T]] = deque()
        for photo in photos:
            pending.append(pool.submit(function, photo))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _build_audit(
    catalog: Catalog,
    reasons: dict[int, str],
    hashes: tuple[str, ...],
    first_identical: np.ndarray,
    groups: np.ndarray,
    readable_stats: list[tuple[int, ImageStats]],
) -> Audit:
    photos = catalog.photos

    def _mixed_clusters(clusters: np.ndarray, key: Callable[[int], object]) -> list[list[int]]:
        """The clusters whose photos are of several kinds."""
        members: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero(np.bincount(clusters)[clusters] > 1).tolist():
            members[clusters[i]].append(i)
        return [rows for rows in members.values() if len({key(i) for i in rows}) > 1]

    def paths(rows: list[list[int]]) -> PathGroups:
        return tuple(tuple(photos[i].path for i in row) for row in rows)

    near_clusters = _mixed_clusters(groups, lambda i: first_identical[i])
    given_groups = defaultdict[str, list[int]](list)
    for i, photo in enumerate(photos):
        if photo.group is not None:
            given_groups[photo.group].append(i)
    split_groups, stats = _merge_given_groups(groups, given_groups.values()), [facts for _, facts in readable_stats]
    result = Audit(
        unreadable=tuple((photos[i].path, reason) for i, reason in reasons.items()),
        duplicates=paths(_mixed_clusters(first_identical, lambda i: i)),
        near_duplicates=paths(near_clusters),
        conflicts=paths(_mixed_clusters(first_identical, lambda i: photos[i].label)),
        leaks=paths(_mixed_clusters(first_identical, lambda i: photos[i].split)),
        near_leaks=paths([rows for rows in near_clusters if len({photos[i].split for i in rows}) > 1]),
        group_leaks=tuple(name for name, rows in given_groups.items() if len({photos[i].split for i in rows}) > 1),
        outliers=tuple(outliers.find_outliers([photos[i].path for i, _ in readable_stats], stats)),
        shortcuts=tuple(outliers.find_shortcuts([photos[i].label for i, _ in readable_stats], stats)),
        groups=tuple(split_groups.tolist()),
        file_hashes=hashes,
        warnings=(),
    )
    readable = Counter(photo.label for i, photo in enumerate(photos) if i not in reasons)
    return replace(result, warnings=tuple(_warning_messages(catalog, result, readable)))


def _merge_given_groups(groups: np.ndarray, given: Iterable[list[int]]) -> np.ndarray:
    """Clusters as large as the groups that somebody gave make them."""
    merged, pairs = groups.copy(), [(rows[0], row) for rows in given for row in rows[1:]]
    if pairs:
        alike.merge_clusters(merged, *np.array(pairs).T)
    return merged


def _warning_messages(catalog: Catalog, result: Audit, readable: Counter[str]) -> Iterator[str]:
    def describe_groups(noun: str, what: str, groups: PathGroups) -> str:
        return f"{pluralize(len(groups), noun)} {what}: {summarize_names([' = '.join(paths) for paths in groups], 3)}"

    if result.unreadable:
        named = summarize_names([f"{path} ({reason})" for path, reason in result.unreadable], 3)
        yield f"{pluralize(len(result.unreadable), 'unreadable photo')}: {named}"
    if result.duplicates:
        yield describe_groups("set", "of identical files", result.duplicates)
    if result.near_duplicates:
        yield describe_groups(
            "set", "of photos that look the same (a split keeps each set on one side)", result.near_duplicates
        )
    if result.conflicts:
        yield describe_groups("photo", "under several classes (keep the right one)", result.conflicts)
    if result.leaks:
        yield describe_groups("photo", "in several splits (the test would not be fair)", result.leaks)
    if result.near_leaks:
        yield describe_groups("set", "of photos that look the same in several splits", result.near_leaks)
    if result.group_leaks:
        groups = pluralize(len(result.group_leaks), "group")
        yield f"{groups} in several splits: {summarize_names(result.group_leaks, 3)}"
    for kind, n in sorted(Counter(odd.kind for odd in result.outliers).items()):
        paths = [outlier.path for outlier in result.outliers if outlier.kind == kind]
        yield f"{pluralize(n, f'{kind} photo')}: {summarize_names(paths, 3)}"
    for shortcut in result.shortcuts:
        yield (
            f"{shortcut.share:.0%} of {printable(shortcut.label)} have the {shortcut.what} {printable(shortcut.value)}"
            f" and {shortcut.elsewhere:.0%} of the others: a network may learn that in place of the picture"
        )
    if readable:
        (most, n_most), (least, n_least) = readable.most_common(1)[0], min(readable.items(), key=lambda item: item[1])
        if n_most >= MAX_CLASS_RATIO * n_least:
            yield f"the classes are uneven: {printable(most)} has {n_most:,} photos, {printable(least)} has {n_least:,}"
    singleton_classes = sorted(label for label, n in readable.items() if n == 1)
    if singleton_classes and not any(photo.split for photo in catalog.photos):
        yield f"a class with one photo trains but is not tested: {summarize_names(singleton_classes)}"
