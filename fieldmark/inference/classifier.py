"""Image -> prediction without torch: decode, run `model.onnx`, apply the out-of-distribution threshold."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.core.parallel import ordered_map
from fieldmark.core.text import one_line
from fieldmark.data.image import UnreadableImageError, preprocess
from fieldmark.inference.bundle import MODEL_ID_LENGTH, BundleInfo, find_onnx_file
from fieldmark.inference.inputs import ImageInput, InputSource, find_inputs, is_single
from fieldmark.inference.prediction import Prediction, RankedClass

if TYPE_CHECKING:
    import onnxruntime as ort

    from fieldmark.inference.embedding import Embedder

CPU = ("CPUExecutionProvider",)
GPU_PROVIDERS = {"CUDAExecutionProvider": {"use_tf32": "0"}, "ROCMExecutionProvider": {}}
"""Execution providers of onnxruntime that are used where they are installed, in this order, with their options: those
that compute in FP32, so that labels are those of the CPU, and from several threads. TensorRT, MIGraphX, CoreML and
OpenVINO may compute in lower precision or compile anew for each batch size; DirectML allows one thread only."""
CROPS_WARNING = (
    "the model was trained on images cropped to bounding boxes (--crop-boxes), but images to predict come without "
    "boxes: crop them to the object first"
)
ModelOutputs = dict[str, np.ndarray]
"""Outputs of the model for one image: probabilities and logits (classes,), evidence (h, w), known_score ()."""
logger = logging.getLogger("fieldmark.inference")


def create_session(
    model: str | Path | bytes, providers: Sequence[str] | None = None, threads: int = 1
) -> "ort.InferenceSession":
    """An onnxruntime session of a file or its content.

    Args:
        model: the file, or what is in it.
        providers: onnxruntime's execution providers in order of preference; by default the GPU's of `GPU_PROVIDERS` if
            it is installed and works, else the CPU's.
        threads: for one image, on the CPU.
    """
    with runtime.without_telemetry():
        import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    source = model if isinstance(model, bytes) else str(model)

    def create(names: Sequence[str]) -> ort.InferenceSession:
        chosen = [(name, GPU_PROVIDERS.get(name, {})) for name in names]
        return ort.InferenceSession(source, options, providers=chosen, enable_fallback=0)  # its own prints to stdout

    available = ort.get_available_providers()
    gpu = [name for name in GPU_PROVIDERS if name in available]
    if providers is not None or not gpu:
        return create(providers or CPU)
    try:
        return create([*gpu, *CPU])
    except Exception:  # no driver, no device: onnxruntime's own errors share no base but this
        return create(CPU)


class Classifier:
    """A trained classifier, from a run, a bundle or an exported file.

    Each image is predicted by one thread, as many at a time as there are CPU cores. A prediction does not depend on the
    other images of a call.

    Args:
        model: a run, a bundle, an exported .onnx file, or hf://user/name on the hub.
        providers: onnxruntime's execution providers in order of preference, for example `["CPUExecutionProvider"]`; by
            default a CUDA or ROCm GPU if onnxruntime supports it here, else the CPU.
        allow_private_hosts: also read images at addresses that lead to this machine or its own network, as
            http://127.0.0.1/photo.jpg; by default what the variable FIELDMARK_ALLOW_PRIVATE_HOSTS says, else not.

    Raises:
        FieldmarkError: there is no model, it is damaged, or a later version wrote it.

    >>> fieldmark.load("RUN").predict("photo.jpg").label  # doctest: +SKIP
    'glass'
    """

    def __init__(
        self,
        model: str | Path,
        providers: Sequence[str] | None = None,
        *,
        allow_private_hosts: bool | None = None,
    ) -> None:
        self.file, self.allow_private_hosts = find_onnx_file(model), allow_private_hosts
        try:
            self.session = create_session(self.file, providers)
            info = json.loads(self.session.get_modelmeta().custom_metadata_map["fieldmark"])
        except KeyError:
            raise FieldmarkError(f"{self.file} was not exported by Fieldmark: its metadata has no classes") from None
        except Exception as error:  # onnxruntime's own errors share no base but this
            raise FieldmarkError(f"{self.file} is damaged: {one_line(error)}") from None
        self.info = BundleInfo.from_dict(info, self.file)
        self.classes = self.info.classes
        self.output_names = [output.name for output in self.session.get_outputs()]
        self._has_warned = False
        self._embedder: Embedder | None = None

    @cached_property
    def model_id(self) -> str:
        """The identifier of the model, 12 hex digits: from its info, or of the file's bytes if it is older."""
        if self.info.model is not None:
            return self.info.model
        with self.file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()[:MODEL_ID_LENGTH]

    def infer(self, image: np.ndarray) -> ModelOutputs:
        """The outputs for one image, uint8 (size, size, 3) from `preprocess`; for any thread."""
        return self.infer_batch(image[None])[0]

    def infer_batch(self, images: np.ndarray) -> list[ModelOutputs]:
        """The outputs for each image of a batch, uint8 (n, size, size, 3)."""
        values = self.session.run(self.output_names, {"photos": images})
        return [dict(zip(self.output_names, map(np.asarray, row), strict=True)) for row in zip(*values, strict=True)]

    def infer_source(self, source: InputSource | Path) -> ModelOutputs:
        """The outputs for an image's file or bytes.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        return self.infer(preprocess(source, self.info.preprocessing))

    def to_prediction(self, path: str, outputs: ModelOutputs, top: int = 5) -> Prediction:
        """The prediction for the image `path` from the model's outputs, with its `top` most probable classes."""
        probabilities = outputs["probabilities"]
        ranked = tuple(
            RankedClass(self.classes[k], float(probabilities[k]))
            for k in np.argsort(-probabilities, kind="stable")[:top].tolist()
        )
        is_known = bool(outputs["known_score"] >= self.info.threshold)
        return Prediction(path, ranked[0].label, ranked[0].confidence, is_known, ranked, model=self.model_id)

    def predict_source(self, path: str, source: InputSource, top: int = 5) -> Prediction:
        """The prediction for one image, from any thread; an image that cannot be read gives one with `error`."""
        try:
            return self.to_prediction(path, self.infer_source(source), top)
        except UnreadableImageError as error:
            return Prediction(path, error=str(error))

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...] | Iterator[Any], top: int = 5) -> list[Prediction]: ...

    @overload
    def predict(self, images: ImageInput, top: int = 5) -> Any: ...

    def predict(self, images: ImageInput, top: int = 5) -> Any:
        """The `Prediction` for one image, or a list of them for several, in order.

        Args:
            images: a path, an address, bytes, a file opened in binary mode, a PIL image or a uint8 array
                (height, width, 3): one of these, or a list or an iterator of them. For a folder, a glob or an archive
                the result is a list.
            top: number of classes in `Prediction.top`.

        Raises:
            TypeError: something that is no image, such as an array of floats.
            ValueError: an array of a shape that no image has, a closed file, or one image that cannot be read. Of
                several images, one that cannot be read has a prediction with `error`.
        """
        if (single := self._find_single(images)) is None:
            return list(self.stream(images, top))
        self.warn_about_crops()
        return self.to_prediction(single[0], self._infer_or_raise(*single), top)

    def predict_proba(self, images: ImageInput) -> np.ndarray:
        """Probabilities of the classes: float32 (classes,) for one image, (n, classes) for several; as `predict`.

        Raises:
            TypeError, ValueError: as `predict`; also if one of several images cannot be read.
        """
        self.warn_about_crops()
        if (single := self._find_single(images)) is not None:
            return self._infer_or_raise(*single)["probabilities"]
        sources = find_inputs(images, self.allow_private_hosts)
        rows = ordered_map(lambda item: self._infer_or_raise(*item), sources, runtime.available_cpus())
        return np.array([row["probabilities"] for row in rows], np.float32).reshape(-1, len(self.classes))

    def embed(self, images: ImageInput) -> np.ndarray:
        """Features of the last layer before the classifier: float32 (d,) for one image, (n, d) for several.

        Needs PyTorch, and a run or a bundle in place of an exported file alone.
        """
        from fieldmark.inference.embedding import Embedder

        if self._embedder is None:
            self._embedder = Embedder(self.file.parent, self.info)
        if (single := self._find_single(images)) is not None:
            return self._embedder.embed(*single)
        rows = [self._embedder.embed(*item) for item in find_inputs(images, self.allow_private_hosts)]
        return np.array(rows, np.float32).reshape(len(rows), self._embedder.width)

    def _find_single(self, images: ImageInput) -> tuple[str, InputSource] | None:
        """Name and source of the image if this is one; None for several."""
        if not is_single(images):
            return None
        found = list(find_inputs(images, self.allow_private_hosts))
        return found[0] if len(found) == 1 else None  # an address may be that of a folder

    def _infer_or_raise(self, name: str, source: InputSource) -> ModelOutputs:
        try:
            return self.infer_source(source)
        except UnreadableImageError as error:
            raise ValueError(f"{name or 'the image'} cannot be predicted: {error}") from None

    def stream(
        self, images: ImageInput, top: int = 5, skip: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Prediction]:
        """Predictions one by one, also for a single image; images for whose path `skip` is true are left out.

        An image that cannot be read has a prediction with `error`.
        """
        self.warn_about_crops()
        sources = (source for source in find_inputs(images, self.allow_private_hosts) if not skip(source[0]))
        yield from ordered_map(
            lambda item: self.predict_source(item[0], item[1], top), sources, runtime.available_cpus()
        )

    def warn_about_crops(self) -> None:
        """Log a warning, once, if the model was trained on crops to bounding boxes: it predicts whole images."""
        if self.info.is_trained_on_crops and not self._has_warned:
            self._has_warned = True
            logger.warning(CROPS_WARNING)

    def read_model_card(self) -> str | None:
        """The model card of the run, if it lies beside the bundle."""
        try:
            return self.file.parents[1].joinpath("card.md").read_text(encoding="utf-8")
        except (OSError, ValueError, IndexError):
            return None
