"""Photos that came in -> answers: threads that decode and judge, in batches where those are faster."""

import base64
import io
import os
import queue
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fieldmark.core import runtime
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.explanation import overlay
from fieldmark.inference.classifier import Classifier, ModelOutputs
from fieldmark.inference.prediction import Prediction

BATCH_SIZES = (1, 4, 8)
MIN_SPEEDUP = 1.1
"""A larger batch must be so much faster to be taken: it makes the first photo in it wait for the others."""
WORKER_NICENESS = 3
"""Steps of niceness by which those who judge let the thread of the requests go first: it has little to do, and while it
waits its turn with Python's lock in hand nobody works (docs/performance.md)."""
OVERLAY_SIZE = 160
"""Pixels of the picture of the evidence: it is smooth, and drawn larger by the page."""


class Job(NamedTuple):
    """One photo: its name, its file's bytes, whether its evidence is wanted, and where the answer goes."""

    name: str
    content: bytes
    evidence: bool
    future: Future


class Batcher:
    """Takes photos in any number of threads; each answer is a `Future`."""

    def __init__(self, classifier: Classifier, max_batch_size: int | None = None) -> None:
        """`batch` is the most photos that are judged at once; without it, what is measured to be fastest here."""
        # One more than cores: while one waits for Python's lock, a core would have nothing to do (docs/performance.md).
        self.classifier, self.num_workers = classifier, runtime.available_cpus() + 1
        self.max_batch_size = max_batch_size or find_fastest_batch_size(classifier, self.num_workers)
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._run_worker, daemon=True) for _ in range(self.num_workers)]
        for thread in self.threads:
            thread.start()

    def submit(self, name: str, content: bytes, evidence: bool = False) -> Future:
        """-> the answer, as soon as somebody has it; cancelled in time, nobody works for it."""
        job = Job(name, content, evidence, Future())
        self.jobs.put(job)
        return job.future

    def close(self) -> None:
        """What was asked is answered first."""
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()

    def _run_worker(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            thread_id = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread_id, os.getpriority(os.PRIO_PROCESS, thread_id) + WORKER_NICENESS)
        while (job := self.jobs.get()) is not None:
            jobs, is_closing = [job], False
            while len(jobs) < self.max_batch_size and not is_closing:
                try:
                    next_job = self.jobs.get_nowait()
                except queue.Empty:
                    break
                is_closing = next_job is None
                jobs += [next_job] if next_job else []
            self._process_batch([job for job in jobs if job.future.set_running_or_notify_cancel()])
            if is_closing:
                break

    def _process_batch(self, jobs: list[Job]) -> None:
        decoded: list[tuple[Job, np.ndarray]] = []
        for job in jobs:
            try:
                decoded.append((job, preprocess(job.content, self.classifier.info.preprocessing)))
            except UnreadableImageError as error:
                job.future.set_result(Prediction(job.name, error=str(error)))
            except BaseException as unexpected:
                job.future.set_exception(unexpected)
        try:
            outputs = self.classifier.infer_batch(np.stack([photo for _, photo in decoded])) if decoded else []
            for (job, _), output in zip(decoded, outputs, strict=True):
                job.future.set_result(self._to_prediction(job, output))
        except BaseException as unexpected:
            for job, _ in decoded:
                if not job.future.done():
                    job.future.set_exception(unexpected)

    def _to_prediction(self, job: Job, outputs: ModelOutputs) -> Prediction:
        prediction = self.classifier.to_prediction(job.name, outputs)
        return replace(prediction, evidence=encode_overlay(outputs["evidence"])) if job.evidence else prediction


def encode_overlay(evidence: np.ndarray) -> str:
    """Evidence (h, w) -> a transparent PNG as a data URI, to be laid over what the network saw of the photo."""
    buffer = io.BytesIO()
    overlay.heatmap_layer(evidence, OVERLAY_SIZE).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def find_fastest_batch_size(classifier: Classifier, num_workers: int, min_seconds: float = 0.3) -> int:
    """The size of a batch at which so many threads judge most photos a second here."""
    size, images_per_second = classifier.info.preprocessing["size"], dict[int, float]()
    with ThreadPoolExecutor(num_workers) as pool:
        for batch in BATCH_SIZES:
            photos = np.zeros((batch, size, size, 3), np.uint8)
            list(pool.map(classifier.infer_batch, [photos] * num_workers))  # the first of a shape plans its memory
            started, n = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - started) < min_seconds:
                n += sum(map(len, pool.map(classifier.infer_batch, [photos] * num_workers)))
            images_per_second[batch] = n / elapsed
    best = max(images_per_second, key=lambda batch: images_per_second[batch])
    return best if images_per_second[best] > MIN_SPEEDUP * images_per_second[1] else 1
