"""The labels of a session as files: a manifest for `train`, and decisions for `train --apply`."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core import io
from fieldmark.core.text import ascii_file_name
from fieldmark.data.decisions import DECISION_COLUMNS
from fieldmark.data.image import UnreadableImageError, decode
from fieldmark.pipeline.teaching.session import TeachingSession
from fieldmark.pipeline.teaching.store import UNREADABLE

LABELS_FILE, DECISIONS_FILE, QUARANTINE_FILE = "labels.csv", "decisions.csv", "quarantine.csv"
EXTRACTED_FOLDER = "images"
"""In the session's folder: images of archives, which a manifest cannot name."""
MIN_TESTS = 20
"""Labelled test images from which they are the test split of the manifest."""


def write_labels(session: TeachingSession, *, extracts: bool = False) -> Path:
    """Write labels.csv: path, label and split of each labelled image. `train` takes it in place of a folder.

    The random test images are the test split, so that a training is tested as honestly as the session was. Images that
    turned out to be near-duplicates of them are left out, as the session has not learned from them either.

    Args:
        extracts: also copy images that lie in archives into the session's folder, and name these copies.
    """
    given_tests = session.images.tests
    tests = {name for name, (_, purpose) in session.labels.items() if purpose == "test"} | given_tests
    has_tests = len(tests) >= MIN_TESTS
    rows: list[dict[str, Any]] = []
    for name, (label, purpose) in sorted(session.labels.items()):
        if has_tests and purpose == "train" and name not in tests and session.resembles_test_image(name):
            continue
        split = ("test" if name in tests else "train") if has_tests else ""
        with suppress(UnreadableImageError):  # an image in an archive, which `train` would leave out too
            rows.append({"path": _path_of(session, name, extracts), "label": label, "split": split})
    columns = ["path", "label", "split"] if has_tests else ["path", "label"]
    file = session.folder / LABELS_FILE
    io.write_csv(file, [{column: row[column] for column in columns} for row in rows], columns)
    return file


def _path_of(session: TeachingSession, name: str, extracts: bool) -> str:
    file = session.images.file_of(name)
    if file is not None:
        return str(file)
    stem, suffix = os.path.splitext(name)
    copy = session.folder / EXTRACTED_FOLDER / f"{session.row_of[name]:06d}-{ascii_file_name(stem, 60)}{suffix}"
    if extracts and not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        with io.atomic_path(copy) as partial:
            partial.write_bytes(session.images.read_bytes(name))
    return str(copy.relative_to(session.folder))


def write_unreadable(session: TeachingSession) -> int:
    """Write quarantine.csv: path and reason of each image that cannot be read, as a training does.

    Returns:
        how many there are; without any no file is written.
    """
    rows = []
    for row in np.flatnonzero(session.store.status == UNREADABLE):
        name, reason = session.names[row], "changed since it was read"
        try:
            decode(session.images.read_bytes(name), 64)
        except UnreadableImageError as error:
            reason = str(error)
        rows.append({"path": name, "reason": reason})
    if rows:
        io.write_csv(session.folder / QUARANTINE_FILE, rows, ["path", "reason"])
    return len(rows)


def write_decisions(session: TeachingSession) -> Path | None:
    """Write decisions.csv, by which `train DATA --apply` corrects a labelled dataset; None if it has no labels."""
    given = session.images.labels
    if not given:
        return None
    rows = []
    for answer in session.journal.current().values():
        if answer.path not in given or answer.action == "skip":
            continue
        before = given[answer.path]
        changed = answer.action == "label" and answer.label != before
        decision = "exclude" if answer.action == "exclude" else "relabel" if changed else "keep"
        to = answer.label if changed else ""
        values = (answer.path, before, decision, to, "teach", "")
        rows.append(dict(zip(DECISION_COLUMNS, values, strict=True)))
    file = session.folder / DECISIONS_FILE
    io.write_csv(file, rows, list(DECISION_COLUMNS))
    return file
