"""Predictions in a file read back as they were; a file that was cut off anywhere is continued to the same end."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fieldmark.core.errors import FieldmarkError
from fieldmark.inference import writers
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.prediction import Prediction, RankedClass
from fieldmark.inference.writers import CsvWriter, JsonLinesWriter, ParquetWriter, write_predictions

PREDICTIONS = [
    Prediction("a.jpg", "glass", 1 / 3, True, (RankedClass("glass", 0.5),), model="0123456789ab"),
    Prediction('b, "x"\n\r2.jpg', 'c"\r', 0.25, False),
    Prediction("长\udce9.jpg", error="truncated"),
    Prediction("d.jpg", "", 1.0, True),
]
FILES = {"csv": CsvWriter, "jsonl": JsonLinesWriter}


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
        return list(csv.DictReader(opened))


@given(
    labels=st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")), max_size=5),
    known=st.booleans(),
)
@example(labels=["a\rb", "\n", 'c"', "d,e", ""], known=True)
def test_csv_reads_back(labels: list[str], known: bool, tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("csv") / "answers.csv"
    predictions = [
        Prediction(f"{label}.jpg", label, 1 / (k + 3), known, model="0123456789ab") for k, label in enumerate(labels)
    ]
    predictions.append(Prediction('a, "b"\udce9.jpg', error="truncated"))
    assert list(write_predictions(predictions, CsvWriter(file))) == predictions
    rows = read(file)
    assert list(rows[0]) == ["path", "label", "confidence", "known", "model", "error"]
    for row, prediction in zip(rows, predictions, strict=True):
        assert row == {key: str(prediction.to_dict().get(key, "")) for key in row}
        assert prediction.error or float(row["confidence"]) == prediction.confidence


def test_lines_of_json_read_back(tmp_path: Path):
    assert list(write_predictions(PREDICTIONS, JsonLinesWriter(tmp_path / "answers.jsonl"))) == PREDICTIONS
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [Prediction.from_dict(json.loads(line)) for line in lines] == PREDICTIONS


def test_a_parquet_dataset_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(writers, "ROWS_PER_PART", 2)
    list(write_predictions(PREDICTIONS[:3], ParquetWriter(tmp_path / "answers")))
    assert sorted(file.name for file in (tmp_path / "answers").iterdir()) == [
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    again = ParquetWriter(tmp_path / "answers", resume=True)
    assert [again.has_prediction(prediction.path) for prediction in PREDICTIONS] == [True, True, False, False]
    list(write_predictions(PREDICTIONS[2:], again))
    found = pq.read_table(tmp_path / "answers").to_pylist()
    assert [row["path"] for row in found] == ["a.jpg", 'b, "x"\n\r2.jpg', "长\\udce9.jpg", "d.jpg"]
    assert [row["error"] for row in found] == [None, None, "truncated", None]
    assert [row["model"] for row in found] == ["0123456789ab", None, None, None]
    assert found[0] == PREDICTIONS[0].to_dict() | {"error": None}


def test_a_lost_part_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(writers, "ROWS_PER_PART", 1)
    list(write_predictions(PREDICTIONS, ParquetWriter(tmp_path / "answers")))
    (lost := tmp_path / "answers" / "part-000000.parquet").write_bytes(b"PAR1, torn")
    with pytest.raises(FieldmarkError, match=r"part-000000\.parquet is damaged .*: delete it"):
        ParquetWriter(tmp_path / "answers", resume=True)
    monkeypatch.setattr(writers, "_read_done_paths", lambda part: os.stat(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):  # a disk that does not answer is no reason to delete anything
        ParquetWriter(tmp_path / "answers", resume=True)
    monkeypatch.undo()
    monkeypatch.setattr(writers, "ROWS_PER_PART", 1)
    lost.unlink()
    again = ParquetWriter(tmp_path / "answers", resume=True)
    list(write_predictions([row for row in PREDICTIONS if not again.has_prediction(row.path)], again))
    assert sorted(pq.read_table(tmp_path / "answers")["path"].to_pylist()) == sorted(
        prediction.path.replace("\udce9", "\\udce9") for prediction in PREDICTIONS
    )


@pytest.mark.parametrize("kind", FILES)
def test_cut_off_anywhere_it_goes_on_to_the_same_rows(kind: str, tmp_path: Path):
    """The photo that could not be read is asked again, and its row moves to the end."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(write_predictions(PREDICTIONS, FILES[kind](whole)))
    content = whole.read_bytes()
    with whole.open("rb") as opened:
        ends = [end for _, _, end in FILES[kind]._scan_rows(opened)]
    rows = [content[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        writer = FILES[kind](cut, resume=True)
        left = [prediction for prediction in PREDICTIONS if not writer.has_prediction(prediction.path)]
        assert len(left) >= len(PREDICTIONS) - length // 10
        list(write_predictions(left, writer))
        last = rows.pop(-2) if length >= len(content) else b""
        assert cut.read_bytes() == b"".join(rows) + last, length


@pytest.mark.parametrize("make", [CsvWriter, JsonLinesWriter, ParquetWriter])
def test_no_file_is_replaced(make: Callable[..., Any], tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(FieldmarkError, match="another name"):
            make(tmp_path / "photo.jpg", resume)
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_other_tables_are_no_answers(tmp_path: Path):
    for kind, content in (("csv", "path,label\na,b\n"), ("jsonl", '{"name": 1}\n')):
        (file := tmp_path / kind).write_text(content)
        with pytest.raises(FieldmarkError, match="another name"):
            FILES[kind](file, resume=True)
        assert file.read_text() == content


def test_csv_of_a_class_with_a_comma(small_run: Path, small_photos: Path, tmp_path: Path):
    stream = Classifier(small_run).stream([small_photos / "cross, blue"])
    labels = [row.label for row in write_predictions(stream, CsvWriter(tmp_path / "answers.csv"))]
    assert [row["label"] for row in read(tmp_path / "answers.csv")] == labels
    assert "cross, blue" in labels


def test_the_command_goes_on(small_run: Path, small_photos: Path, tmp_path: Path, here):
    once, again = tmp_path / "once.csv", tmp_path / "again.csv"
    assert here("predict", small_run, small_photos, "--csv", once).code == 0
    lines = once.read_bytes().split(b"\r\n")
    again.write_bytes(b"\r\n".join(lines[:20]) + b"\r\n" + lines[20][:7])
    assert here("predict", small_run, small_photos, "--csv", again, "--resume").code == 0
    assert again.read_bytes() == once.read_bytes()
    assert here("predict", small_run, small_photos, "--csv", again, "--resume").code == 0
    assert again.read_bytes() == once.read_bytes()
    refusals = {
        ("--resume",): "--resume continues a file of predictions",
        ("--csv", "a", "--jsonl", "b"): "predictions are written to one file",
        ("--csv", "a", "--resume", "--heatmap", "c"): "--resume continues a file of predictions",
    }
    for options, message in refusals.items():
        assert message in here("predict", small_run, small_photos, *options).refusal
