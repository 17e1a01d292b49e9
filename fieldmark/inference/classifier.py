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
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.locate import ImageSource, find_images
from fieldmark.inference import bundle
from fieldmark.inference.writers import Prediction

PREFETCH_PER_WORKER = 4
"""Photos that a thread may be ahead of who asks: enough that a slow one keeps nobody waiting."""
ModelOutputs = dict[str, np.ndarray]
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

        self.file = bundle.find_onnx_file(model)
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
        self.info = bundle.validate_info(info, self.file)
        self.classes: list[str] = self.info["classes"]
        self.output_names = [output.name for output in self.session.get_outputs()]

    def infer(self, image: np.ndarray) -> ModelOutputs:
        """uint8 (h, w, 3) from `prepare` -> what the network says of it; in any number of threads."""
        return self.infer_batch(image[None])[0]

    def infer_batch(self, images: np.ndarray) -> list[ModelOutputs]:
        """The same of several at once, (n, h, w, 3)."""
        values = self.session.run(self.output_names, {"photos": images})
        return [dict(zip(self.output_names, map(np.asarray, row), strict=True)) for row in zip(*values, strict=True)]

    def infer_source(self, source: ImageSource | Path) -> ModelOutputs:
        """A photo's file or bytes -> what the network says of it. Raises Unreadable."""
        return self.infer(preprocess(source, self.info["preprocessing"]))

    def to_prediction(self, path: str, outputs: ModelOutputs, top: int = 5) -> Prediction:
        """What `judge` found, as an answer."""
        probabilities = outputs["probabilities"]
        top_indices = np.argsort(-probabilities, kind="stable")[:top]
        top_predictions = [{"label": self.classes[k], "confidence": float(probabilities[k])} for k in top_indices]
        is_known = bool(outputs["known_score"] >= self.info["threshold"])
        return {"path": path, **top_predictions[0], "known": is_known, "top": top_predictions}

    def predict(self, photos: str | Path | bytes | Iterable[str | Path | bytes], top: int = 5) -> list[Prediction]:
        """Answers for files, folders, globs, shards or a photo's bytes, in order; of a bad photo it has an `error`."""
        return list(self.stream([photos] if isinstance(photos, str | Path | bytes) else photos, top))

    def stream(
        self, photos: Iterable[str | Path | bytes], top: int = 5, skip: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Prediction]:
        """The same one by one, a few ahead in a thread for each core; photos that are `done` are left out."""
        sources = (source for source in find_images(photos) if not skip(source[0]))
        for path, result in parallel_map(sources, self.infer_source, runtime.available_cpus()):
            yield (
                {"path": path, "error": str(result)}
                if isinstance(result, UnreadableImageError)
                else self.to_prediction(path, result, top)
            )

    def read_model_card(self) -> str | None:
        """The model card of the training, where it lies beside the bundle."""
        try:
            return self.file.parents[1].joinpath("card.md").read_text(encoding="utf-8")
        except (OSError, ValueError, IndexError):
            return None


def parallel_map(
    sources: Iterable[tuple[Any, Any]], function: Callable[[Any], Any], num_workers: int = 1
) -> Generator[tuple[Any, Any], None, None]:
    """Works on some sources ahead, in threads. -> (name, what became of it or Unreadable) in order."""

    def attempt(source: Any) -> Any:
        try:
            return function(source)
        except UnreadableImageError as error:
            return error

    pool, pending = ThreadPoolExecutor(num_workers), deque[tuple[str, Future]]()
    try:
        for path, source in sources:
            pending.append((path, pool.submit(attempt, source)))
            if len(pending) > PREFETCH_PER_WORKER * num_workers:
                path, future = pending.popleft()
                yield path, future.result()
        while pending:
            path, future = pending.popleft()
            yield path, future.result()
    finally:  # whoever stops asking does not wait for what he has not asked for
        pool.shutdown(wait=True, cancel_futures=True)
