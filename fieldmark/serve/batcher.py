"""Dynamic batching: threads that decode uploaded images and predict them, several at once where that is faster."""

import base64
import io
import os
import queue
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.timing import measure
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.explanation import overlay
from fieldmark.inference.classifier import Classifier, ModelOutputs
from fieldmark.inference.prediction import Prediction

BATCH_SIZES = (1, 4, 8)
"""Batch sizes that are measured when the service starts."""
MIN_SPEEDUP = 1.1
"""Speed-up from which a larger batch is used: it makes the first image of a batch wait for the others."""
WORKER_NICENESS = 3
"""Niceness of the workers relative to the thread of the event loop, which has little to do and must not wait for a core
while it holds the GIL (docs/lab/prediction.md)."""
OVERLAY_SIZE = 160
"""Side in pixels of the class activation map: it is smooth, and the page enlarges it."""


class Job(NamedTuple):
    """One image to be predicted."""

    name: str
    """File name, the `path` of the prediction."""
    content: bytes
    """Content of the file."""
    evidence: bool
    """Whether the prediction gets its class activation map."""
    future: Future[Prediction]


class Batcher:
    """Predicts images that any number of threads submit.

    Args:
        classifier: the model.
        max_batch_size: most images in a batch; by default the fastest of `BATCH_SIZES` on this machine, as measured.
    """

    def __init__(self, classifier: Classifier, max_batch_size: int | None = None) -> None:
        # One more than cores: while one waits for the GIL, a core would be idle (docs/lab/prediction.md).
        self.classifier, self.num_workers = classifier, runtime.available_cpus() + 1
        self.max_batch_size = max_batch_size or find_fastest_batch_size(classifier, self.num_workers)
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=self._run_worker, daemon=True) for _ in range(self.num_workers)]
        for thread in self.threads:
            thread.start()

    def submit(self, name: str, content: bytes, evidence: bool = False) -> Future[Prediction]:
        """The future prediction for an image file's content; cancelled before a worker takes it, it costs nothing.

        Args:
            name: `path` of the prediction.
            content: the bytes of the file.
            evidence: whether to draw the class activation map (`Prediction.evidence`).
        """
        job = Job(name, content, evidence, Future())
        self.jobs.put(job)
        return job.future

    def close(self) -> None:
        """Predict what has been submitted, then stop the workers. Nothing may be submitted any more."""
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()

    def _run_worker(self) -> None:
        _lower_priority()
        while batch := self._next_batch():
            self._process_batch([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[Job]:
        """Wait for a job and take those behind it, at most `max_batch_size`; empty once the batcher is closed."""
        if (job := self.jobs.get()) is None:
            return []
        batch = [job]
        while len(batch) < self.max_batch_size:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self.jobs.put(None)  # stops this worker after the batch
                break
            batch.append(job)
        return batch

    def _process_batch(self, jobs: list[Job]) -> None:
        decoded = [(job, image) for job in jobs if (image := self._decode(job)) is not None]
        try:
            outputs = self.classifier.infer_batch(np.stack([image for _, image in decoded])) if decoded else []
            for (job, _), output in zip(decoded, outputs, strict=True):
                job.future.set_result(self._to_prediction(job, output))
        except BaseException as error:
            for job, _ in decoded:
                if not job.future.done():
                    job.future.set_exception(error)

    def _decode(self, job: Job) -> np.ndarray | None:
        """The preprocessed image, uint8 (size, size, 3); None if it cannot be decoded, which finishes the job."""
        try:
            return preprocess(job.content, self.classifier.info.preprocessing)
        except UnreadableImageError as error:
            job.future.set_result(Prediction(job.name, error=str(error)))
        except BaseException as error:
            job.future.set_exception(error)
        return None

    def _to_prediction(self, job: Job, outputs: ModelOutputs) -> Prediction:
        prediction = self.classifier.to_prediction(job.name, outputs)
        return replace(prediction, evidence=encode_overlay(outputs["evidence"])) if job.evidence else prediction


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        thread_id = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread_id, os.getpriority(os.PRIO_PROCESS, thread_id) + WORKER_NICENESS)


def encode_overlay(evidence: np.ndarray) -> str:
    """A class activation map (h, w) as a transparent PNG in a data URI; it covers the network's crop of the image."""
    buffer = io.BytesIO()
    overlay.heatmap_layer(evidence, OVERLAY_SIZE).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def find_fastest_batch_size(classifier: Classifier, num_workers: int, min_seconds: float = 0.3) -> int:
    """The batch size of `BATCH_SIZES` with the highest throughput in `num_workers` threads.

    1 unless another is faster by `MIN_SPEEDUP`. Each size is measured for at least `min_seconds`.
    """
    size, images_per_second = classifier.info.preprocessing["size"], dict[int, float]()
    with ThreadPoolExecutor(num_workers) as pool:
        for batch_size in BATCH_SIZES:
            batches = [np.zeros((batch_size, size, size, 3), np.uint8)] * num_workers
            infer_all = partial(_run_all, pool, classifier, batches)
            timing = measure(infer_all, runs=1, min_seconds=min_seconds)  # after a warm-up, which plans the memory
            images_per_second[batch_size] = batch_size * num_workers / timing.mean
    best = max(images_per_second, key=images_per_second.__getitem__)
    return best if images_per_second[best] > MIN_SPEEDUP * images_per_second[1] else 1


def _run_all(pool: ThreadPoolExecutor, classifier: Classifier, batches: list[np.ndarray]) -> None:
    for _ in pool.map(classifier.infer_batch, batches):
        pass
