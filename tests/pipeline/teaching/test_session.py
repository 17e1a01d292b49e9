"""A session asks each image once, keeps test images apart, loses no answer, and is the same when it is opened again."""

import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from taught import Pool, clusters, name, open_taught, teach

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline.teaching import session as sessions
from fieldmark.pipeline.teaching.journal import Answer, Journal
from fieldmark.pipeline.teaching.label_check import MIN_LABELS
from fieldmark.pipeline.teaching.learned import LabelledRows
from fieldmark.pipeline.teaching.session import TeachingSession
from fieldmark.pipeline.teaching.store import READ, UNREADABLE, WAITING


def make(folder: Path, n: int = 100, **words: object) -> tuple[TeachingSession, np.ndarray]:
    features, truth = clusters(n)
    return open_taught(folder, Pool(features), **words), truth  # type: ignore[arg-type]


@pytest.fixture
def learned_from(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The rows of each classifier that is solved."""
    found, learn = list[set[int]](), sessions.learn

    def spy(features: np.ndarray, groups: np.ndarray, train: LabelledRows, *rest: object) -> object:
        found.append(set(map(int, train.rows)))
        return learn(features, groups, train, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "learn", spy)
    return found


def state(session: TeachingSession) -> tuple[object, ...]:
    """What a session asks and predicts."""
    questions = session.next(12)
    return session.labels, session.classes, questions, session.predict(session.names), session.metrics


# ---- what is asked


def test_every_image_is_asked_once_until_there_are_no_more(tmp_path: Path):
    session, truth = make(tmp_path, 60)
    asked = teach(session, truth, 100)
    assert sorted(asked) == sorted(session.names) and session.next() == []
    assert session.metrics.unlabelled == 0 and session.metrics.labelled == 60


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_nothing_is_asked_twice_whatever_is_answered(tmp_path_factory: pytest.TempPathFactory, seed: int):
    """Two people who answer, skip, exclude and take back, with images that they hold."""
    session, truth = make(tmp_path_factory.mktemp("session"), 50)
    rng = np.random.default_rng(seed)
    held: dict[str, list[str]] = {"a": [], "b": []}
    for _ in range(40):
        author = str(rng.choice(["a", "b"]))
        labels, answered = session.labels, session.journal.current()
        for question in session.next(int(rng.integers(1, 5)), author, held[author]):
            path = question.path
            assert path not in held["a"] + held["b"]
            is_again = question.label is not None or (path in answered and answered[path].action == "skip")
            assert is_again or path not in answered
            assert question.label == labels.get(path, (None,))[0]
            held[author].append(path)
        if held[author] and rng.random() < 0.9:
            path = held[author].pop(int(rng.integers(len(held[author]))))
            action = rng.choice(["label", "skip", "exclude"], p=[0.8, 0.1, 0.1])
            session.record([Answer(path, action, f"class {truth[session.row_of[path]]}", author=author)])
        elif rng.random() < 0.5:
            session.undo(author)


def test_what_one_person_is_asked_waits_for_the_others_until_the_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session, _ = make(tmp_path, 30)
    first = {question.path for question in session.next(30, "a")}
    assert len(first) == 30 and session.next(5, "b") == []
    assert {question.path for question in session.next(30, "a")} == first  # unless they are held
    assert session.next(5, "a", held=first) == []
    monkeypatch.setattr(sessions, "LEASE_SECONDS", 0.0)
    assert len(session.next(30, "b")) == 30


def test_an_answer_ends_the_lease(tmp_path: Path):
    session, _ = make(tmp_path, 30)
    (question,) = session.next(1, "a")
    session.answer(question.path, "cat", author="a")
    session.undo("a")
    assert question.path in {each.path for each in session.next(30, "b")}


def test_skipped_images_come_back_at_the_end_in_turn_and_excluded_ones_never(tmp_path: Path):
    session, truth = make(tmp_path, 40)
    first, second, third = session.next(3)
    session.answer(first.path, skip=True)
    session.answer(second.path, skip=True)
    session.answer(third.path, exclude=True)
    asked = teach(session, truth, 37)
    assert not {first.path, second.path, third.path} & set(asked) and len(asked) == 37
    for path in (first.path, second.path, first.path):
        assert session.next()[0].path == path
        session.answer(path, skip=True)
    assert (session.metrics.skipped, session.metrics.excluded) == (2, 1)
    assert set(teach(session, truth, 9)) == {first.path, second.path} and session.next() == []


def test_without_labels_the_first_questions_are_of_all_clusters(tmp_path: Path):
    features, truth = clusters(200, 6, spread=0.2)
    session = open_taught(tmp_path, Pool(features))
    rows = [session.row_of[each.path] for each in session.next(8) if each.reason == "new"]
    assert len({truth[row] for row in rows}) >= 5


def test_images_that_cannot_be_read_are_never_asked(tmp_path: Path):
    features, truth = clusters(60)
    pool = Pool(features)
    pool.status[::7] = UNREADABLE
    session = open_taught(tmp_path, pool)
    assert len(teach(session, truth, 100)) == 60 - len(range(0, 60, 7)) and session.reading == (60, 60)
    with pytest.raises(FieldmarkError, match="not been read"):
        session.predict([name(0)])


def test_images_that_are_read_later_are_asked_too(tmp_path: Path):
    features, truth = clusters(60)
    pool = Pool(features)
    pool.status[30:] = WAITING
    session = open_taught(tmp_path, pool)
    assert {session.row_of[path] for path in teach(session, truth, 60)} == set(range(30))
    assert session.reading == (30, 60)
    pool.status[30:45] = READ
    assert {session.row_of[path] for path in teach(session, truth, 60)} == set(range(30, 45))


def test_part_of_the_questions_are_about_random_test_images(tmp_path: Path):
    session, truth = make(tmp_path, 300)
    asked = teach(session, truth, 100)
    tests = [session.row_of[path] for path in asked if session.labels[path][1] == "test"]
    assert tests == session.test_rows[: len(tests)].tolist() and 15 <= len(tests) <= 21


# ---- test images


def test_test_images_and_what_is_like_them_are_never_learned_from(tmp_path: Path, learned_from: list[set[int]]):
    features, truth = clusters(100)
    pool = Pool(features)
    pool.groups = np.arange(100) // 4 * 4  # four each
    session = open_taught(tmp_path, pool)
    alike = set(np.flatnonzero(np.isin(pool.groups, pool.groups[session.test_rows])).tolist())
    for path in session.names:  # also those that would not be asked
        session.answer(path, f"class {truth[session.row_of[path]]}")
    assert session.model is not None
    assert learned_from[-1] == set(range(100)) - alike and len(alike) > len(session.test_rows)


def test_groups_that_are_found_late_are_taken_in(tmp_path: Path, learned_from: list[set[int]]):
    """The last images have been read, and after that near-duplicates of test images are found."""
    features, truth = clusters(60)
    pool = Pool(features)
    session = open_taught(tmp_path, pool)
    teach(session, truth, 40)
    row, pool.groups = next(iter(learned_from[-1])), pool.groups.copy()
    pool.groups[row] = pool.groups[session.test_rows[-1]]
    assert session.model is not None and row not in learned_from[-1] and learned_from[-1]


@pytest.mark.parametrize("n_tests", [10, 40])
@pytest.mark.parametrize("n_loose", [0, 30])
def test_the_test_split_of_a_dataset_is_never_learned_from(
    tmp_path: Path, learned_from: list[set[int]], n_tests: int, n_loose: int
):
    features, truth = clusters(120)
    given = {row: f"class {truth[row]}" for row in range(n_loose, 120)}
    session = open_taught(tmp_path, Pool(features), given, range(120 - n_tests, 120))
    teach(session, truth, 30)
    assert session.model is not None
    assert all(rows and max(rows) < 120 - n_tests for rows in learned_from)
    assert (set(session.test_rows) == set(range(120 - n_tests, 120))) == (n_tests == 40 and not n_loose)


def test_predictions_of_test_images_are_not_shown(tmp_path: Path):
    features, truth = clusters(200)
    session = open_taught(tmp_path, Pool(features))
    teach(session, truth, 40)
    labelled_test = next(path for path, (_, purpose) in session.labels.items() if purpose == "test")
    session.answer(labelled_test, f"class {(truth[session.row_of[labelled_test]] + 1) % 3}")
    questions = [*session.next(50), *session.similar(labelled_test), session.question_about(labelled_test)]
    assert {question.purpose for question in questions} == {"train", "test"}
    for question in questions:
        is_test = session.row_of[question.path] in session.test_rows
        assert (question.purpose == "test") == is_test == (question.proposal is None)
        assert (question.confidence is None, question.top == ()) == (is_test, is_test)
        if not is_test:
            assert question.top[0] == (question.proposal, question.confidence)


# ---- doubts


def test_wrong_answers_are_asked_about_again_once(tmp_path: Path):
    session, truth = make(tmp_path, 150)
    wrong, again = set[str](), Counter[str]()
    rng = np.random.default_rng(0)
    for _ in range(110):
        (question,) = session.next()
        label = int(truth[session.row_of[question.path]])
        if question.label is not None:
            assert question.reason == "suspicious" and question.path not in again
            again[question.path] += 1
        elif rng.random() < 0.06:
            label = (label + 1) % 3
            wrong.add(question.path)
        session.answer(question.path, f"class {label}")
    assert len(wrong) > 3 and wrong <= set(again)


@pytest.mark.parametrize("n_loose", [0, 60])
def test_checks_are_a_small_part_as_long_as_there_is_something_else(tmp_path: Path, n_loose: int):
    """Half of the labels are wrong, so that nearly all of them are doubted."""
    features, truth = clusters(160)
    rng = np.random.default_rng(0)
    given = {row: f"class {rng.integers(3)}" for row in range(n_loose, 160)}
    session = open_taught(tmp_path, Pool(features), given)
    questions = session.next(40)
    for _ in range(40):
        (question,) = session.next()
        session.answer(question.path, f"class {truth[session.row_of[question.path]]}")
        questions.append(question)
    checks = [question.label is not None for question in questions]
    if n_loose:
        assert 1 <= sum(checks[:40]) <= 8 and 4 <= sum(checks[40:]) <= 8
    else:  # there is nothing else
        assert all(checks)


def test_a_given_label_that_was_confirmed_or_skipped_is_not_asked_about_again(tmp_path: Path):
    features, truth = clusters(60)
    given = {row: f"class {truth[row]}" for row in range(60)}
    wrong = [
        int(row) for row in range(60) if row not in set(open_taught(tmp_path / "0", Pool(features), given).test_rows)
    ]
    given |= {row: f"class {(truth[row] + 1) % 3}" for row in wrong[:3]}
    session = open_taught(tmp_path / "1", Pool(features), given)
    assert {session.row_of[each.path] for each in session.next(20)} == set(wrong[:3])
    assert session.metrics.suspicious == 3
    session.answer(name(wrong[0]), given[wrong[0]])
    session.answer(name(wrong[1]), skip=True)
    assert session.label_of(name(wrong[1])) == given[wrong[1]]
    assert [session.row_of[each.path] for each in session.next(20)] == wrong[2:3]
    assert session.metrics.suspicious == 1


def test_near_duplicates_with_other_labels_are_asked_about(tmp_path: Path):
    features, truth = clusters(80)
    pool = Pool(features)
    session = open_taught(tmp_path, pool)
    one, other = [row for row in range(80) if row not in session.test_rows and truth[row] == 0][:2]
    pool.groups[other] = one
    teach(session, truth, 10)
    session.answer(name(one), "class 0")
    session.answer(name(other), "class 1")
    question = next(each for each in session.next(10) if each.reason == "duplicates")
    assert {question.path, *question.others} == {name(one), name(other)} and question.label is not None
    session.answer(name(other), "class 0")
    assert all(each.reason != "duplicates" for each in session.next(10))


def test_few_labels_are_not_doubted(tmp_path: Path):
    features, truth = clusters(MIN_LABELS - 1)
    session = open_taught(tmp_path, Pool(features), {row: f"class {truth[row] ^ 1}" for row in range(MIN_LABELS - 1)})
    assert session.metrics.suspicious == 0


# ---- answers


def test_undo_takes_back_the_whole_batch_and_only_ones_own(tmp_path: Path):
    session, _ = make(tmp_path, 30)
    mine = [Answer(name(row), "label", "cat", author="a") for row in range(3)]
    session.record(mine)
    session.record([Answer(name(5), "label", "dog", author="b")])
    session.answer(name(6), "cat", author="a")
    assert [answer.path for answer in session.undo("a")] == [name(6)]
    assert [answer.path for answer in session.undo("a")] == [name(row) for row in range(3)]
    assert session.undo("a") == [] and list(session.labels) == [name(5)]
    assert [answer.path for answer in session.undo("b")] == [name(5)] and not session.labels


def test_a_request_that_is_repeated_is_recorded_once(tmp_path: Path):
    session, _ = make(tmp_path, 30)
    answers = [Answer(name(row), "label", "cat", author="a") for row in range(2)]
    assert session.record(answers, key="k") == session.record(answers, key="k")
    assert len(session.journal.answers) == 2
    session.answer(name(7), "dog", author="a")
    assert session.undo("a", key="u") == session.undo("a", key="u")
    assert set(session.labels) == {name(0), name(1)}
    assert session.record(answers) != session.record(answers) and session.record([]) == []


def test_of_wrong_answers_none_is_recorded(tmp_path: Path):
    session, _ = make(tmp_path, 30)
    good = Answer(name(0), "label", "cat")
    for bad in (replace(good, path="none.jpg"), replace(good, label="  "), replace(good, label="x" * 101)):
        with pytest.raises(FieldmarkError):
            session.record([good, bad])
    for label in (None, "", "a\x00b"):
        with pytest.raises(FieldmarkError):
            session.answer(name(0), label)
    assert not session.journal.answers and not session.labels


def test_a_new_class_in_the_middle_of_a_session(tmp_path: Path):
    features, truth = clusters(200, 4)
    session = open_taught(tmp_path, Pool(features))
    old = [row for row in range(200) if truth[row] < 3 and row not in session.test_rows]
    new = [row for row in range(200) if truth[row] == 3 and row not in session.test_rows]
    session.record([Answer(name(row), "label", f"class {truth[row]}") for row in old[:30]])
    assert "class 3" not in session.classes and session.metrics.accuracy.n == 0
    session.record([Answer(name(row), "label", "  class  3 ") for row in new[:5]])
    assert session.classes[-1] == "class 3"
    assert {label for label, _ in session.predict([name(row) for row in new])} == {"class 3"}
    assert [each.name for each in session.metrics.classes] == session.classes


@pytest.mark.parametrize("label", ["two  spaces", "caf\udce9", "a\tb", "x" * 150])
def test_a_class_of_the_dataset_may_have_any_name(tmp_path: Path, label: str):
    features, truth = clusters(30)
    given = {row: (label, "b", "c")[truth[row]] for row in range(20)}
    session = open_taught(tmp_path, Pool(features), given)
    session.answer(name(25), label)
    assert session.labels[name(25)][0] == label and session.classes == sorted({label, "b", "c"})
    assert open_taught(tmp_path, Pool(features), given).labels == session.labels


# ---- several sessions


@settings(max_examples=6)
@given(st.integers(0, 1000), st.booleans())
def test_a_session_that_is_opened_again_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int, has_labels: bool
):
    folder, (features, truth) = tmp_path_factory.mktemp("session"), clusters(120, seed=seed)
    given = {row: f"class {truth[row]}" for row in range(0, 120, 3)} if has_labels else {}
    session = open_taught(folder, Pool(features), given)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        (question,) = session.next()
        label = f"class {(truth[session.row_of[question.path]] + (rng.random() < 0.1)) % 3}"
        action = str(rng.choice(["label", "skip", "exclude"], p=[0.8, 0.1, 0.1]))
        session.record([Answer(question.path, action, label)])  # type: ignore[arg-type]
    again = open_taught(folder, Pool(features), given)
    assert state(again) == state(session)


WRITER = """
import sys
from pathlib import Path
from taught import Pool, clusters, open_taught, teach
features, truth = clusters(100)
session = open_taught(Path(sys.argv[1]), Pool(features))
for k in range(20):
    (question,) = session.next(1, sys.argv[2])
    session.answer(question.path, f"class {truth[session.row_of[question.path]]}", author=sys.argv[2])
print(len(session.labels))
"""


def test_two_processes_on_one_folder_lose_no_answer_and_see_those_of_the_other(tmp_path: Path):
    session, truth = make(tmp_path)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    where = str(Path(__file__).parents[2])
    others = [
        subprocess.Popen([*command, author], cwd=where, stdout=subprocess.PIPE, text=True) for author in ("a", "b")
    ]
    teach(session, truth, 20)
    for other in others:
        out, _ = other.communicate()
        assert other.returncode == 0 and int(out) >= 20
    session.refresh()
    assert Counter(answer.author for answer in session.journal.answers) == {"": 20, "a": 20, "b": 20}
    assert set(session.labels) == {answer.path for answer in session.journal.answers}
    assert state(open_taught(tmp_path, Pool(clusters(100)[0]))) == state(session)


def test_undo_knows_what_another_window_of_the_same_author_answered(tmp_path: Path):
    one, _ = make(tmp_path, 30)
    other, _ = make(tmp_path, 30)
    one.answer(name(1), "cat")
    other.answer(name(2), "cat")
    assert [answer.path for answer in one.undo()] == [name(2)]


def test_it_learns_in_the_background(tmp_path: Path):
    session, truth = make(tmp_path, 60)
    session.learn_in_background()
    try:
        for row in range(30):
            session.answer(name(row), f"class {truth[row]}")
        Journal(tmp_path).append(Answer(name(40), "label", "elsewhere"))  # as another process would
        deadline = time.monotonic() + 20
        while (session.model is None or "elsewhere" not in session.classes) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert session.model is not None and "elsewhere" in session.classes
    finally:
        session.close()
    assert session._thread is not None and not session._thread.is_alive()


def test_people_may_answer_while_others_ask(tmp_path: Path):
    session, truth = make(tmp_path, 120)
    session.learn_in_background()
    errors, answered = list[BaseException](), list[str]()

    def work(author: str) -> None:
        try:
            for _ in range(15):
                for question in session.next(2, author):
                    session.answer(question.path, f"class {truth[session.row_of[question.path]]}", author=author)
                    answered.append(question.path)
                assert session.metrics.labelled >= 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(author,)) for author in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    fresh = [path for path in answered if session.labels[path]]
    assert not errors and len(set(fresh)) >= 0.75 * len(fresh) and set(session.labels) == set(answered)


# ---- where it stands


def test_metrics_of_a_session_that_has_learned_everything(tmp_path: Path):
    features, truth = clusters(400, spread=0.2)
    session = open_taught(tmp_path, Pool(features))
    nothing = session.metrics
    assert (nothing.labelled, nothing.unlabelled, nothing.accuracy.share, nothing.coverage) == (0, 400, None, None)
    assert nothing.classes == nothing.history == () and nothing.expected_gain is None
    teach(session, truth, 200)
    metrics = session.metrics
    assert (metrics.labelled, metrics.unlabelled, metrics.excluded, metrics.skipped) == (200, 200, 0, 0)
    tests = [session.row_of[path] for path, (_, purpose) in session.labels.items() if purpose == "test"]
    hits = [
        label == f"class {truth[session.row_of[path]]}"
        for path, (label, _) in zip(map(name, tests), session.predict(list(map(name, tests))), strict=True)
    ]
    share = metrics.accuracy.share
    assert metrics.accuracy.n == len(tests) and share is not None and share == np.mean(hits) > 0.95
    assert metrics.accuracy.low < share <= metrics.accuracy.high
    assert metrics.coverage is not None and metrics.coverage > 0.9 and metrics.selective_accuracy.n <= len(tests)
    assert {each.name: each.labelled for each in metrics.classes} == Counter(
        label for label, _ in session.labels.values()
    )
    assert sum(each.recall.n for each in metrics.classes) == len(tests)
    assert [point.labelled for point in metrics.history][:3] == [20, 24, 28] and metrics.history[-1].accuracy > 0.95


def test_a_class_with_few_labels_or_a_low_recall_is_short(tmp_path: Path):
    features, truth = clusters(400, spread=0.2)
    truth = np.where(np.arange(400) % 2 & (truth == 2), 1, truth)  # half of class 2 is called 1: its recall is low
    session = open_taught(tmp_path, Pool(features), {row: f"class {truth[row]}" for row in range(400)})
    session.answer(name(0), "rare")
    short = {each.name: each.is_short for each in session.metrics.classes}
    assert short["rare"] and not short["class 0"] and any(short[f"class {k}"] for k in (1, 2))


def test_points_of_the_learning_curve_hold_for_test_images_that_are_read_later(tmp_path: Path):
    features, truth = clusters(200, spread=0.1)
    pool = Pool(np.zeros_like(features))
    session = open_taught(tmp_path, pool)
    pool.status[session.test_rows] = WAITING
    for row in range(200):
        if pool.status[row] == READ:
            pool.features[row] = features[row]
    teach(session, truth, 60)
    assert session.metrics.history == ()
    pool.features[:], pool.status[:] = features, READ
    teach(session, truth, 40)
    assert session.metrics.history and all(point.accuracy > 0.9 for point in session.metrics.history)


def test_clusters_and_similar_images_are_open_ones(tmp_path: Path):
    session, truth = make(tmp_path, 120)
    asked = teach(session, truth, 30)
    shown = [path for members in session.clusters(4, 6) for path in members]
    assert shown and len(set(shown)) == len(shown)
    alike = [question.path for question in session.similar(asked[0], 10)]
    assert alike[0] == asked[0] and len(set(alike)) == 10
    for path in [*shown, *alike[1:]]:
        assert path not in asked and session.row_of[path] not in session.test_rows


def test_predictions_need_two_classes(tmp_path: Path):
    session, _ = make(tmp_path, 30)
    session.answer(session.next()[0].path, "cat")
    with pytest.raises(FieldmarkError, match="two classes"):
        session.predict([name(0)])
