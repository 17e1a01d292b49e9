"""Photo -> answer, without torch: decode, run `model.onnx`, name the class and say whether it is one of ours."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.data.locate import ImageSource, find_images
from fieldmark.inference import bundle
from fieldmark.inference.prediction import Prediction, RankedClass

ModelOutputs = dict[str, np.ndarray]
"""What the network says of a photo: probabilities and logits (classes,), evidence (h, w), known_score ()."""


class Classifier:
    """A trained classifier, from a run, a bundle or an exported file.

    Photos go through one at a time, a thread for each core: on a CPU a batch is no faster, several threads for one
    photo are slower, and so a photo's answer never depends on its neighbours.

    >>> fieldmark.load("RUN").predict("photo.jpg")[0].label  # doctest: +SKIP
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
        """The prediction for the image `path` from the model's outputs, with its `top` most probable classes."""
        probabilities = outputs["probabilities"]
        ranked = tuple(
            RankedClass(self.classes[k], float(probabilities[k]))
            for k in np.argsort(-probabilities, kind="stable")[:top].tolist()
        )
        is_known = bool(outputs["known_score"] >= self.info["threshold"])
        return Prediction(path, ranked[0].label, ranked[0].confidence, is_known, ranked)

    def predict_source(self, path: str, source: ImageSource, top: int = 5) -> Prediction:
        """The prediction for one image, from any thread; an image that cannot be read gives one with `error`."""
        try:
            return self.to_prediction(path, self.infer_source(source), top)
        except UnreadableImageError as error:
            return Prediction(path, error=str(error))

    def predict(self, photos: str | Path | bytes | Iterable[str | Path | bytes], top: int = 5) -> list[Prediction]:
        """Answers for files, folders, globs, shards or a photo's bytes, in order; of a bad photo it has an `error`."""
        return list(self.stream([photos] if isinstance(photos, str | Path | bytes) else photos, top))

    def stream(
        self, photos: Iterable[str | Path | bytes], top: int = 5, skip: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Prediction]:
        """The same one by one, a few ahead in a thread for each core; photos that are `done` are left out."""
        sources = (source for source in find_images(photos) if not skip(source[0]))
        yield from ordered_map(
            lambda item: self.predict_source(item[0], item[1], top), sources, runtime.available_cpus()
        )

    def read_model_card(self) -> str | None:
        """The model card of the training, where it lies beside the bundle."""
        try:
            return self.file.parents[1].joinpath("card.md").read_text(encoding="utf-8")
        except (OSError, ValueError, IndexError):
            return None
