"""Answers -> a file, row by row: CSV, JSON lines or Parquet; what stands there already need not be asked again.

Rows of photos that could not be read are taken out where a file is gone on with: those photos are asked again, since a
disk or a network may have failed, and not the photo.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from fieldmark.core.errors import FieldmarkError

Answer = dict[str, Any]
COLUMNS: tuple[str, ...] = ("path", "label", "confidence", "known", "error")
Rows = Iterator[tuple[str, bool, int]]
"""Of each whole row in a file: the path, whether the photo was read, and where the row ends."""
PART = 10_000
"""Rows of a part of a Parquet dataset: so many photos are asked again at most after a kill."""


class Sheet(Protocol):
    """A file of answers, new or gone on with."""

    def has(self, path: str) -> bool:
        """Whether an answer to this photo stood in it when it was opened, and no reason why there is none."""
        ...

    def write(self, answer: Answer) -> None: ...

    def close(self) -> None: ...


def written(answers: Iterable[Answer], sheet: Sheet) -> Iterator[Answer]:
    """Hands the answers on, each once it is written; the sheet is closed behind the last, however that comes."""
    try:
        for answer in answers:
            sheet.write(answer)
            yield answer
    finally:
        sheet.close()


class Csv:
    """A row `path,label,confidence,known,error` an answer."""

    def __init__(self, file: Path, resume: bool = False) -> None:
        self.done = _again(file, resume, ",".join(COLUMNS).encode() + b"\r\n", self._rows)
        self.opened = file.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        self.writer = csv.DictWriter(self.opened, COLUMNS, extrasaction="ignore")
        if not self.opened.tell():
            self.writer.writeheader()

    def has(self, path: str) -> bool:
        return path in self.done

    def write(self, answer: Answer) -> None:
        self.writer.writerow(answer)

    def close(self) -> None:
        self.opened.close()

    @staticmethod
    def _rows(file: IO[bytes]) -> Rows:
        """The process may have been killed in the middle of one."""
        read = 0

        def lines() -> Iterator[str]:
            nonlocal read
            for line in file:
                read += len(line)
                yield line.decode("utf-8", "surrogateescape") if line.endswith(b"\n") else ""

        try:
            for k, row in enumerate(csv.reader(lines(), strict=True)):
                if len(row) == len(COLUMNS):
                    yield row[0] if k else "", not (k and row[-1]), read  # the first is the header
        except csv.Error:  # a quote that never ends: the row in which it was killed
            pass


class JsonLines:
    """A line of JSON an answer, all of it."""

    def __init__(self, file: Path, resume: bool = False) -> None:
        self.done = _again(file, resume, b'{"path": ', self._rows)
        self.opened = file.open("a", encoding="utf-8", newline="\n")

    def has(self, path: str) -> bool:
        return path in self.done

    def write(self, answer: Answer) -> None:
        line = json.dumps(answer, ensure_ascii=False)
        self.opened.write(line.encode("utf-8", "backslashreplace").decode() + "\n")

    def close(self) -> None:
        self.opened.close()

    @staticmethod
    def _rows(file: IO[bytes]) -> Rows:
        read = 0
        for line in file:
            read += len(line)
            if line.endswith(b"\n"):
                try:
                    answer = json.loads(line)
                    path, bad = str(answer["path"]), "error" in answer
                except (ValueError, KeyError, TypeError):
                    raise FieldmarkError(f"{file.name} holds other things than answers: give another name") from None
                yield path, not bad, read


class Parquet:
    """A dataset: a folder of parts of 10,000 rows, each of which appears whole."""

    def __init__(self, folder: Path, resume: bool = False) -> None:
        import pyarrow as pa

        if os.path.lexists(folder) and not (resume and folder.is_dir()):
            raise FieldmarkError(f"{folder} exists: give the answers another name, or --resume")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.parts, self.rows, self.done = folder, 0, list[Answer](), set[str]()
        names = {"path": pa.string(), "label": pa.string(), "confidence": pa.float64(), "known": pa.bool_()}
        one = pa.struct([("label", pa.string()), ("confidence", pa.float64())])
        self.schema = pa.schema([*names.items(), ("top", pa.list_(one)), ("error", pa.string())])
        for part in sorted(folder.glob("part-*.parquet")):
            if not (number := part.stem.removeprefix("part-")).isdecimal():
                continue
            try:
                self.done |= _answered(part)
            except (pa.ArrowException, OSError, KeyError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the disk; Arrow's own have no number
                    raise
                raise FieldmarkError(
                    f"{part} is damaged ({' '.join(str(error).split())[:200]}): delete it, and --resume asks again"
                ) from None
            self.parts = int(number) + 1  # behind the last, though one may be missing

    def has(self, path: str) -> bool:
        return _text(path) in self.done

    def write(self, answer: Answer) -> None:
        self.rows.append(answer)
        if len(self.rows) == PART:
            self._part()

    def close(self) -> None:
        if self.rows:
            self._part()

    def _part(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [row | {"path": _text(row["path"])} for row in self.rows]
        part = self.folder / f"part-{self.parts:06}.parquet"
        half = part.with_suffix(".half")
        pq.write_table(pa.Table.from_pylist(rows, self.schema), half)
        half.replace(part)
        self.parts, self.rows = self.parts + 1, []


def _again(file: Path, resume: bool, first: bytes, rows: Callable[[IO[bytes]], Rows]) -> set[str]:
    """The paths answered in an earlier file, whose torn end is cut off; none where there is no file yet.

    Such a file begins with `first`, or with as much of it as was written; no other is touched.
    """
    if not os.path.lexists(file):
        return set()
    if not resume or not file.is_file():  # a slip in the order of words must not cost a photo
        raise FieldmarkError(f"{file} exists: give the answers another name, or go on with --resume")
    done, kept = set[str](), [0, 0]  # stretches of the file: where one begins, where it ends, and so on
    with file.open("rb") as opened:
        if not first.startswith(opened.read(len(first))):
            raise FieldmarkError(f"{file} holds other things than such answers: give another name")
        opened.seek(0)
        ended = 0
        for path, read, ends in rows(opened):
            if read:
                done.add(path)
                kept += [ended, ended] if ended != kept[-1] else []
                kept[-1] = ends
            ended = ends
        if len(kept) == 2:
            os.truncate(file, kept[-1])
        else:
            _keep(opened, kept, file.resolve())
    return done


def _keep(opened: IO[bytes], stretches: list[int], file: Path) -> None:
    """Put these stretches in the place of the whole file, in one move."""
    half = file.with_name(f"{file.name}.half")
    with half.open("wb") as written:
        for at, ends in zip(stretches[::2], stretches[1::2], strict=True):
            opened.seek(at)
            for first in range(at, ends, 1 << 20):
                written.write(opened.read(min(1 << 20, ends - first)))
    shutil.copymode(file, half)
    half.replace(file)


def _answered(part: Path) -> set[str]:
    """The paths in a part of a dataset, which is written anew without the photos that could not be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(part, columns=["path", "error"]).to_pylist()
    read = [k for k, row in enumerate(rows) if row["error"] is None]
    if len(read) < len(rows):
        half = part.with_suffix(".half")
        pq.write_table(pq.read_table(part).take(pa.array(read, pa.int64())), half)
        half.replace(part)
    return {rows[k]["path"] for k in read}


def _text(path: str) -> str:
    """A name as Parquet holds it: bytes of no text, which Python holds as lone surrogates, stand as `\\udcXX`."""
    return path.encode("utf-8", "backslashreplace").decode()
