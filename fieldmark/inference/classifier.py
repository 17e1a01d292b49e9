"""Photo -> answer, without torch: decode, run `model.onnx`, name the class and say whether it is one of ours."""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.image import Unreadable, prepare
from fieldmark.data.locate import Source, each
from fieldmark.inference import bundle
from fieldmark.inference.writers import Answer

AHEAD = 4
"""Photos that a thread may be ahead of who asks: enough that a slow one keeps nobody waiting."""
Found = dict[str, np.ndarray]
"""What the network says of a photo: probabilities and logits (classes,), evidence (h, w), known_score ()."""


class Classifier:
    """A trained classifier, from a run, a bundle or an exported file.

    Photos go through one at a time, a thread for each core: on a CPU a batch is no faster, several threads for one
    photo are slower, and so a photo's answer never depends on its neighbours.

    >>> fieldmark.load("RUN").predict("photo.jpg")[0]["label"]  # doctest: +SKIP
    'glass'
    """

    def __init__(self, model: str | Path) -> None:
        import onnxruntime as ort

        self.file = bundle.find(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])
            info = json.loads(self.session.get_modelmeta().custom_metadata_map["fieldmark"])
        except KeyError:
            raise FieldmarkError(f"{self.file} was not exported by Fieldmark: it names no classes") from None
        except Exception as error:  # onnxruntime's own errors share no base but this
            raise FieldmarkError(f"{self.file} is damaged: {' '.join(str(error).split())[:200]}") from None
        self.info = bundle.check(info, self.file)
        self.classes: list[str] = self.info["classes"]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def judge(self, photo: np.ndarray) -> Found:
        """uint8 (h, w, 3) from `prepare` -> what the network says of it; in any number of threads."""
        return self.judge_all(photo[None])[0]

    def judge_all(self, photos: np.ndarray) -> list[Found]:
        """The same of several at once, (n, h, w, 3)."""
        values = self.session.run(self.outputs, {"photos": photos})
        return [dict(zip(self.outputs, map(np.asarray, one), strict=True)) for one in zip(*values, strict=True)]

    def look(self, source: Source | Path) -> Found:
        """A photo's file or bytes -> what the network says of it. Raises Unreadable."""
        return self.judge(prepare(source, self.info["preprocessing"]))

    def told(self, path: str, found: Found, top: int = 5) -> Answer:
        """What `judge` found, as an answer."""
        probabilities = found["probabilities"]
        best = np.argsort(-probabilities, kind="stable")[:top]
        names = [{"label": self.classes[k], "confidence": float(probabilities[k])} for k in best]
        known = bool(found["known_score"] >= self.info["threshold"])
        return {"path": path, **names[0], "known": known, "top": names}

    def predict(self, photos: str | Path | bytes | Iterable[str | Path | bytes], top: int = 5) -> list[Answer]:
        """Answers for files, folders, globs, shards or a photo's bytes, in order; of a bad photo it has an `error`."""
        return list(self.stream([photos] if isinstance(photos, str | Path | bytes) else photos, top))

    def stream(
        self, photos: Iterable[str | Path | bytes], top: int = 5, done: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Answer]:
        """The same one by one, a few ahead in a thread for each core; photos that are `done` are left out."""
        sources = (source for source in each(photos) if not done(source[0]))
        for path, found in ahead(sources, self.look, runtime.cores()):
            yield {"path": path, "error": str(found)} if isinstance(found, Unreadable) else self.told(path, found, top)

    def card(self) -> str | None:
        """The model card of the training, where it lies beside the bundle."""
        try:
            return self.file.parents[1].joinpath("card.md").read_text(encoding="utf-8")
        except (OSError, ValueError, IndexError):
            return None


def ahead(
    sources: Iterable[tuple[Any, Any]], work: Callable[[Any], Any], workers: int = 1
) -> Generator[tuple[Any, Any], None, None]:
    """Works on some sources ahead, in threads. -> (name, what became of it or Unreadable) in order."""

    def attempt(source: Any) -> Any:
        try:
            return work(source)
        except Unreadable as problem:
            return problem

    pool, waiting = ThreadPoolExecutor(workers), deque[tuple[str, Future]]()
    try:
        for path, source in sources:
            waiting.append((path, pool.submit(attempt, source)))
            if len(waiting) > AHEAD * workers:
                path, done = waiting.popleft()
                yield path, done.result()
        while waiting:
            path, done = waiting.popleft()
            yield path, done.result()
    finally:  # whoever stops asking does not wait for what he has not asked for
        pool.shutdown(wait=True, cancel_futures=True)
