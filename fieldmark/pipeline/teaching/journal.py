"""The answers of people, in a file that only grows.

Each answer is a line of JSON that is on the disk before it is acknowledged, so a kill loses none. Lines are appended by
single writes under a lock, so several windows and several people may write into one journal. The state follows from the
lines in order: of several answers for an image the last one holds, and an undo takes back one answer. To skip an image
that has a label, when it is asked about again, leaves it its label.
"""

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fieldmark.core.errors import FieldmarkError

Action = Literal["label", "exclude", "skip", "undo"]
Purpose = Literal["train", "test"]
JOURNAL_FILE = "answers.jsonl"
MAX_LINE_BYTES = 16_384
"""Longest line; paths and class names are bounded by the server before."""


class UnwritableError(FieldmarkError):
    """The file cannot be written now, as on a full disk: nothing is wrong with the answer."""


@dataclass(frozen=True)
class Answer:
    """What a person said about an image.

    Attributes:
        path: of the image.
        action: `label`, `exclude` (leave the image out), `skip` (ask later) or `undo` (take back answer `undone`).
        label: the class, of action `label`.
        purpose: `test` for images of the random test set, which are kept out of training.
        author: who answered, as the page knows it.
        undone: number of the answer that is taken back, of action `undo`.
        batch: common to answers that were given at once, and are taken back at once; the key of their request if it had
            one, of an undo as well.
        time: seconds since the epoch.
        number: position in the journal, from 0; set by `Journal.append`.
    """

    path: str
    action: Action
    label: str | None = None
    purpose: Purpose = "train"
    author: str = ""
    undone: int | None = None
    batch: str = ""
    time: float = field(default_factory=time.time)
    number: int = -1


class Journal:
    """The journal in a folder.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / JOURNAL_FILE
        self.answers = list[Answer]()
        self._offset = 0  # bytes that have been read
        self.refresh()

    def append(self, *answers: Answer) -> list[Answer]:
        """Write answers; all of them are on the disk when this returns.

        Returns:
            the answers with their numbers.

        Raises:
            UnwritableError: the disk is full; none is recorded then.
            FieldmarkError: an answer is too long.
        """
        lines = b"".join(map(_to_line, answers))
        with self._opened() as descriptor:
            self._read_from(descriptor)
            end = b"\n" if self._has_torn_line(descriptor) else b""
            size = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, end + lines) < len(end + lines):
                    raise OSError(errno.ENOSPC, "the disk is full")
                os.fsync(descriptor)
            except OSError as error:
                os.ftruncate(descriptor, size)  # all of them or none
                raise UnwritableError(f"{self.file} cannot be written: {error.strerror}") from None
            self._read_from(descriptor)
        return self.answers[len(self.answers) - len(answers) :]

    def refresh(self) -> list[Answer]:
        """Read what other processes have appended; returns the new answers."""
        known = len(self.answers)
        if self.file.exists():
            descriptor = os.open(self.file, os.O_RDONLY)
            try:
                self._read_from(descriptor)
            finally:
                os.close(descriptor)
        return self.answers[known:]

    def current(self) -> dict[str, Answer]:
        """The answer that holds for each image: the last one; an image that was skipped keeps an earlier label."""
        current = dict[str, Answer]()
        for answer in self.standing():
            if answer.action != "skip" or current.get(answer.path, answer).action == "skip":
                current[answer.path] = answer
        return current

    def standing(self) -> list[Answer]:
        """The answers that were not taken back, in their order."""
        undone = {answer.undone for answer in self.answers if answer.action == "undo"}
        return [answer for answer in self.answers if answer.action != "undo" and answer.number not in undone]

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, for this writer alone."""
        with FileLock(f"{self.file}.lock"):
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def _read_from(self, descriptor: int) -> None:
        """Take in the whole lines behind what is known; the end of a line that was cut off by a kill is no answer."""
        size = os.fstat(descriptor).st_size
        content = os.pread(descriptor, size - self._offset, self._offset)
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            values = _parse(line)
            if values is not None:
                self.answers.append(Answer(**values, number=len(self.answers)))
        self._offset += len(whole)

    def _has_torn_line(self, descriptor: int) -> bool:
        return os.fstat(descriptor).st_size > self._offset


def _to_line(answer: Answer) -> bytes:
    values = {name: value for name, value in asdict(answer).items() if value not in (None, "") and name != "number"}
    line = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise FieldmarkError(f"an answer of {len(line):,} bytes is too long")
    return line


def _parse(line: bytes) -> dict[str, Any] | None:
    """The values of a line; None for one that was cut off."""
    try:
        values = json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None
    known = set(Answer.__dataclass_fields__) - {"number"}
    if not isinstance(values, dict) or not {"path", "action"} <= values.keys():
        return None
    return {name: value for name, value in values.items() if name in known}
