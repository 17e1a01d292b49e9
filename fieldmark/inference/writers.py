"""Predictions -> CSV, JSON lines or Parquet, written row by row; resuming skips images that are already predicted.

Resuming removes the rows of images that could not be read, and predicts these images again: the cause may have been a
disk or a network.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.io import atomic_path
from fieldmark.core.text import escape_surrogates, one_line
from fieldmark.inference.prediction import Prediction

COLUMNS: tuple[str, ...] = ("path", "label", "confidence", "known", "model", "error")
"""`error` stays the last column, and the first four stay where they are, for scripts that count columns."""
ScannedRows = Iterator[tuple[str, bool, int]]
"""For each complete row: the path of the image, whether it was read, and where the row ends, in bytes."""
ROWS_PER_PART = 10_000
"""Rows of a part of a Parquet dataset: at most as many images are predicted again after a crash."""


class PredictionWriter(Protocol):
    """A file of predictions, new or resumed."""

    def has_prediction(self, path: str) -> bool:
        """Whether the file held a prediction for this image, without an error, when it was opened."""
        ...

    def write(self, prediction: Prediction) -> None: ...

    def close(self) -> None: ...


def write_predictions(predictions: Iterable[Prediction], writer: PredictionWriter) -> Iterator[Prediction]:
    """Write each prediction, then yield it; the writer is closed at the end, also after an error."""
    try:
        for prediction in predictions:
            writer.write(prediction)
            yield prediction
    finally:
        writer.close()


class CsvWriter:
    """CSV with a row `path,label,confidence,known,model,error` for each prediction.

    Args:
        file: the file; a new one, unless `resume`.
        resume: continue the file if it exists.

    Raises:
        FieldmarkError: the file exists, or is not a predictions file.
    """

    def __init__(self, file: Path, resume: bool = False) -> None:
        self.done_paths = _resume_file(file, resume, ",".join(COLUMNS).encode() + b"\r\n", self._scan_rows)
        self.stream = file.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        self.writer = csv.DictWriter(self.stream, COLUMNS, extrasaction="ignore")
        if not self.stream.tell():
            self.writer.writeheader()

    def has_prediction(self, path: str) -> bool:
        return path in self.done_paths

    def write(self, prediction: Prediction) -> None:
        self.writer.writerow(prediction.to_dict())

    def close(self) -> None:
        self.stream.close()

    @staticmethod
    def _scan_rows(file: IO[bytes]) -> ScannedRows:
        """The last row may be incomplete, if the process was killed."""
        offset = 0

        def lines() -> Iterator[str]:
            nonlocal offset
            for line in file:
                offset += len(line)
                yield line.decode("utf-8", "surrogateescape") if line.endswith(b"\n") else ""

        try:
            for k, row in enumerate(csv.reader(lines(), strict=True)):
                if len(row) == len(COLUMNS):
                    yield row[0] if k else "", not (k and row[-1]), offset  # the first is the header
        except csv.Error:  # an open quote: the incomplete row
            pass


class JsonLinesWriter:
    """A line of JSON for each prediction, as `Prediction.to_dict`; arguments and errors as `CsvWriter`."""

    def __init__(self, file: Path, resume: bool = False) -> None:
        self.done_paths = _resume_file(file, resume, b'{"path": ', self._scan_rows)
        self.stream = file.open("a", encoding="utf-8", newline="\n")

    def has_prediction(self, path: str) -> bool:
        return path in self.done_paths

    def write(self, prediction: Prediction) -> None:
        self.stream.write(escape_surrogates(json.dumps(prediction.to_dict(), ensure_ascii=False)) + "\n")

    def close(self) -> None:
        self.stream.close()

    @staticmethod
    def _scan_rows(file: IO[bytes]) -> ScannedRows:
        offset = 0
        for line in file:
            offset += len(line)
            if line.endswith(b"\n"):
                try:
                    prediction = json.loads(line)
                    path, has_error = str(prediction["path"]), "error" in prediction
                except (ValueError, KeyError, TypeError):
                    raise FieldmarkError(f"{file.name} is not a predictions file: choose another name") from None
                yield path, not has_error, offset


class ParquetWriter:
    """A Parquet dataset: a folder of parts of `ROWS_PER_PART` rows, each written atomically; errors as `CsvWriter`."""

    def __init__(self, folder: Path, resume: bool = False) -> None:
        import pyarrow as pa

        if os.path.lexists(folder) and not (resume and folder.is_dir()):
            raise FieldmarkError(f"{folder} exists: choose another name, or pass --resume")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.next_part, self.buffer, self.done_paths = folder, 0, list[Prediction](), set[str]()
        fields = {"path": pa.string(), "label": pa.string(), "confidence": pa.float64(), "known": pa.bool_()}
        top_type = pa.struct([("label", pa.string()), ("confidence", pa.float64())])
        texts = [("model", pa.string()), ("error", pa.string())]
        self.schema = pa.schema([*fields.items(), ("top", pa.list_(top_type)), *texts])
        for part in sorted(folder.glob("part-*.parquet")):
            if not (number := part.stem.removeprefix("part-")).isdecimal():
                continue
            try:
                self.done_paths |= _read_done_paths(part)
            except (pa.ArrowException, OSError, KeyError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # from the disk; Arrow's own have no errno
                    raise
                raise FieldmarkError(
                    f"{part} is damaged ({one_line(error)}): delete it, and --resume predicts these images again"
                ) from None
            self.next_part = int(number) + 1  # after the last, though parts may be missing

    def has_prediction(self, path: str) -> bool:
        return escape_surrogates(path) in self.done_paths

    def write(self, prediction: Prediction) -> None:
        self.buffer.append(prediction)
        if len(self.buffer) == ROWS_PER_PART:
            self._write_part()

    def close(self) -> None:
        if self.buffer:
            self._write_part()

    def _write_part(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [row.to_dict() | {"path": escape_surrogates(row.path)} for row in self.buffer]
        with atomic_path(self.folder / f"part-{self.next_part:06}.parquet") as partial:
            pq.write_table(pa.Table.from_pylist(rows, self.schema), partial)
        self.next_part, self.buffer = self.next_part + 1, []


def _resume_file(file: Path, resume: bool, header: bytes, scan_rows: Callable[[IO[bytes]], ScannedRows]) -> set[str]:
    """The paths of the images predicted in an existing file, without errors; empty without a file.

    The file is cut to the complete rows of these images. It must begin with `header`, or with a part of it if it was
    interrupted there; other files are left unchanged.
    """
    if not os.path.lexists(file):
        return set()
    if not resume or not file.is_file():  # mistaken arguments must not overwrite an image
        raise FieldmarkError(f"{file} exists: choose another name, or pass --resume")
    done_paths, ranges = set[str](), [0, 0]  # start and end of each range of the file to keep, in bytes
    with file.open("rb") as stream:
        if not header.startswith(stream.read(len(header))):
            raise FieldmarkError(f"{file} is not a predictions file of this format: choose another name")
        stream.seek(0)
        previous_end = 0
        for path, was_read, end in scan_rows(stream):
            if was_read:
                done_paths.add(path)
                ranges += [previous_end, previous_end] if previous_end != ranges[-1] else []
                ranges[-1] = end
            previous_end = end
        if len(ranges) == 2:
            os.truncate(file, ranges[-1])
        else:
            _keep_ranges(stream, ranges, file.resolve())
    return done_paths


def _keep_ranges(source: IO[bytes], ranges: list[int], file: Path) -> None:
    """Replace the file by these ranges of it, atomically."""
    with atomic_path(file) as partial:
        with partial.open("wb") as target:
            for start, end in zip(ranges[::2], ranges[1::2], strict=True):
                source.seek(start)
                for offset in range(start, end, 1 << 20):
                    target.write(source.read(min(1 << 20, end - offset)))
        shutil.copymode(file, partial)


def _read_done_paths(part: Path) -> set[str]:
    """The paths in a part of a dataset; rows of images that could not be read are removed from it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(part, columns=["path", "error"]).to_pylist()
    readable = [k for k, row in enumerate(rows) if row["error"] is None]
    if len(readable) < len(rows):
        with atomic_path(part) as partial:
            pq.write_table(pq.read_table(part).take(pa.array(readable, pa.int64())), partial)
    return {rows[k]["path"] for k in readable}
