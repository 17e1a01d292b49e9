"""benchmarks/suite.py: a killed suite goes on, and the table holds what belongs together. No network is trained."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PREDICT = """
import csv, os, pathlib, sys
tree, out = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(sys.argv[3], "a") as starts:
    print(os.getpid(), file=starts)
with open(out, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["split", "file", "predicted", "true_probability"])
    for image in sorted(tree.glob("*/*/*")):
        rows.writerow([image.parts[-3], image.name, "disc", 0.5])
"""
"""A contender that sees a disc in every image."""


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import suite

    monkeypatch.setattr(suite, "save_weights", lambda work: work / "lite0.safetensors")
    return suite


@pytest.fixture
def run(suite: ModuleType, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the suite with a fake opponent on a few images -> how many trainings were started."""
    starts = tmp_path / "starts"

    def make_command(contender, task, out, options) -> list[str]:
        return [sys.executable, "-c", PREDICT, str(task.tree), str(out), str(starts)]

    monkeypatch.setattr(suite, "make_command", make_command)

    def start(*words: str) -> int:
        starts.write_text("")
        given = ["--sets", str(small_photos), "--only", "plain", "timm", "--work", str(tmp_path / "work")]
        given += ["--rows", str(tmp_path / "rows.jsonl"), "--seeds", "2", "--opponent-seeds", "2", *words]
        options = suite.parse_arguments(given)
        options.work.mkdir(exist_ok=True)
        suite.run_all(options)
        return len(starts.read_text().split())

    return start


def rows_of(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_killed_suite_goes_on_where_it_stood(suite, run, tmp_path, monkeypatch, capsys):
    append = suite.append_row

    def die_at_the_third(file: Path, row: dict) -> None:
        if len(suite.read_rows(file)) == 2:
            raise KeyboardInterrupt
        append(file, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(suite, "append_row", die_at_the_third)
        run()
    assert len(rows_of(tmp_path)) == 2
    assert run() == 2 and run() == 0
    rows = rows_of(tmp_path)
    assert len({suite.row_key(row) for row in rows}) == len(rows) == 4
    assert [row["test"]["n"] for row in rows] == [rows[0]["test"]["n"]] * 4
    assert rows[0]["test"]["accuracy"] == pytest.approx(1 / 3) == rows[0]["test"]["balanced_accuracy"]
    assert rows[0]["split"] == rows[1]["split"] != rows[2]["split"]

    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(text[:-30], encoding="utf-8")  # as a full disk leaves it
    assert run() == 1 and run() == 0
    assert "a line that is no row" in capsys.readouterr().out
    assert suite.read_rows(tmp_path / "rows.jsonl")[-1] | {"seconds": 0, "GiB": 0, "load": 0} == rows[-1] | {
        "seconds": 0,
        "GiB": 0,
        "load": 0,
    }


def test_other_settings_and_other_code_are_run_again(suite, run, tmp_path, monkeypatch):
    from suite_table import select_rows

    assert run("--seeds", "1") == 2
    assert run("--seeds", "1", "--plain", "--seconds 5") == 1
    monkeypatch.setattr(suite, "code_of", lambda contender: "later")
    assert run("--seeds", "1") == 2
    kept, others = select_rows(rows_of(tmp_path))
    assert [(row["contender"], row["options"]) for row in kept if row["code"] == "later"] == [
        ("plain", "--seconds 600"),
        ("timm", ""),
    ]
    assert len(kept) == 3 and len(others) == 2
    assert "2 rows of earlier code" in suite.make_page_block(rows_of(tmp_path))


def test_docstrings_and_comments_are_no_other_code(suite):
    source = 'def f(x):\n    """One."""\n    return x\n'
    assert suite.strip_docstrings(source) == suite.strip_docstrings("def f(x):  # a word\n    return x")
    assert suite.strip_docstrings(source) != suite.strip_docstrings("def f(x):\n    return -x")


def make_row(name: str, data: str, seed: int, accuracy: float, **others) -> dict:
    figures = {"n": 100, "accuracy": accuracy, "balanced_accuracy": accuracy, "se": 0.02}
    row = {"set": data, "set_options": "", "contender": name, "options": "--epochs 0", "seed": seed, "code": "a"}
    row |= {"split": f"{data}{seed}", "commit": "abc", "date": "2026-11-29", "machine": "two cores"}
    row |= {"seconds": 10.0, "GiB": 1.5, "test": figures, "validation": figures, "chance_loss": 1.6}
    return row | others


def test_the_table_has_means_over_seeds_and_sets(suite, tmp_path):
    rows = [make_row("fieldmark", "flowers128", seed, share) for seed, share in enumerate((0.8, 0.9))]
    rows += [make_row("fieldmark", "trashnet", 0, 0.6), make_row("before", "trashnet", 0, 0.5, seconds=20.0)]
    page = tmp_path / "page.md"
    page.write_text(
        "Above.\n\n<!-- The table: python benchmarks/suite.py --table -->\nold\n<!-- The table ends. -->\nBelow.\n"
    )
    suite.write_page(page, rows)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Above.\n") and text.endswith("<!-- The table ends. -->\nBelow.\n") and "old" not in text
    assert "| fieldmark `--epochs 0` | 85.0 ± 7.1 (2) | 60.0 (1) | 72.5 |" in text
    assert "| before `--epochs 0` | - | 50.0 (1) | 50.0 (1 of 2 sets) |" in text
    assert "before takes 2.00 x the time of fieldmark (median of 1 pairs" in text
    suite.write_page(page, rows)
    assert page.read_text(encoding="utf-8") == text
    suite.write_page(page, [])
    assert "Not run yet." in page.read_text(encoding="utf-8")


def test_runs_that_learn_nothing_or_lose_to_their_probe_are_named(suite):
    def run(loss: float, accuracy: float) -> dict:
        losses = {1: 0.5, 2: loss, 4: 0.4}
        epochs = [{"phase": phase, "train_loss": value, "val_accuracy": 0.9} for phase, value in losses.items()]
        row = make_row("fieldmark", "trashnet", 0, accuracy)
        return row | {"epochs": epochs, "probe_validation_accuracy": 0.9}

    from suite_table import find_failures

    assert list(find_failures([run(0.4, 0.88)])) == []  # within one standard error of 3 points
    (at_chance,) = find_failures([run(1.6, 0.9)])
    (below,) = find_failures([run(0.4, 0.86)])
    assert "a training loss of 1.60" in at_chance and "86.0 % of the validation images" in below


def test_a_data_set_is_a_name_or_a_folder_with_options(suite, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    words = [f"{tmp_path / 'mine'} --group-by 'patient(\\d+)' --positive ill", "flowers128"]
    (mine,) = suite.find_sets(words, tmp_path, tmp_path, None)
    assert (mine.name, mine.group_by, mine.positive) == ("mine", r"patient(\d+)", "ill")
    assert "flowers128 is left out" in capsys.readouterr().out
