"""A bounded, ordered map over threads."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

PREFETCH_PER_WORKER = 2
"""Calls in flight or finished for each thread before the consumer has to catch up: bounds the memory of results."""

_thread = threading.local()


def is_cancelled() -> bool:
    """Whether nobody waits for this call of `ordered_map` any more; what waits for a network should ask."""
    event = getattr(_thread, "cancelled", None)
    return event is not None and event.is_set()


def ordered_map(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Generator[R, None, None]:
    """`map` in `num_workers` threads (Pillow, NumPy and onnxruntime release the GIL), results in the order of `items`.

    `items` is consumed lazily, at most `PREFETCH_PER_WORKER * num_workers` items ahead of the consumer. Closing the
    generator cancels calls that have not begun, and tells the others (`is_cancelled`). An exception of a call is raised
    in its place.
    """
    cancelled, pending = threading.Event(), deque[Future[R]]()
    pool = ThreadPoolExecutor(num_workers, initializer=setattr, initargs=(_thread, "cancelled", cancelled))
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > PREFETCH_PER_WORKER * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)
