"""No answer is lost: to a kill, to two writers, to a line that was cut off."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline.teaching.journal import JOURNAL_FILE, Answer, Journal

WRITER = """
import sys
from pathlib import Path
from fieldmark.pipeline.teaching.journal import Answer, Journal
journal = Journal(Path(sys.argv[1]))
for k in range(int(sys.argv[3])):
    journal.append(Answer(f"{sys.argv[2]}-{k}.jpg", "label", "cat", author=sys.argv[2]))
    print(k, flush=True)
"""


def start_writer(folder: Path, author: str, n: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, str(folder), author, str(n)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_kill_loses_no_answer_that_was_acknowledged(tmp_path: Path):
    for attempt in range(3):
        writer = start_writer(tmp_path / str(attempt), "a", 200)
        assert writer.stdout
        for _ in range(random.Random(attempt).randrange(5, 60)):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last = max([last, *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        journal = Journal(tmp_path / str(attempt))
        assert [answer.path for answer in journal.answers[: last + 1]] == [f"a-{k}.jpg" for k in range(last + 1)]
        assert journal.append(Answer("after.jpg", "label", "dog"))[0].number == len(journal.answers) - 1


def test_two_writers_lose_nothing_of_each_other(tmp_path: Path):
    writers = [start_writer(tmp_path, author, 30) for author in "ab"]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    answers = Journal(tmp_path).answers
    assert [answer.number for answer in answers] == list(range(60))
    for author in "ab":
        assert [one.path for one in answers if one.author == author] == [f"{author}-{k}.jpg" for k in range(30)]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_no_answer(tmp_path: Path, cut: int):
    journal = Journal(tmp_path)
    for name in ("1.jpg", "2.jpg"):
        journal.append(Answer(name, "label", "cat"))
    file = tmp_path / JOURNAL_FILE
    file.write_bytes(file.read_bytes()[:-cut])
    again = Journal(tmp_path)
    assert [answer.path for answer in again.answers] == ["1.jpg"]
    again.append(Answer("3.jpg", "label", "dog"))
    assert [answer.path for answer in Journal(tmp_path).answers][-1] == "3.jpg"


def test_the_last_answer_holds_and_undo_takes_back_one(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.append(Answer("1.jpg", "label", "cat"))
    (second,) = journal.append(Answer("1.jpg", "label", "dog"))
    assert journal.current()["1.jpg"].label == "dog"
    journal.append(Answer("1.jpg", "undo", undone=second.number))
    assert journal.current()["1.jpg"].label == "cat"
    assert Journal(tmp_path).current() == journal.current()


def test_names_of_any_kind_come_back(tmp_path: Path):
    names = ["鸟/1.jpg", "a\nb.jpg", os.fsdecode(b"\xff.jpg"), '"quoted".jpg']
    journal = Journal(tmp_path)
    for name in names:
        journal.append(Answer(name, "label", "鹰"))
    assert [answer.path for answer in Journal(tmp_path).answers] == names


def test_an_answer_that_is_too_long_is_refused(tmp_path: Path):
    with pytest.raises(FieldmarkError, match="too long"):
        Journal(tmp_path).append(Answer("x" * 20_000, "label", "cat"))
    assert not Journal(tmp_path).answers


def test_another_window_sees_the_answers(tmp_path: Path):
    one, other = Journal(tmp_path), Journal(tmp_path)
    one.append(Answer("1.jpg", "label", "cat"))
    assert [answer.path for answer in other.refresh()] == ["1.jpg"]
    assert other.append(Answer("2.jpg", "label", "cat"))[0].number == 1


def test_answers_that_are_written_at_once_come_back_with_their_numbers(tmp_path: Path):
    journal = Journal(tmp_path)
    assert journal.append() == []
    for size in (3, 1, 2):
        before = len(journal.answers)
        written = journal.append(*(Answer(f"{k}.jpg", "label", "cat") for k in range(size)))
        assert [answer.number for answer in written] == list(range(before, before + size))
        assert journal.append() == []
    assert Journal(tmp_path).answers == journal.answers


def test_skipping_takes_no_label_away(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.append(Answer("1.jpg", "skip"), Answer("2.jpg", "label", "cat"), Answer("2.jpg", "skip"))
    journal.append(Answer("1.jpg", "skip"))
    assert {path: (answer.action, answer.number) for path, answer in journal.current().items()} == {
        "1.jpg": ("skip", 3),
        "2.jpg": ("label", 1),
    }
