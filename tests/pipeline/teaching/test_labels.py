"""Labels follow from the journal alone, and those that contradict each other are found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.pipeline.teaching.journal import Answer, Journal
from fieldmark.pipeline.teaching.labels import SessionLabels

ROWS = {f"{row}.jpg": row for row in range(6)}
IS_TEST = np.arange(6) >= 4
ACTIONS = st.tuples(st.sampled_from(["label", "label", "exclude", "skip", "undo"]), st.integers(0, 5), st.booleans())


def labels_of(folder: Path, *answers: Answer, given: dict[int, str] | None = None) -> SessionLabels:
    (folder / "answers.jsonl").unlink(missing_ok=True)
    journal = Journal(folder)
    journal.append(*answers)
    return SessionLabels.from_journal(journal, ROWS, given or {}, IS_TEST)


@settings(max_examples=40)
@given(st.lists(ACTIONS, max_size=25))
def test_each_image_has_one_state(tmp_path: Path, actions: list[tuple[str, int, bool]]):
    """Whatever is answered: as a table that is kept by hand would have it."""
    answers, standing = list[Answer](), list[Answer]()
    for action, row, is_cat in actions:
        if action == "undo":
            if standing:
                last = standing.pop()
                answers.append(Answer(last.path, "undo", undone=answers.index(last)))
        else:
            label = ("cat" if is_cat else "dog") if action == "label" else None
            answers.append(Answer(f"{row}.jpg", action, label, time=len(answers)))  # type: ignore[arg-type]
            standing.append(answers[-1])
    given = {0: "cat", 4: "dog"}
    labels = labels_of(tmp_path, *answers, given=given)
    state = {row: ("label", label) for row, label in given.items()}
    for answer in standing:
        row = ROWS[answer.path]
        if answer.action != "skip" or row not in state:
            state[row] = (answer.action, answer.label or "")
    for row in range(6):
        action, label = state.get(row, ("none", ""))
        assert labels.train.get(row) == (label if action == "label" and row < 4 else None)
        assert labels.test.get(row) == (label if action == "label" and row >= 4 else None)
        assert (row in labels.excluded, row in labels.skipped) == (action == "exclude", action == "skip")
        assert (row in labels) == (action != "none")
    assert labels.answered == {ROWS[answer.path] for answer in standing}


def test_labels_come_in_the_order_in_which_they_were_given(tmp_path: Path):
    names = [Answer(f"{row}.jpg", "label", "cat") for row in (3, 1, 0, 3)]
    assert list(labels_of(tmp_path, *names).train) == [1, 0, 3]
    assert list(labels_of(tmp_path, *names, given={2: "dog"}).train) == [2, 1, 0, 3]


def test_skipped_images_come_in_turn(tmp_path: Path):
    skips = [Answer(f"{row}.jpg", "skip") for row in (3, 1, 5, 3)]
    assert list(labels_of(tmp_path, *skips).skipped) == [1, 5, 3]


def test_a_check_is_an_answer_for_an_image_that_has_a_label(tmp_path: Path):
    cat, dog, skip = Answer("1.jpg", "label", "cat"), Answer("1.jpg", "label", "dog"), Answer("1.jpg", "skip")
    assert labels_of(tmp_path, cat).checks[1] == 0
    assert labels_of(tmp_path, skip, cat).checks[1] == 0
    assert labels_of(tmp_path, cat, dog).checks[1] == 1
    assert labels_of(tmp_path, cat, Answer("1.jpg", "undo", undone=0), dog).checks[1] == 0
    assert labels_of(tmp_path, skip, given={1: "cat"}).checks[1] == 1


def test_answers_for_images_that_have_gone_do_no_harm(tmp_path: Path):
    labels = labels_of(tmp_path, Answer("gone.jpg", "label", "cat"), Answer("1.jpg", "label", "dog"))
    assert (labels.train, labels.answered) == ({1: "dog"}, {1})


@pytest.mark.parametrize("n_alike", [2, 4])
def test_near_duplicates_with_different_labels_contradict_each_other(n_alike: int):
    labels = SessionLabels(train=dict.fromkeys(range(4), "cat"))
    groups = np.maximum(np.arange(6), n_alike - 1)
    assert not list(labels.contradictions(groups))
    labels.train[0] = "dog"
    found = dict(labels.contradictions(groups))
    assert found == {0: list(range(1, n_alike))} | {row: [0] for row in range(1, n_alike)}
