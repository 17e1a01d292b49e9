"""The audit of a catalog: unreadable files, duplicates, conflicting labels, split leaks, outliers, shortcuts."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fieldmark.audit import outliers, shortcuts
from fieldmark.audit.clusters import flatten, merge_clusters
from fieldmark.audit.duplicates import cluster_copies, cluster_duplicates
from fieldmark.audit.outliers import ImageStats
from fieldmark.audit.report import AuditReport, PathGroups
from fieldmark.audit.warning_lines import class_size_warnings, issue_warnings
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.core.text import pluralize, printable, summarize_names
from fieldmark.data.catalog import Catalog, Photo, UnreadableFile, trainable_classes
from fieldmark.data.decoded import THUMBNAIL_SIDE, DecodedImage, content_hash
from fieldmark.data.image import UnreadableImageError, decode


@dataclass(frozen=True)
class ReadableSubset:
    """The images of a catalog that can be trained on.

    Attributes:
        groups: number of the group of each image, as in `AuditReport.groups`.
        indices: position of each image in the audited catalog.
        hard_groups: number of the group of each image, as in `AuditReport.hard_groups`.
    """

    catalog: Catalog
    groups: tuple[int, ...]
    indices: tuple[int, ...]
    hard_groups: tuple[int, ...] = ()


def audit_catalog(
    catalog: Catalog,
    *,
    shorter: int = 256,
    interpolation: str = "bicubic",
    find_cached: Callable[[str], DecodedImage | None] | None = None,
    on_decoded: Callable[[int, DecodedImage], object] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> AuditReport:
    """Read, hash and decode every image once, and compare them. Changes no file.

    Args:
        shorter: width and height of the decoded images in pixels; they are whole (`squash` of `decode`).
        interpolation: `bicubic` or `bilinear`.
        find_cached: returns the image with this `content_hash` if it has been decoded before, with the same settings;
            called in several threads.
        on_decoded: called with the position in the catalog and the image, in the catalog's order and in this thread.
            Only a few images are in memory at a time.
        workers: number of threads; one for each available CPU by default.
        progress: called with the number of images done and the number of all.
    """
    collector, total = _Collector(catalog), len(catalog.photos)
    workers = workers or runtime.available_cpus()
    find_identical = None if on_decoded else collector.first_readable.get

    def read(photo: Photo) -> _ReadImage | _IdenticalImage | _ReadFailure:
        return _read_image(catalog, photo, shorter, interpolation, find_cached, find_identical)

    with closing(ordered_map(read, catalog.photos, workers)) as results:
        for i, result in enumerate(results):
            collector.add(i, result)
            if on_decoded and isinstance(result, _ReadImage):
                on_decoded(i, result.image)
            if progress:
                progress(i + 1, total)
    return collector.report()


def dataset_fingerprint(catalog: Catalog, report: AuditReport) -> str:
    """SHA-256 over the path, label and bytes of every image, whatever their order."""
    rows = sorted((photo.path, photo.label, sha) for photo, sha in zip(catalog.photos, report.file_hashes, strict=True))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def drop_unreadable(catalog: Catalog, report: AuditReport) -> ReadableSubset:
    """The readable images of the classes that have readable training images.

    Raises:
        FieldmarkError: fewer than two classes have some.
    """
    unreadable = {file.path for file in report.unreadable}
    readable_classes = trainable_classes(photo for photo in catalog.photos if photo.path not in unreadable)
    if len(readable_classes) < 2:
        raise FieldmarkError(
            f"{printable(str(catalog.root))}: without its {pluralize(len(unreadable), 'unreadable photo')} fewer than"
            " two classes are left; see `fieldmark check` for the reasons and replace them"
        )
    rows = [
        i for i, photo in enumerate(catalog.photos) if photo.label in readable_classes and photo.path not in unreadable
    ]
    warnings = catalog.warnings
    if lost_classes := sorted(set(catalog.classes) - readable_classes):
        warnings += (f"classes without readable photos to train on left out: {summarize_names(lost_classes)}",)
    photos, classes = tuple(catalog.photos[i] for i in rows), tuple(sorted(readable_classes))
    subset = replace(catalog, photos=photos, classes=classes, warnings=warnings)
    groups, hard_groups = (tuple(number[i] for i in rows) for number in (report.groups, report.hard_groups))
    return ReadableSubset(subset, groups, tuple(rows), hard_groups)


class _ReadImage(NamedTuple):
    image: DecodedImage
    stats: ImageStats


class _IdenticalImage(NamedTuple):
    sha256: str
    position: int  # of an image with equal bytes that has been decoded


class _ReadFailure(NamedTuple):
    sha256: str  # empty if the bytes cannot be read
    reason: str


def _read_image(
    catalog: Catalog,
    photo: Photo,
    shorter: int,
    interpolation: str,
    find_cached: Callable[[str], DecodedImage | None] | None,
    find_identical: Callable[[str], int | None] | None,
) -> _ReadImage | _IdenticalImage | _ReadFailure:
    sha256 = ""
    try:
        content = catalog.read_bytes(photo)
        sha256 = content_hash(content, photo.box)
        if find_identical and (position := find_identical(sha256)) is not None:
            return _IdenticalImage(sha256, position)
        image = find_cached(sha256) if find_cached else None
        if image is None:
            image = DecodedImage.from_image(decode(content, shorter, interpolation, photo.box, squash=True), sha256)
    except UnreadableImageError as error:
        return _ReadFailure(sha256, str(error))
    return _ReadImage(image, outliers.image_stats(content, image.pixels, image.thumbnail))


class _Collector:
    """Collects what is compared between images, and compares it at the end.

    Attributes:
        first_readable: position of the first image with a hash that could be decoded.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, n = catalog, len(catalog.photos)
        self.file_hashes: list[str] = []
        self.failures: dict[int, str] = {}
        self.stats: dict[int, ImageStats] = {}
        self.first_readable: dict[str, int] = {}
        self.dhashes = np.zeros((n, 2), np.uint64)
        self.thumbnails = np.zeros((n, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)

    def add(self, i: int, result: _ReadImage | _IdenticalImage | _ReadFailure) -> None:
        """Image i of the catalog; to be called in order."""
        if isinstance(result, _ReadFailure):
            self.file_hashes.append(result.sha256)
            self.failures[i] = result.reason
            return
        if isinstance(result, _IdenticalImage):
            self.file_hashes.append(result.sha256)
            k = result.position
            self.dhashes[i], self.thumbnails[i], self.stats[i] = self.dhashes[k], self.thumbnails[k], self.stats[k]
        else:
            self.file_hashes.append(result.image.sha256)
            self.dhashes[i], self.thumbnails[i] = result.image.dhash, result.image.thumbnail
            self.stats[i] = result.stats
        self.first_readable.setdefault(self.file_hashes[i], i)

    def report(self) -> AuditReport:
        """All issues; to be called when all images have been added."""
        photos = self.catalog.photos
        first_identical = self._first_identical()
        near_root = cluster_duplicates(first_identical, self.dhashes, self.thumbnails)
        near_clusters = _mixed_clusters(near_root, lambda i: first_identical[i])
        given_groups = self._given_groups()
        groups, hard_groups = self._number_groups(first_identical, near_root, given_groups)

        def split_of(i: int) -> str | None:
            return photos[i].split

        def paths(clusters: Iterable[list[int]]) -> PathGroups:
            return tuple(tuple(photos[i].path for i in rows) for rows in clusters)

        readable_photos, stats = [photos[i] for i in self.stats], [*self.stats.values()]
        labels = [photo.label for photo in readable_photos]
        metadata = shortcuts.measure_metadata(labels, stats, [groups[i] for i in self.stats])
        report = AuditReport(
            classes=dict(sorted(Counter(photo.label for photo in photos).items())),
            n_given_groups=len(given_groups),
            unreadable=tuple(UnreadableFile(photos[i].path, reason) for i, reason in self.failures.items()),
            duplicates=paths(_mixed_clusters(first_identical, lambda i: i)),
            near_duplicates=paths(near_clusters),
            conflicts=paths(_mixed_clusters(first_identical, lambda i: photos[i].label)),
            leaks=paths(_mixed_clusters(first_identical, split_of)),
            near_leaks=paths(rows for rows in near_clusters if len(set(map(split_of, rows))) > 1),
            group_leaks=tuple(name for name, rows in given_groups.items() if len(set(map(split_of, rows))) > 1),
            outliers=tuple(outliers.find_outliers([photo.path for photo in readable_photos], stats)),
            shortcuts=tuple(shortcuts.with_evidence(shortcuts.find_shortcuts(labels, stats), metadata)),
            metadata=metadata,
            catalog_warnings=self.catalog.warnings,
            groups=groups,
            hard_groups=hard_groups,
            file_hashes=tuple(self.file_hashes),
        )
        readable = Counter(photo.label for i, photo in enumerate(photos) if i not in self.failures)
        has_splits = any(photo.split for photo in photos)
        warnings = (*issue_warnings(report), *class_size_warnings(readable, has_splits))
        return replace(report, audit_warnings=warnings)

    def _first_identical(self) -> np.ndarray:
        """The position of the first image with equal bytes, int (n,); an unreadable one equals no other."""
        rows = [i if i in self.failures else self.first_readable[sha] for i, sha in enumerate(self.file_hashes)]
        return np.array(rows, dtype=int)

    def _number_groups(
        self, first_identical: np.ndarray, near_root: np.ndarray, given_groups: dict[str, list[int]]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`groups` and `hard_groups` of the report."""
        hard = cluster_copies(near_root, first_identical, self.dhashes, self.thumbnails)
        pairs = [(rows[0], row) for rows in given_groups.values() for row in rows]
        merge_clusters(hard, *np.array(pairs, int).reshape(-1, 2).T)
        flatten(hard)
        numbers: dict[str, int] = {}
        label_ids = np.array([numbers.setdefault(photo.label, len(numbers)) for photo in self.catalog.photos], int)
        near_of_label = near_root * max(1, len(numbers)) + label_ids
        _, first, inverse = np.unique(near_of_label, return_index=True, return_inverse=True)
        groups = hard.copy()
        merge_clusters(groups, np.arange(len(groups)), first[inverse])
        flatten(groups)
        return tuple(groups.tolist()), tuple(hard.tolist())

    def _given_groups(self) -> dict[str, list[int]]:
        groups = defaultdict[str, list[int]](list)
        for i, photo in enumerate(self.catalog.photos):
            if photo.group is not None:
                groups[photo.group].append(i)
        return groups


def _mixed_clusters(root: np.ndarray, key: Callable[[int], Hashable]) -> list[list[int]]:
    """The clusters of more than one kind: `root` (n,) is the first member of each image's cluster."""
    members: dict[int, list[int]] = defaultdict(list)
    for i in np.flatnonzero(np.bincount(root)[root] > 1).tolist():
        members[root[i]].append(i)
    return [rows for rows in members.values() if len(set(map(key, rows))) > 1]
