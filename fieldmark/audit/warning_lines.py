"""What an audit found -> one line for each kind of issue, of bounded length; `fieldmark check` shows all of it."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from fieldmark.audit import shortcuts
from fieldmark.audit.report import AuditReport
from fieldmark.core.lines import READ_ON
from fieldmark.core.text import pluralize, printable, shorten, summarize_within

MAX_CLASS_RATIO = 5
"""Ratio of the largest to the smallest class from which on the imbalance is worth a warning."""
MAX_WARNING_LENGTH = 200
"""Characters of a warning; the lists of names in it are cut to that."""
MAX_NAME_LENGTH = 40
"""Characters of a path or class name among others in a warning."""
MAX_SHORTCUT_WARNINGS = 3


def issue_warnings(report: AuditReport) -> Iterator[str]:
    """One line for each kind of issue."""
    if report.unreadable:
        files = [f"{shorten(file.path, MAX_NAME_LENGTH)} ({file.reason})" for file in report.unreadable]
        yield list_warning(pluralize(len(files), "unreadable photo"), files)
    for groups, noun, description in (
        (report.duplicates, "set", "of identical files"),
        (report.near_duplicates, "set", "of near-duplicates (those of one class stay in one split)"),
        (report.conflicts, "photo", "with conflicting labels (keep one)"),
        (report.leaks, "photo", "in several splits (test leakage)"),
        (report.near_leaks, "set", "of near-duplicates in several splits"),
    ):
        if groups:
            largest_first = [_name_set(paths) for paths in sorted(groups, key=len, reverse=True)]
            has_more = any(len(paths) > 3 for paths in groups)
            yield list_warning(f"{pluralize(len(groups), noun)} {description}", largest_first, has_more)
    if report.group_leaks:
        yield list_warning(f"{pluralize(len(report.group_leaks), 'group')} in several splits", report.group_leaks)
    for kind, n in sorted(Counter(outlier.kind for outlier in report.outliers).items()):
        paths = [outlier.path for outlier in report.outliers if outlier.kind == kind]
        yield list_warning(pluralize(n, f"{kind} photo"), paths)
    yield from _shortcut_warnings(report)


def list_warning(count: str, names: Collection[str], has_more: bool = False) -> str:
    """The count and the first names, in a line of bounded length; it says where all are if some are left out.

    Args:
        has_more: whether the names themselves leave something out.
    """
    room = MAX_WARNING_LENGTH - len(count) - len(": ") - len(" and 1,000,000 more") - len(READ_ON)
    listed, n_more = summarize_within(names, room)
    return f"{count}: {listed}{READ_ON if n_more or has_more else ''}"


def _name_set(paths: Sequence[str]) -> str:
    """The images of a set: all of three, or the first two and the number of all."""
    shown = " = ".join(shorten(path, MAX_NAME_LENGTH) for path in paths[: 3 if len(paths) == 3 else 2])
    return shown if len(paths) <= 3 else f"{shown} = ... ({len(paths):,} in all)"


def _shortcut_warnings(report: AuditReport) -> Iterator[str]:
    """One line on all metadata if it tells the classes apart, else one for each of the first shortcuts."""
    if report.metadata and report.metadata.is_shortcut:
        yield shortcuts.describe_metadata(report.metadata)
        return
    for shortcut in report.shortcuts[:MAX_SHORTCUT_WARNINGS]:
        yield f"{shortcuts.describe_shortcut(shortcut)}: a shortcut, which the network may learn instead of the image"
    if (n_more := len(report.shortcuts) - MAX_SHORTCUT_WARNINGS) > 0:
        yield f"{pluralize(n_more, 'more shortcut')} of this kind: giveaways in fieldmark check PHOTOS --json"


def class_size_warnings(readable: Counter[str], has_splits: bool) -> Iterator[str]:
    """Lines on class imbalance and on classes of one image; `readable` counts the readable images of each class."""
    if readable:
        (most, n_most), (least, n_least) = readable.most_common(1)[0], min(readable.items(), key=lambda item: item[1])
        if n_most >= MAX_CLASS_RATIO * n_least:
            largest, smallest = (shorten(printable(label), MAX_NAME_LENGTH) for label in (most, least))
            yield f"class imbalance: {largest} has {n_most:,} photos, {smallest} has {n_least:,}"
    singletons = sorted(label for label, n in readable.items() if n == 1)
    if singletons and not has_splits:
        listed, _ = summarize_within(singletons, 120, 5)
        yield f"classes with one photo are trained on but not tested: {listed}"
