"""Two folders of results -> what differs in them, file by file and value by value; for same_results.py."""

import csv
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import safetensors

TIMED = re.compile(r"seconds|_s$|^(environment|date|time|ms|speed)$")
"""Keys of JSON and columns of CSV that hold times and facts about the machine."""
WORDS = {"warnings", "error", "reason", "detail", "answers", "text", "summary", "description", "title", "msg"}
"""Keys whose values are texts for people."""
MASKED = re.compile(
    r"(\d{4}-\d\d-\d\d[T ])?\d\d:\d\d:\d\d([+]\d{4})?"
    r"|([\d.,]+ ?(min|分) ?)?[\d.,]+ ?((s|sec|ms|min|x|photos/s|images/s)\b|秒|倍)"
    r"|\"ms\": [\d.]+|duration = [\d.]+|[\d.]+ \+/-|process \[\d+\]"
)
"""Times in such texts."""
PICTURE = re.compile(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
UNREAD = re.compile(r"tfevents|\.journal$|\.lock$")
"""Of these files only the names are compared: they hold times, and what they hold stands elsewhere as well."""
SPEEDS = "compare.html"
"""A page of speeds: its drawings and numbers are left out, which stand in compare.json."""
NUMPY = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64, "I32": np.int32}
"""Types in safetensors; of others the bytes are compared."""
SIZES = {"bytes", "bytes_32_bits", "megabytes"}
"""Keys that hold sizes of files. ONNX files name the modules and lines they were made by: 2 % are no difference."""
Values = dict[str, Any]
Hidden = dict[str, str]


class Text(str):
    """A text for people, which may be reworded."""


class Size(float):
    """Of a file, about."""


@dataclass(frozen=True)
class Difference:
    """The first of the values that differ in two files, or a text with another wording."""

    where: str
    before: str
    after: str
    reworded: bool = False
    more: int = 0
    """So many other values of these files, or lines of this text, differ too."""


# ---- file -> values


def values(found: Any, path: str = "", words: bool = False) -> Iterator[tuple[str, Any]]:
    """JSON -> (path, value) of each value, without times; keys of objects and lengths of lists count as values."""
    if isinstance(found, dict):
        kept = {key: value for key, value in found.items() if not TIMED.search(key)}
        yield f"{path} (keys)", sorted(kept)
        for key, value in kept.items():
            size = key in SIZES and value
            yield from values(Size(value) if size else value, f"{path}.{key}", words or key in WORDS)
    elif isinstance(found, list):
        yield f"{path} (length)", len(found)
        for k, value in enumerate(found):
            yield from values(value, f"{path}[{k}]", words)
    else:
        yield path, Text(found) if words and isinstance(found, str) else found


def of_json(content: bytes) -> Values:
    return dict(values(json.loads(content or b"null")))


def of_lines(content: bytes) -> Values:
    """JSON lines."""
    return dict(values([json.loads(line) for line in content.splitlines()]))


def of_csv(content: bytes) -> Values:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    return dict(values({"columns": list(rows.fieldnames or []), "rows": list(rows)}))


def of_settings(content: bytes) -> Values:
    """YAML, line by line; comments are texts for people."""
    return dict(values([line for line in content.decode().splitlines() if line and not line.startswith("#")]))


def of_text(content: bytes) -> Values:
    return {"text": Text(content.decode())}


def of_page(content: bytes) -> Values:
    """HTML: pictures to the bit, all else as text."""
    page = content.decode()
    pictures = [hashlib.sha256(one.encode()).hexdigest() for one in PICTURE.findall(page)]
    return dict(values({"pictures": pictures})) | {"text": Text(PICTURE.sub("PICTURE", page))}


def of_drawing(content: bytes) -> Values:
    """SVG: numbers as they are, all else as text."""
    drawing = content.decode()
    return dict(values(NUMBER.findall(drawing))) | {"text": Text(NUMBER.sub("N", drawing))}


def of_arrays(content: bytes) -> Values:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return dict(found)


def of_tensors(content: bytes) -> Values:
    """Safetensors: arrays, and JSON in the metadata."""
    size = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    found = dict(values({name: json.loads(value) for name, value in told.items() if value.startswith(("{", "["))}))
    for name, tensor in safetensors.deserialize(content):  # type: ignore[attr-defined]  # written in Rust
        found[f"{name} (type)"] = f"{tensor['dtype']} {tensor['shape']}"
        found[name] = np.frombuffer(tensor["data"], NUMPY.get(tensor["dtype"], np.uint8))
    return found


def of_onnx(content: bytes) -> Values:
    """What the file carries, and its answers to 16 photos of noise, one by one in one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["fieldmark"])
    found, outputs = dict(values(told)), [output.name for output in session.get_outputs()]
    found |= {
        f"{one.name} (type)": f"{one.type} {one.shape}" for one in (*session.get_inputs(), *session.get_outputs())
    }
    size = told["preprocessing"]["size"]
    photos = np.random.default_rng(0).integers(0, 256, (16, size, size, 3), np.uint8)
    answers = [session.run(outputs, {"photos": photo[None]}) for photo in photos]
    return found | {name: np.stack(rows) for name, rows in zip(outputs, zip(*answers, strict=True), strict=True)}


def of_bytes(content: bytes) -> Values:
    return {"sha256": hashlib.sha256(content).hexdigest()}


TEXTS: dict[str, Callable[[bytes], Values]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".csv": of_csv,
    ".yaml": of_settings,
    ".txt": of_text,
    ".md": of_text,
    ".html": of_page,
    ".svg": of_drawing,
    ".xml": of_text,  # OpenVINO's, with names that it counts; the weights beside it are compared to the bit
}
OTHERS = {".npz": of_arrays, ".safetensors": of_tensors, ".onnx": of_onnx}


def read(file: Path, hidden: Hidden) -> Values:
    """All values of a file; `hidden` are folders whose names the two may differ in."""
    content = file.read_bytes()
    if file.suffix in TEXTS:
        for folder, name in hidden.items():
            content = content.replace(folder.encode(), name.encode())
    if file.name == SPEEDS:
        content = NUMBER.sub("N", re.sub("<svg.*?</svg>", "", content.decode(), flags=re.DOTALL)).encode()
    try:
        return (TEXTS | OTHERS).get(file.suffix, of_bytes)(content)
    except Exception as error:  # a damaged file is a result as well
        return {"damaged": f"{type(error).__name__}: {error}"}


# ---- values -> differences


def equal(before: Any, after: Any) -> bool:
    """Whether two values are the same: arrays to the bit, texts but for times in them, sizes about."""
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        return (before.dtype, before.shape, before.tobytes()) == (after.dtype, after.shape, after.tobytes())
    if isinstance(before, Text) and isinstance(after, Text):
        return MASKED.sub("TIME", before) == MASKED.sub("TIME", after)
    if isinstance(before, Size) and isinstance(after, Size):
        return abs(before - after) <= 0.02 * max(before, after)
    return type(before) is type(after) and bool(before == after)


def told(before: Any, after: Any) -> tuple[str, str]:
    """Both values for people: of arrays the first element that differs, of texts the first line."""
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray) and before.shape == after.shape:
        other = np.flatnonzero(before.reshape(-1) != after.reshape(-1))
        at = np.unravel_index(other[0] if len(other) else 0, before.shape)
        count, place = f"{len(other)} of {before.size} elements differ", [int(k) for k in at]
        return f"{before[at]!r} at {place}; {count}", repr(after[at])
    if isinstance(before, str) and isinstance(after, str):
        lines = itertools.zip_longest(before.splitlines(), after.splitlines(), fillvalue="")
        before, after = next((pair for pair in lines if not equal(*map(Text, pair))), (before, after))
        first = max(0, next((k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0) - 60)
        return tuple(repr(text[first : first + 160]) for text in (before, after))  # type: ignore[return-value]
    return tuple(repr(value)[:160] for value in (before, after))  # type: ignore[return-value]


def compared(name: str, before: Values, after: Values) -> Iterator[Difference]:
    """The first value of two files that differs, and every text that is worded otherwise."""
    absent = Text("(absent)")
    pairs = {path: (before.get(path, absent), after.get(path, absent)) for path in before | after}
    other = {path: pair for path, pair in pairs.items() if not equal(*pair)}
    worded = {path: pair for path, pair in other.items() if all(isinstance(value, Text) for value in pair)}
    hard = [path for path in other if path not in worded]
    if hard:
        yield Difference(f"{name}: {hard[0]}", *told(*pairs[hard[0]]), more=len(hard) - 1)
    for path, pair in worded.items():
        old, new = (NUMBER.findall(MASKED.sub("", text)) for text in pair)
        numbers = "" if old == new else " (other numbers too)"
        lines = itertools.zip_longest(*(text.splitlines() for text in pair), fillvalue="")
        more = sum(not equal(Text(old), Text(new)) for old, new in lines) - 1
        yield Difference(f"{name}: {path}{numbers}", *told(*pair), reworded=True, more=more)


def names(folder: Path) -> dict[str, Path]:
    """The files of a folder, by their names without times."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {re.sub(r"tfevents\.[^/]*", "tfevents", str(file.relative_to(folder))): file for file in files}


def differences(before: Path, after: Path, hidden: tuple[Hidden, Hidden]) -> tuple[int, list[Difference]]:
    """Two folders of results. -> how many values were compared, and what differs"""
    ours, theirs, count, found = names(before), names(after), 0, list[Difference]()
    for name in sorted(ours | theirs):
        if name not in ours or name not in theirs:
            here, there = ("a file" if name in files else "no file" for files in (ours, theirs))
            found.append(Difference(name, here, there))
        elif not UNREAD.search(name):
            pair = [read(file, folders) for file, folders in zip((ours[name], theirs[name]), hidden, strict=True)]
            count += len(pair[0])
            found += compared(name, *pair)
    return count, found


# ---- differences -> table


@dataclass(frozen=True)
class Row:
    """A line of the table: one command on one folder of photos."""

    item: str
    compared: int
    found: list[Difference]

    @property
    def verdict(self) -> str:
        hard = any(not one.reworded for one in self.found)
        return "DIFFERENT" if hard else "same, reworded" if self.found else "same"


def rows(results: tuple[Path, Path], checkouts: tuple[Path, Path]) -> Iterator[Row]:
    """Two folders with the results of the same commands, compared command by command."""
    hidden = [{str(at): "HERE", str(code): "CHECKOUT"} for at, code in zip(results, checkouts, strict=True)]
    for name in json.loads((results[0] / "finished.json").read_text())["seconds"]:
        found = differences(results[0] / name, results[1] / name, (hidden[0], hidden[1]))
        yield Row(f"{results[0].name} {name}", *found)


def show(table: list[Row], shown: int = 5) -> None:
    """The table, and below it what differs: each wording once, of each command so many files."""
    for row in table:
        print(f"{row.item:40} {row.compared:8,} values  {row.verdict}")
    again = dict[tuple[str, ...], list[tuple[str, Difference]]]()
    for item, one in ((row.item, one) for row in table for one in row.found if one.reworded):
        key = tuple(MASKED.sub("TIME", text).replace("warning: ", "").strip("'- ") for text in (one.before, one.after))
        again.setdefault(key, []).append((item, one))
    print(f"\nReworded: {len(again) or 'nothing'}")
    for (item, one), *others in again.values():
        tell(item, one, f"; so in {len(others)} other places" if others else "")
    print(f"\nDIFFERENT: {sum(not one.reworded for row in table for one in row.found) or 'nothing'}")
    for row in table:
        hard = [one for one in row.found if not one.reworded]
        for one in hard[:shown]:
            tell(row.item, one)
        if len(hard) > shown:
            print(f"  {row.item}: {len(hard) - shown} other files")


def tell(item: str, one: Difference, besides: str = "") -> None:
    more = f" (and {one.more} more)" if one.more else ""
    print(f"  {item}, {one.where}{more}{besides}\n    before: {one.before}\n    after:  {one.after}")
