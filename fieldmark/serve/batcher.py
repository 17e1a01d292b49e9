"""Photos that came in -> answers: threads that decode and judge, in batches where those are faster."""

import base64
import io
import os
import queue
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fieldmark.core import runtime
from fieldmark.data.image import Unreadable, prepare
from fieldmark.explanation import overlay
from fieldmark.inference.classifier import Classifier, Found
from fieldmark.inference.writers import Answer

BATCHES = (1, 4, 8)
GAIN = 1.1
"""A larger batch must be so much faster to be taken: it makes the first photo in it wait for the others."""
BEHIND = 3
"""Steps of niceness by which those who judge let the thread of the requests go first: it has little to do, and while it
waits its turn with Python's lock in hand nobody works (docs/performance.md)."""
LAYER = 160
"""Pixels of the picture of the evidence: it is smooth, and drawn larger by the page."""


class Job(NamedTuple):
    """One photo: its name, its file's bytes, whether its evidence is wanted, and where the answer goes."""

    name: str
    content: bytes
    evidence: bool
    answer: Future


class Desk:
    """Takes photos in any number of threads; each answer is a `Future`."""

    def __init__(self, classifier: Classifier, batch: int | None = None) -> None:
        """`batch` is the most photos that are judged at once; without it, what is measured to be fastest here."""
        # One more than cores: while one waits for Python's lock, a core would have nothing to do (docs/performance.md).
        self.classifier, self.workers = classifier, runtime.cores() + 1
        self.batch = batch or fastest(classifier, self.workers)
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.workers)]
        for thread in self.threads:
            thread.start()

    def ask(self, name: str, content: bytes, evidence: bool = False) -> Future:
        """-> the answer, as soon as somebody has it; cancelled in time, nobody works for it."""
        job = Job(name, content, evidence, Future())
        self.jobs.put(job)
        return job.answer

    def close(self) -> None:
        """What was asked is answered first."""
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + BEHIND)
        while (job := self.jobs.get()) is not None:
            jobs, last = [job], False
            while len(jobs) < self.batch and not last:
                try:
                    other = self.jobs.get_nowait()
                except queue.Empty:
                    break
                last = other is None
                jobs += [other] if other else []
            self._answer([job for job in jobs if job.answer.set_running_or_notify_cancel()])
            if last:
                break

    def _answer(self, jobs: list[Job]) -> None:
        seen: list[tuple[Job, np.ndarray]] = []
        for job in jobs:
            try:
                seen.append((job, prepare(job.content, self.classifier.info["preprocessing"])))
            except Unreadable as problem:
                job.answer.set_result({"path": job.name, "error": str(problem)})
            except BaseException as fault:
                job.answer.set_exception(fault)
        try:
            found = self.classifier.judge_all(np.stack([photo for _, photo in seen])) if seen else []
            for (job, _), one in zip(seen, found, strict=True):
                job.answer.set_result(self._told(job, one))
        except BaseException as fault:
            for job, _ in seen:
                if not job.answer.done():
                    job.answer.set_exception(fault)

    def _told(self, job: Job, found: Found) -> Answer:
        answer: dict[str, Any] = self.classifier.told(job.name, found)
        return answer | {"evidence": layer(found["evidence"])} if job.evidence else answer


def layer(evidence: np.ndarray) -> str:
    """Evidence (h, w) -> a transparent PNG as a data URI, to be laid over what the network saw of the photo."""
    packed = io.BytesIO()
    overlay.layer(evidence, LAYER).save(packed, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"


def fastest(classifier: Classifier, workers: int, least_s: float = 0.3) -> int:
    """The size of a batch at which so many threads judge most photos a second here."""
    size, rates = classifier.info["preprocessing"]["size"], dict[int, float]()
    with ThreadPoolExecutor(workers) as pool:
        for batch in BATCHES:
            photos = np.zeros((batch, size, size, 3), np.uint8)
            list(pool.map(classifier.judge_all, [photos] * workers))  # the first of a shape plans its memory
            began, n = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < least_s:
                n += sum(map(len, pool.map(classifier.judge_all, [photos] * workers)))
            rates[batch] = n / spent
    best = max(rates, key=lambda batch: rates[batch])
    return best if rates[best] > GAIN * rates[1] else 1
