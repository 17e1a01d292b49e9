"""JSON and CSV that everybody can read, whatever the names."""

import contextlib
import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.core import io
from fieldmark.core.errors import FieldmarkError

NAMES = st.text(st.characters(exclude_categories=()), max_size=8).filter(
    lambda name: not any("\ud800" <= c <= "\udbff" for c in name)
)


@given(st.dictionaries(NAMES, st.lists(st.integers() | NAMES)))
def test_json_comes_back_and_is_utf8(found):
    assert json.loads(io.to_json(found).encode("utf-8")) == found


def test_json_knows_no_nan():
    assert json.loads(io.to_json([math.nan, math.inf, {"a": (1.5, math.nan)}])) == [None, None, {"a": [1.5, None]}]


def test_a_file_is_whole_or_old(tmp_path: Path, monkeypatch):
    file = tmp_path / "found.json"
    io.write_json(file, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with contextlib.suppress(OSError):
        io.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def test_a_table_keeps_every_name(tmp_path: Path):
    names = ["a,b", 'say "x"', "new\nline", "re\rturn", "鸟", "caf\udce9"]
    io.write_csv(tmp_path / "t.csv", [{"path": name, "n": k} for k, name in enumerate(names)], ["path", "n"])
    with (tmp_path / "t.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), io.atomic_path(file) as partial:
        partial.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    with io.atomic_path(file, sync=True) as partial:
        partial.write_bytes(b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_json_file_is_one_line(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"test": ')
    with pytest.raises(FieldmarkError, match=r"metrics\.json is damaged"):
        io.read_json(tmp_path / "metrics.json")


def test_a_new_folder_is_asked_for(tmp_path: Path):
    io.require_new(tmp_path / "run")
    with pytest.raises(FieldmarkError, match=r"exists: give another --shards$"):
        io.require_new(tmp_path, "--shards")
    with pytest.raises(FieldmarkError, match="or --resume to continue it"):
        io.require_new(tmp_path, can_resume=True)
