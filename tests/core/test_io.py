"""JSON and CSV that everybody can read, whatever the names."""

import contextlib
import csv
import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fieldmark.core import io

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
