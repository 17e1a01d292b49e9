"""A teaching session: which image to ask about next, what the answers taught, and how good the classifier is."""

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.special import softmax

from fieldmark.core.errors import FieldmarkError
from fieldmark.pipeline.teaching import estimate
from fieldmark.pipeline.teaching.images import TeachingImages
from fieldmark.pipeline.teaching.journal import Answer, Journal, Purpose
from fieldmark.pipeline.teaching.labels import SessionLabels
from fieldmark.pipeline.teaching.learned import LabelledRows, Learned, learn
from fieldmark.pipeline.teaching.learner import LinearModel
from fieldmark.pipeline.teaching.progress import LearningCurve, doubtful_rows, measure
from fieldmark.pipeline.teaching.questions import Question, TeachingMetrics
from fieldmark.pipeline.teaching.queue import find_clusters, nearest_images
from fieldmark.pipeline.teaching.reader import reading_order
from fieldmark.pipeline.teaching.store import READ, WAITING

TEST_SHARE, LATER_TEST_SHARE = 0.2, 0.1
"""Part of the questions that are about test images, until MIN_TEST of them have labels, and from then on."""
MIN_TEST = 100
CHECK_SHARE = 0.2
"""Part of the questions that are about labels which the classifier doubts, as long as there are some."""
LEASE_SECONDS = 120.0
"""For so long an image that one person was asked about is not asked of another one."""
MAX_NAME = 100
"""Characters of the name of a class."""
MAX_KEYS = 1000
logger = logging.getLogger("fieldmark.serve")


class Features(Protocol):
    """What a session needs of `FeatureStore`."""

    features: np.ndarray
    status: np.ndarray

    @property
    def groups(self) -> np.ndarray: ...


class TeachingSession:
    """Asks, learns and estimates. All methods may be called from several threads.

    `next`, `metrics` and `predict` learn first from what has been answered since, unless `learn_in_background` runs.

    Args:
        folder: of the journal.
        images: all images, with the labels that they have already.
        store: their features; rows that another process adds are taken in by `refresh`.
        seed: of the test set.
    """

    def __init__(self, folder: Path, images: TeachingImages, store: Features, seed: int = 0) -> None:
        self.folder, self.images, self.store = folder, images, store
        self.journal = Journal(folder)
        self.names = list(images.sources)
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self.given = {self.row_of[name]: label for name, label in images.labels.items()}
        self.classes = sorted(set(self.given.values()))
        self._lock, self._learning = threading.RLock(), threading.Lock()
        self._wake, self._is_closed = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._rng = np.random.default_rng(seed)
        self._leases = dict[int, tuple[str, float]]()  # row -> who is asked about it, and since when
        self._results = dict[tuple[str, str], list[Answer]]()  # of the last requests, by kind and key
        self._given_tests = sorted(self.row_of[name] for name in images.tests)
        is_labelled = np.array([name in images.labels for name in self.names])
        self.test_rows = estimate.draw_test_rows(reading_order(is_labelled, seed), is_labelled, self._given_tests)
        self._is_test = np.zeros(len(self.names), bool)
        self._is_test[self.test_rows] = True
        self._curve = LearningCurve(store.features, self.test_rows)
        self._learned = Learned()
        self._remember_journal()
        self._take_in_images()
        self._replay()
        self.learn()

    # ---- images

    def _take_in_images(self) -> None:
        """What has been read by now; images like test images are kept out of training."""
        self._is_read, self.groups = np.array(self.store.status == READ), self.store.groups
        held_out = [*self.test_rows.tolist(), *self._given_tests]
        self._is_held_out = np.isin(self.groups, self.groups[held_out])

    def refresh(self) -> None:
        """Take in what other processes have answered, and images that have been read since."""
        with self._lock:
            # Groups are searched after the images have been read, so their number alone does not tell.
            if (self.store.status == READ).sum() != self._is_read.sum() or (self.store.groups != self.groups).any():
                self._take_in_images()
                self._wake.set()
            if self.journal.refresh():
                self._replay()
                self._wake.set()

    @property
    def reading(self) -> tuple[int, int]:
        """How many images have been read, and how many there are."""
        return int((self.store.status != WAITING).sum()), len(self.names)

    def _open_rows(self) -> np.ndarray:
        """Images to learn from that nobody has answered yet."""
        is_open = self._is_read & ~self._is_held_out
        is_open[[*self._labels.train, *self._labels.excluded, *self._labels.skipped]] = False
        return np.flatnonzero(is_open)

    # ---- answers

    def answer(
        self, path: str, label: str | None = None, *, exclude: bool = False, skip: bool = False, author: str = ""
    ) -> Answer:
        """Record what an image shows; it is on the disk when this returns.

        Args:
            path: name of the image, as in a question.
            label: its class; a new name makes a new class.
            exclude: leave the image out instead.
            skip: ask again at the end instead.
            author: who answers.

        Raises:
            FieldmarkError: there is no such image, or no label.
        """
        action = "exclude" if exclude else "skip" if skip else "label"
        return self.record([Answer(path, action, label, author=author)])[0]

    def record(self, answers: Sequence[Answer], key: str = "") -> list[Answer]:
        """Record several answers, which `undo` takes back together.

        Args:
            key: of the request: one that is repeated, since its response was lost, is not recorded again.

        Raises:
            FieldmarkError: there is no such image, or no label; none is recorded then.
        """
        if not answers:
            return []
        batch, request = key or uuid.uuid4().hex[:12], ("record", key)
        checked = [replace(self._check(answer), batch=batch) for answer in answers]
        with self._lock:
            if request in self._results:
                return self._results[request]
            written = self.journal.append(*checked)
            for answer in written:
                self._leases.pop(self.row_of[answer.path], None)
            self._remember(request, written)
            self._replay()
        self._wake.set()
        return written

    def _remember(self, request: tuple[str, str], result: list[Answer]) -> None:
        if request[1]:
            self._results[request] = result
        while len(self._results) > MAX_KEYS:
            self._results.pop(next(iter(self._results)))

    def _remember_journal(self) -> None:
        """The requests of an earlier process, whose responses may have been lost with it."""
        answers = self.journal.answers
        for answer in answers[-MAX_KEYS:]:
            if answer.batch:
                is_undo = answer.action == "undo" and answer.undone is not None
                result = self._results.setdefault(("undo" if is_undo else "record", answer.batch), [])
                result.append(answers[answer.undone] if is_undo else answer)  # type: ignore[index]

    def _check(self, answer: Answer) -> Answer:
        row = self.row_of.get(answer.path)
        if row is None:
            raise FieldmarkError(f"{answer.path!r} is no image of this session")
        label = answer.label if answer.action == "label" else None
        if label is not None and label not in self.classes:  # the names of folders are as they are
            label = " ".join(label.split())
        if answer.action == "label" and not label:
            raise FieldmarkError("a label needs the name of a class")
        if label and label not in self.classes and (len(label) > MAX_NAME or not label.isprintable()):
            raise FieldmarkError(f"the name of a class has at most {MAX_NAME} characters, which can be printed")
        purpose: Purpose = "test" if self._is_test[row] else "train"
        return replace(answer, label=label, purpose=purpose)

    def undo(self, author: str = "", key: str = "") -> list[Answer]:
        """Take back the author's last answer, with those that were recorded together with it.

        Args:
            key: as of `record`.

        Returns:
            the answers that were taken back; none if there was nothing.
        """
        request = ("undo", key)
        with self._lock:
            if request in self._results:
                return self._results[request]
            self.journal.refresh()
            own = [answer for answer in self.journal.standing() if answer.author == author]
            last = [answer for answer in own if answer is own[-1] or (answer.batch and answer.batch == own[-1].batch)]
            if last:
                undos = [Answer(one.path, "undo", undone=one.number, author=author, batch=key) for one in last]
                self.journal.append(*undos)
                self._replay()
            self._remember(request, last)
        self._wake.set()
        return last

    def _replay(self) -> None:
        self._labels = SessionLabels.from_journal(self.journal, self.row_of, self.given, self._is_test)
        used = {*self._labels.train.values(), *self._labels.test.values()}
        # In the order in which they were named, so that a session that is opened again has them in the same one.
        for label in dict.fromkeys(answer.label for answer in self.journal.answers if answer.label):
            if label in used and label not in self.classes:
                self.classes.append(label)

    @property
    def labels(self) -> dict[str, tuple[str, Purpose]]:
        """Name of each labelled image -> its class, and what it is used for."""
        with self._lock:
            labels = self._labels.train | self._labels.test
            return {self.names[row]: (label, self._purpose(row)) for row, label in labels.items()}

    def label_of(self, name: str) -> str | None:
        """The class of an image; None if it has none."""
        return self._labels.label_of(self.row_of[name])

    def resembles_test_image(self, name: str) -> bool:
        """Whether an image is a near-duplicate of a test image, so that nothing is learned from it."""
        return bool(self._is_held_out[self.row_of[name]])

    # ---- learning

    def learn_in_background(self) -> None:
        """Learn in a thread from now on, whenever there is something new; until `close`."""
        self._thread = threading.Thread(target=self._learn_for_ever, daemon=True)
        self._thread.start()

    def _learn_for_ever(self) -> None:
        while not self._is_closed:
            try:
                if self._wake.wait(timeout=1.0) and not self._is_closed:
                    self._wake.clear()
                    self.learn()
                self.refresh()
            except Exception:  # what was learned before serves until the next answer
                logger.exception("learning failed")

    def close(self) -> None:
        """End the thread of `learn_in_background`."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _learn_if_alone(self) -> None:
        if self._thread is None:
            self.refresh()
            if self._wake.is_set():
                self._wake.clear()
                self.learn()

    def learn(self) -> None:
        """Learn from the labels of now and put the queue in order; what was learned before serves meanwhile."""
        with self._learning:
            with self._lock:
                number = {name: k for k, name in enumerate(self.classes)}
                train = {row: label for row, label in self._labels.train.items() if not self._is_held_out[row]}
                train, test = (
                    _numbered({row: label for row, label in side.items() if self._is_read[row]}, number)
                    for side in (train, self._labels.test)
                )
                open_rows, groups, n_classes = self._open_rows(), self.groups, len(self.classes)
            learned = learn(self.store.features, groups, train, test, open_rows, n_classes)
            with self._lock:
                self._learned = learned
            self._curve.update(train.rows, train.labels, n_classes)

    # ---- questions

    def next(self, n: int = 1, author: str = "", held: Iterable[str] = ()) -> list[Question]:
        """The next images to ask about; fewer than `n` if there are no more.

        Args:
            n: how many.
            author: who is asked; others are asked about other images meanwhile.
            held: images that the author has been asked about and has not answered yet.
        """
        self._learn_if_alone()
        with self._lock:
            taken = {self.row_of[path] for path in held if path in self.row_of} | self._leased(author)
            questions = list[Question]()
            while len(questions) < n and (question := self._next_question(taken)):
                row = self.row_of[question.path]
                taken.add(row)
                self._leases[row] = (author, time.monotonic())
                questions.append(self._with_predictions(question))
            return questions

    def _leased(self, author: str) -> set[int]:
        now = time.monotonic()
        self._leases = {row: lease for row, lease in self._leases.items() if now - lease[1] < LEASE_SECONDS}
        return {row for row, (other, _) in self._leases.items() if other != author}

    def _next_question(self, taken: set[int]) -> Question | None:
        labels = self._labels
        asked = labels.answered | taken
        n_tests = int(self._is_test[list(asked)].sum())
        n_checks = labels.checks.total() + sum(labels.label_of(row) is not None for row in taken)
        kinds = [self._to_learn, self._test, self._doubted, self._skipped]
        if n_checks < CHECK_SHARE * len(asked):
            kinds = [self._doubted, *kinds]
        if n_tests < (TEST_SHARE if n_tests < MIN_TEST else LATER_TEST_SHARE) * len(asked):
            kinds = [self._test, *kinds]
        return next((question for kind in kinds if (question := kind(taken))), None)

    def _test(self, taken: set[int]) -> Question | None:
        for row in map(int, self.test_rows):
            if row not in self._labels and row not in taken and self._is_read[row]:
                return Question(self.names[row], "random", "test")
        return None

    def _to_learn(self, taken: set[int]) -> Question | None:
        learned = self._learned
        # If several people have emptied the queue: any image, and not those of one folder one after the other.
        for rows in (lambda: learned.queue, lambda: self._rng.permutation(self._open_rows())):
            for row in map(int, rows()):
                if row not in self._labels and row not in taken:
                    is_new = learned.model is None or row in learned.novel
                    return Question(self.names[row], "new" if is_new else "uncertain")
        return None

    def _doubted(self, taken: set[int]) -> Question | None:
        """A label that contradicts that of a near-duplicate, or that is probably wrong; each is asked about once."""
        labels = self._labels
        for row, others in labels.contradictions(self.groups):
            if row not in taken and not labels.checks[row]:
                names = tuple(self.names[other] for other in others[:4])
                return Question(self.names[row], "duplicates", label=labels.label_of(row), others=names)
        for row in doubtful_rows(self._learned.doubts, labels):
            if row not in taken:
                return Question(self.names[row], "suspicious", self._purpose(row), label=labels.label_of(row))
        return None

    def _skipped(self, taken: set[int]) -> Question | None:
        for row in self._labels.skipped:
            if row not in taken:
                return Question(self.names[row], "random" if self._is_test[row] else "uncertain", self._purpose(row))
        return None

    def _purpose(self, row: int) -> Purpose:
        return "test" if self._is_test[row] else "train"

    def _with_predictions(self, question: Question) -> Question:
        """With what the classifier predicts; not for test images, whose label it must not influence."""
        model = self._learned.model
        if model is None or question.purpose == "test":
            return question
        row = self.row_of[question.path]
        scores = self._learned.held_out.get(row)  # of a labelled image: the model itself has learned its label
        if scores is None:
            scores = model.scores(np.asarray(self.store.features[[row]]))[0]
        p = softmax(model.scale * scores)
        top = tuple((self.classes[k], float(p[k])) for k in np.argsort(-p)[:5] if model.is_known[k])
        return replace(question, proposal=top[0][0], confidence=top[0][1], top=top)

    def question_about(self, path: str) -> Question:
        """The question about a certain image, as after `undo`."""
        with self._lock:
            row = self.row_of[path]
            reason = "random" if self._is_test[row] else "uncertain"
            return self._with_predictions(Question(path, reason, self._purpose(row), label=self._labels.label_of(row)))

    def similar(self, path: str, n: int = 24) -> list[Question]:
        """Images to learn from without a label that resemble this one, which comes first, the most similar next."""
        with self._lock:
            rows = nearest_images(self.store.features, self.row_of[path], self._open_rows(), n)
            return [self._with_predictions(Question(self.names[row], "uncertain", self._purpose(row))) for row in rows]

    def clusters(self, n: int = 12, size: int = 24) -> list[list[str]]:
        """Images without a label in clusters that look alike, largest first: to name the first classes by."""
        with self._lock:
            rows = self._open_rows()
        found = find_clusters(np.asarray(self.store.features[rows]), n, size) if len(rows) else []
        return [[self.names[rows[i]] for i in members] for members in found]

    # ---- results

    @property
    def model(self) -> LinearModel | None:
        """The classifier of now; None as long as fewer than two classes have labels."""
        self._learn_if_alone()
        return self._learned.model

    @property
    def metrics(self) -> TeachingMetrics:
        """Accuracy with its interval, coverage, what each class has, and what more labels would bring."""
        self._learn_if_alone()
        with self._lock:
            labels, learned, classes, is_read = self._labels, self._learned, list(self.classes), self._is_read
            open_rows = self._open_rows()
        return measure(self.store.features, is_read, labels, learned, classes, open_rows, self._curve)

    def predict(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Class and probability of images of the session.

        Raises:
            FieldmarkError: there are fewer than two classes with labels, or an image has not been read.
        """
        model = self.model
        if model is None:
            raise FieldmarkError("predictions need labels of two classes")
        rows = [self.row_of[name] for name in names]
        if not self._is_read[rows].all():
            raise FieldmarkError("some of these images have not been read yet")
        p = model.probabilities(np.asarray(self.store.features[rows]))
        return [(self.classes[k], float(row[k])) for row, k in zip(p, p.argmax(1), strict=True)]


def _numbered(labels: Mapping[int, str], number: Mapping[str, int]) -> LabelledRows:
    return LabelledRows(list(labels), np.array([number[label] for label in labels.values()], np.int64))
