"""A teaching session: which image to ask about next, what the answers taught, and how good the classifier is."""

import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fieldmark.core.errors import FieldmarkError
from fieldmark.teaching import estimate
from fieldmark.teaching.estimate import Estimate
from fieldmark.teaching.images import TeachingImages
from fieldmark.teaching.journal import Answer, Journal, Purpose
from fieldmark.teaching.label_check import label_error_probabilities, out_of_fold_probabilities
from fieldmark.teaching.learner import LinearModel, fit
from fieldmark.teaching.questions import ClassProgress, CurvePoint, Question, Reason, TeachingMetrics
from fieldmark.teaching.queue import Distances, find_clusters, nearest_images, next_images, uncertainty
from fieldmark.teaching.reader import reading_order
from fieldmark.teaching.store import READ, WAITING, FeatureStore

TEST_SHARE, LATER_TEST_SHARE = 0.2, 0.1
"""Part of the questions that are about test images, until MIN_TEST of them have labels, and from then on."""
MIN_TEST = 100
CHECK_SHARE = 0.2
"""Largest part of the questions that are about labels that are probably wrong."""
SUSPICIOUS = 0.5
"""Probability of a wrong label from which it is asked about again."""
CONFIDENT = 0.9
"""Probability from which a prediction counts as covered."""
FEW_LABELS = 10
NEXT_LABELS = 100
QUEUE_LENGTH = 24
"""Questions that are found at a time."""
LEASE_SECONDS = 120.0
"""For so long an image that one person was asked about is not asked of another one."""
CHECK_EVERY = 8
"""Answers between two searches for labels that are probably wrong."""


@dataclass
class _Labels:
    """What follows from the journal and the labels that were there before; by row of the store."""

    train: dict[int, str] = field(default_factory=dict)  # in the order in which they were given
    test: dict[int, str] = field(default_factory=dict)
    excluded: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    times: Counter[int] = field(default_factory=Counter)  # how often a person has labelled it

    def __contains__(self, row: int) -> bool:
        return row in self.train or row in self.test or row in self.excluded or row in self.skipped


@dataclass(frozen=True)
class _Learned:
    """What the last solution says; replaced as a whole, so that readers never see a part."""

    model: LinearModel | None = None
    n_labels: int = 0
    suspicion: dict[int, float] = field(default_factory=dict)  # row -> probability of a wrong label
    queue: tuple[tuple[int, Reason], ...] = ()


class TeachingSession:
    """Asks, learns and estimates. All methods may be called from several threads.

    `next`, `answer` and `metrics` learn first from what has been answered since, unless `learn_in_background` runs.

    Args:
        folder: of the journal.
        images: all images, with the labels that they have already.
        store: their features; rows that another process adds are taken in by `refresh`.
        seed: of the test set.
    """

    def __init__(self, folder: Path, images: TeachingImages, store: FeatureStore, seed: int = 0) -> None:
        self.folder, self.images, self.store = folder, images, store
        self.journal = Journal(folder)
        self.names = list(images.sources)
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self.given = {self.row_of[name]: label for name, label in images.labels.items()}
        self.classes = sorted(set(self.given.values()))
        self.seed = seed
        self.lock, self._learning = threading.RLock(), threading.Lock()
        self._wake, self._thread, self._is_closed = threading.Event(), None, False
        self._leases = dict[int, tuple[str, float]]()
        self._distances = Distances(store.features)
        self._learned, self._n_checked = _Learned(), 0
        self._curve = dict[int, np.ndarray]()  # labels learned from -> predictions of the test candidates
        self._is_read = np.zeros(len(self.names), bool)
        self.groups = np.arange(len(self.names))
        self.test_rows = self._draw_test_rows(seed)
        self._draw_roles()
        self._replay()
        self.refresh()
        self.learn()

    # ---- images

    def _draw_test_rows(self, seed: int) -> np.ndarray:
        is_labelled = np.array([name in self.images.labels for name in self.names])
        self._given_tests = sorted(self.row_of[name] for name in self.images.tests)
        return estimate.draw_test_rows(reading_order(is_labelled, seed), is_labelled, self._given_tests)

    def refresh(self) -> None:
        """Take in what other processes have answered, and images that have been read since."""
        with self.lock:
            is_read = self.store.status == READ
            if is_read.sum() != self._is_read.sum():
                self._is_read, self.groups = np.array(is_read), self.store.groups
                self._distances.update(self._is_read)
                self._draw_roles()
                self._wake.set()
            if self.journal.refresh():
                self._replay()
                self._wake.set()

    def _draw_roles(self) -> None:
        """Test images, and those that are kept out of training since they are near-duplicates of test images."""
        self._is_test = np.zeros(len(self.names), bool)
        self._is_test[self.test_rows] = True
        held_out = [*self.test_rows.tolist(), *self._given_tests]
        self._is_held_out = np.isin(self.groups, self.groups[held_out])

    @property
    def reading(self) -> tuple[int, int]:
        """How many images have been read, and how many there are."""
        return int((self.store.status != WAITING).sum()), len(self.names)

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

    def record(self, answers: Sequence[Answer]) -> list[Answer]:
        """Record several answers, which `undo` takes back together.

        Raises:
            FieldmarkError: there is no such image, or no label; none is recorded then.
        """
        batch = uuid.uuid4().hex[:12]
        checked = [replace(self._check(answer), batch=batch) for answer in answers]
        with self.lock:
            written = self.journal.append(*checked)
            for answer in written:
                self._leases.pop(self.row_of[answer.path], None)
            self._replay()
        self._wake.set()
        return written

    def _check(self, answer: Answer) -> Answer:
        row = self.row_of.get(answer.path)
        if row is None:
            raise FieldmarkError(f"{answer.path!r} is no image of this session")
        label = " ".join((answer.label or "").split()) if answer.action == "label" else None
        if answer.action == "label" and not label:
            raise FieldmarkError("a label needs the name of a class")
        if label and len(label) > 100:
            raise FieldmarkError("the name of a class has at most 100 characters")
        purpose: Purpose = "test" if self._is_test[row] else "train"
        return replace(answer, label=label, purpose=purpose)

    def undo(self, author: str = "") -> list[Answer]:
        """Take back the author's last answer, with those that were recorded together with it.

        Returns:
            the answers that were taken back; none if there was nothing.
        """
        with self.lock:
            undone = {answer.undone for answer in self.journal.answers if answer.action == "undo"}
            own = [
                answer
                for answer in self.journal.answers
                if answer.action != "undo" and answer.author == author and answer.number not in undone
            ]
            last = [answer for answer in own if answer.batch == own[-1].batch or answer is own[-1]]
            if last:
                self.journal.append(
                    *(Answer(answer.path, "undo", undone=answer.number, author=author) for answer in last)
                )
                self._replay()
        self._wake.set()
        return last

    def _replay(self) -> None:
        """The labels of now, from the journal."""
        labels, answers = _Labels(), self.journal.current()
        answered = {self.row_of[path]: answer for path, answer in answers.items() if path in self.row_of}
        for row, label in self.given.items():
            if row not in answered:
                (labels.test if self._is_test[row] else labels.train)[row] = label
        for row, answer in sorted(answered.items(), key=lambda item: item[1].number):
            if answer.action == "label" and answer.label:
                (labels.test if self._is_test[row] else labels.train)[row] = answer.label
                if answer.label not in self.classes:
                    self.classes.append(answer.label)
            elif answer.action == "exclude":
                labels.excluded.add(row)
            elif row in self.given:  # a doubted label that was skipped stays
                (labels.test if self._is_test[row] else labels.train)[row] = self.given[row]
            else:
                labels.skipped.add(row)
        for answer in self.journal.answers:
            if answer.action in ("label", "skip") and answer.path in self.row_of:
                labels.times[self.row_of[answer.path]] += 1
        self._labels = labels

    @property
    def labels(self) -> dict[str, tuple[str, Purpose]]:
        """Name of each labelled image -> its class, and what it is used for."""
        with self.lock:
            train = {self.names[row]: (label, "train") for row, label in self._labels.train.items()}
            return train | {self.names[row]: (label, "test") for row, label in self._labels.test.items()}

    # ---- learning

    def learn_in_background(self) -> None:
        """Learn in a thread from now on, whenever there is something new; until `close`."""
        self._thread = threading.Thread(target=self._learn_for_ever, daemon=True)
        self._thread.start()

    def _learn_for_ever(self) -> None:
        while not self._is_closed:
            if self._wake.wait(timeout=1.0):
                self._wake.clear()
                if not self._is_closed:
                    self.learn()
            self.refresh()

    def close(self) -> None:
        """End the thread of `learn_in_background`."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _learn_if_alone(self) -> None:
        if self._thread is None and self._wake.is_set():
            self._wake.clear()
            self.refresh()
            self.learn()

    def learn(self) -> None:
        """Solve the classifier on the labels of now and put the queue in order; the former one answers meanwhile."""
        with self._learning:
            with self.lock:
                rows = [row for row in self._labels.train if self._is_read[row] and not self._is_held_out[row]]
                names = {name: k for k, name in enumerate(self.classes)}
                labels = np.array([names[self._labels.train[row]] for row in rows], np.int64)
                n_classes, before = len(self.classes), self._learned
            model = None
            if len(np.unique(labels)) > 1:
                features = self.store.features[rows]
                model = fit(features, labels, n_classes, before.model)
            suspicion = self._check_labels(rows, labels, model, before) if model else {}
            for row in rows:
                self._distances.add(row)
            queue = self._order_queue(model)
            with self.lock:
                self._learned = _Learned(model, len(rows), suspicion, queue)
            if model:
                self._add_to_curve(rows, labels, n_classes, model)

    def _check_labels(
        self, rows: list[int], labels: np.ndarray, model: LinearModel, before: _Learned
    ) -> dict[int, float]:
        """Row -> probability that its label is wrong, by a classifier that has not learned from it."""
        if before.suspicion and abs(len(self.journal.answers) - self._n_checked) < CHECK_EVERY:
            return before.suspicion
        self._n_checked, n_classes = len(self.journal.answers), len(model.bias)
        with self.lock:
            number = {name: k for k, name in enumerate(self.classes[:n_classes])}
            tests = [row for row, label in self._labels.test.items() if self._is_read[row] and label in number]
            test_labels = np.array([number[self._labels.test[row]] for row in tests], np.int64)
        features = np.asarray(self.store.features[rows])
        p = out_of_fold_probabilities(features, labels, self.groups[rows], n_classes)
        p = np.concatenate([p, model.probabilities(self.store.features[tests])]) if tests else p
        both = np.concatenate([labels, test_labels])
        return dict(zip([*rows, *tests], label_error_probabilities(p, both).tolist(), strict=True))

    def _order_queue(self, model: LinearModel | None) -> tuple[tuple[int, Reason], ...]:
        with self.lock:
            candidates = self._open_rows()
        if not len(candidates):
            return ()
        if model is None:
            scores, reason = np.ones(len(candidates), np.float32), "new"
        else:
            scores, reason = uncertainty(model.probabilities(self.store.features[candidates])), "uncertain"
        return tuple((row, reason) for row in next_images(scores, self._distances, candidates, QUEUE_LENGTH))

    def _open_rows(self) -> np.ndarray:
        """Images to learn from that nobody has answered yet."""
        is_open = self._is_read & ~self._is_held_out
        is_open[[*self._labels.train, *self._labels.excluded, *self._labels.skipped]] = False
        return np.flatnonzero(is_open)

    def _add_to_curve(self, rows: list[int], labels: np.ndarray, n_classes: int, model: LinearModel) -> None:
        """Predictions of the test images after fewer labels, for the learning curve."""
        read_tests = self.test_rows
        for size in estimate.curve_sizes(len(rows)):
            if size in self._curve:
                continue
            part = labels[:size]
            if size == len(rows):
                earlier: LinearModel | None = model
            else:
                earlier = fit(self.store.features[rows[:size]], part, n_classes) if len(np.unique(part)) > 1 else None
            if earlier is not None:
                self._curve[size] = earlier.logits(self.store.features[read_tests]).argmax(1)

    # ---- questions

    def next(self, n: int = 1, author: str = "", held: Iterable[str] = ()) -> list[Question]:
        """The next images to ask about; fewer than `n` if there are no more.

        Args:
            n: how many.
            author: who is asked; others are asked about other images meanwhile.
            held: images that the author has been asked about and has not answered yet.
        """
        self._learn_if_alone()
        with self.lock:
            taken = {self.row_of[path] for path in held if path in self.row_of} | self._leased(author)
            questions = list[Question]()
            for _ in range(n):
                question = self._next_question(taken)
                if question is None:
                    break
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
        n_answers = max(1, len(labels.train) + len(labels.test) - len(self.given) + len(taken))
        n_tests = len([row for row in labels.test if row not in self.given]) + sum(self._is_test[list(taken)])
        share = TEST_SHARE if n_tests < MIN_TEST else LATER_TEST_SHARE
        kinds = [self._doubted, self._uncertain, self._test, self._skipped]
        if n_tests < share * n_answers:
            kinds = [self._test, *kinds]
        elif sum(labels.times.values()) - len(labels.times) >= CHECK_SHARE * n_answers:
            kinds = [self._uncertain, self._test, self._doubted, self._skipped]
        return next((question for kind in kinds if (question := kind(taken))), None)

    def _test(self, taken: set[int]) -> Question | None:
        for row in map(int, self.test_rows):
            if row not in self._labels and row not in taken and self._is_read[row]:
                return Question(self.names[row], "random", "test")
        return None

    def _uncertain(self, taken: set[int]) -> Question | None:
        for row, reason in self._learned.queue:
            if row not in self._labels and row not in taken:
                return Question(self.names[row], reason)
        rows = [row for row in self._open_rows().tolist() if row not in taken]
        if not rows:
            return None
        chosen = next_images(np.ones(len(rows), np.float32), self._distances, np.array(rows), 1)
        return Question(self.names[chosen[0]], "new")

    def _doubted(self, taken: set[int]) -> Question | None:
        """A label that is probably wrong, or that contradicts that of a near-duplicate."""
        for row, others in self._contradicting():
            if row not in taken and not self._labels.times[row]:
                names = tuple(self.names[other] for other in others)
                return Question(self.names[row], "duplicates", label=self._labels.train[row], others=names)
        doubted = [
            (p, row)
            for row, p in self._learned.suspicion.items()
            if p >= SUSPICIOUS and row not in taken and self._label_of(row) and self._is_unconfirmed(row)
        ]
        if not doubted:
            return None
        row = max(doubted)[1]
        purpose: Purpose = "test" if self._is_test[row] else "train"
        return Question(self.names[row], "suspicious", purpose, label=self._label_of(row))

    def _label_of(self, row: int) -> str | None:
        return self._labels.train.get(row) or self._labels.test.get(row)

    def _is_unconfirmed(self, row: int) -> bool:
        """A label is asked about again once."""
        return self._labels.times[row] < (1 if row in self.given else 2)

    def _contradicting(self) -> list[tuple[int, list[int]]]:
        members = defaultdict[int, list[int]](list)
        for row in self._labels.train:
            members[int(self.groups[row])].append(row)
        labels = self._labels.train
        return [
            (row, others)
            for rows in members.values()
            if len(rows) > 1
            for row in rows
            if (others := [other for other in rows if labels[other] != labels[row]][:4])
        ]

    def _skipped(self, taken: set[int]) -> Question | None:
        for row in self._labels.skipped - taken:
            purpose: Purpose = "test" if self._is_test[row] else "train"
            return Question(self.names[row], "random" if purpose == "test" else "uncertain", purpose)
        return None

    def _with_predictions(self, question: Question) -> Question:
        model = self._learned.model
        if model is None:
            return question
        p = model.probabilities(self.store.features[[self.row_of[question.path]]])[0]
        best = np.argsort(-p)[:5]
        top = tuple((self.classes[k], float(p[k])) for k in best)
        return replace(question, proposal=top[0][0], confidence=top[0][1], top=top)

    def question_about(self, path: str) -> Question:
        """The question about a certain image, as after `undo`."""
        with self.lock:
            row = self.row_of[path]
            is_test = bool(self._is_test[row])
            label = self._label_of(row)
            return self._with_predictions(
                Question(path, "random" if is_test else "uncertain", "test" if is_test else "train", label=label)
            )

    def similar(self, path: str, n: int = 24) -> list[Question]:
        """Images without a label that resemble this one, the most similar first; it is the first itself."""
        with self.lock:
            rows = nearest_images(self.store.features, self.row_of[path], self._open_rows(), n)
            return [self._with_predictions(Question(self.names[row], "uncertain")) for row in rows]

    def clusters(self, n: int = 12, size: int = 24) -> list[list[str]]:
        """Images without a label in clusters that look alike, largest first: to name the first classes by."""
        with self.lock:
            rows, features = self._open_rows(), self.store.features
        found = find_clusters(np.asarray(features[rows]), n, size) if len(rows) else []
        return [[self.names[rows[i]] for i in members] for members in found]

    # ---- metrics

    @property
    def metrics(self) -> TeachingMetrics:
        """Accuracy with its interval, coverage, what each class has, and what more labels would bring."""
        self._learn_if_alone()
        with self.lock:
            labels, learned, classes = self._labels, self._learned, list(self.classes)
            rows = [row for row in labels.test if self._is_read[row]]
            open_rows = self._open_rows()
            curve = dict(self._curve)
        number = {name: k for k, name in enumerate(classes)}
        truth = np.array([number[labels.test[row]] for row in rows], np.int64)
        logits = self._logits(learned.model, rows, len(classes))
        hits = logits.argmax(1) == truth if learned.model else np.zeros(0, bool)
        scale = estimate.fit_scale(logits, truth) if learned.model else 1.0
        is_sure = estimate.confidence(logits, scale) >= CONFIDENT
        sample = open_rows[:: max(1, len(open_rows) // 5000)]
        coverage = None
        if learned.model and len(sample):
            confidence = estimate.confidence(self._logits(learned.model, sample, len(classes)), scale)
            coverage = float((confidence >= CONFIDENT).mean())
        accuracy = Estimate.of(hits)
        counts = Counter([*labels.train.values(), *labels.test.values()])
        position = {int(row): k for k, row in enumerate(self.test_rows)}
        places = [position[row] for row in rows]
        history = tuple(
            CurvePoint(size, float((guess[places] == truth).mean())) for size, guess in sorted(curve.items()) if rows
        )
        return TeachingMetrics(
            labelled=len(labels.train) + len(labels.test),
            unlabelled=len(self.names)
            - len(labels.train)
            - len(labels.test)
            - len(labels.excluded)
            - len(labels.skipped),
            excluded=len(labels.excluded),
            skipped=len(labels.skipped),
            accuracy=accuracy,
            coverage=coverage,
            selective_accuracy=Estimate.of(hits[is_sure] if learned.model else hits),
            expected_gain=estimate.expected_gain(history, learned.n_labels, NEXT_LABELS, len(rows)),
            next_labels=NEXT_LABELS,
            classes=tuple(
                _class_progress(name, counts[name], hits[truth == k] if learned.model else hits, accuracy)
                for name, k in number.items()
            ),
            history=history,
            suspicious=sum(
                p >= SUSPICIOUS and self._label_of(row) is not None and self._is_unconfirmed(row)
                for row, p in learned.suspicion.items()
            ),
        )

    def _logits(self, model: LinearModel | None, rows: Sequence[int] | np.ndarray, n_classes: int) -> np.ndarray:
        if model is None or not len(rows):
            return np.zeros((len(rows), max(n_classes, 1)), np.float32)
        return model.with_classes(n_classes).logits(self.store.features[rows])

    def predict(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Class and probability of images of the session.

        Raises:
            FieldmarkError: there are fewer than two classes with labels.
        """
        self._learn_if_alone()
        model = self._learned.model
        if model is None:
            raise FieldmarkError("predictions need labels of two classes")
        p = model.probabilities(self.store.features[[self.row_of[name] for name in names]])
        return [(self.classes[k], float(row[k])) for row, k in zip(p, p.argmax(1), strict=True)]


def _class_progress(name: str, labelled: int, hits: np.ndarray, accuracy: Estimate) -> ClassProgress:
    recall = Estimate.of(hits)
    is_low = recall.n >= 5 and accuracy.share is not None and recall.high < accuracy.share
    return ClassProgress(name, labelled, recall, labelled < FEW_LABELS or is_low)
