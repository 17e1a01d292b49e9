"""Predictions on a cluster: the classifier in a Ray actor for each CPU core, under Ray Data.

Ray distributes the images. It restarts an actor that dies and gives its batch to another, so that each image has one
prediction. The driver lists images, whose names wait in Ray's object store, and passes predictions on; it holds no more
than a few blocks.
"""

import importlib
import json
import logging
import os
import sys
import tempfile
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.locate import ContainedImage, ImageSource, RemoteImage, UnreadableSource, find_images, is_url
from fieldmark.inference import bundle
from fieldmark.inference.classifier import CPU, Classifier
from fieldmark.inference.prediction import Prediction

MIN_BLOCK_SIZE, MAX_BLOCK_SIZE, BLOCKS_PER_GROWTH_STEP = 200, 2_000, 100
"""Images of the first blocks, most images of a block, and blocks after which they grow: so that there are not too many.
When an actor dies, its block is predicted again."""
BATCH_SIZE = 50
"""Images of a call of an actor."""
SOURCE_TYPES: dict[str, Any] = {
    "bytes": b64decode,
    "file": str,
    "contained": ContainedImage,
    "remote": RemoteImage,
    "unreadable": UnreadableSource,
}


class RayPredictor:
    """A trained classifier on a Ray cluster; streams as `Classifier`, but in any order.

    Every machine needs Fieldmark and access to the images under the same names; the model is sent to it.

    Args:
        model: a run, a bundle or an exported .onnx file.
        address: of the cluster, "auto" or "HOST:6379"; by default each stream starts a cluster of this machine's cores,
            and stops it.
        allow_private_hosts: as for `Classifier`.

    Raises:
        FieldmarkError: there is no model, or the address is one of Ray's client.
        ModuleNotFoundError: ray is not installed.
    """

    def __init__(
        self, model: str | Path, address: str | None = None, *, allow_private_hosts: bool | None = None
    ) -> None:
        self.file, self.address = bundle.find_onnx_file(model), address
        self.allow_private_hosts = allow_private_hosts
        if address and address.startswith("ray://"):  # Ray Data does not support Ray's client
            raise FieldmarkError(
                f"--address {address}: run this on a machine of the cluster instead, with --address auto"
            )
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns that its default will change
        self.ray = importlib.import_module("ray")

    def stream(
        self, photos: Iterable[str | Path], top: int = 5, skip: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Prediction]:
        """As `Classifier.stream`, in any order.

        Raises:
            FieldmarkError: the model is damaged, or the cluster has no CPUs.
        """
        Classifier(self.file, CPU).warn_about_crops()
        self._connect()
        try:
            model_ref = self.ray.put(self.file.read_bytes())  # kept, so that an actor that is restarted can get it
            sources = find_images(photos, self.allow_private_hosts)
            if blocks := self._put_blocks(item for item in sources if not skip(item[0])):
                yield from self._predict_blocks(blocks, model_ref, top)
        finally:
            self.ray.shutdown()

    def _connect(self) -> None:
        """Connect to the cluster, or start one of this machine's cores."""
        options: dict[str, Any] = (
            {"address": self.address}
            if self.address
            else {"address": "local", "num_cpus": runtime.available_cpus(), "include_dashboard": False}
        )
        self.ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)

    def _put_blocks(self, sources: Iterator[tuple[str, ImageSource]]) -> list[Any]:
        """References of tables in Ray's object store with the names of all images."""
        import pyarrow as arrow

        blocks = list[Any]()

        def next_block() -> list[str]:
            size = min(MAX_BLOCK_SIZE, MIN_BLOCK_SIZE * (1 + len(blocks) // BLOCKS_PER_GROWTH_STEP))
            return [_serialize_source(item) for item in islice(sources, size)]

        while block := next_block():
            blocks.append(self.ray.put(arrow.table({"photo": block})))
        return blocks

    def _predict_blocks(self, blocks: list[Any], model_ref: Any, top: int) -> Iterator[Prediction]:
        ray_data = self.ray.data
        with warnings.catch_warnings(action="ignore"):  # about Ray's own settings
            ray_data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if not (cores := int(self.ray.cluster_resources().get("CPU", 0))):
            raise FieldmarkError(f"the Ray cluster at {self.address} has no CPUs: start worker nodes")
        results = ray_data.from_arrow_refs(blocks).map_batches(
            _PredictorActor,
            fn_constructor_args=([model_ref], top),
            batch_size=BATCH_SIZE,
            batch_format="pyarrow",
            compute=ray_data.ActorPoolStrategy(size=cores),
            num_cpus=1,
        )
        tables: Iterator[Any] = iter(results.iter_batches(batch_size=None, batch_format="pyarrow"))
        with _silence_stderr():
            first = next(tables)
        for table in chain([first], tables):
            yield from (Prediction.from_dict(json.loads(row)) for row in table["prediction"].to_pylist())


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard what Ray's C++ code writes to stderr while actors start: warnings about restarts that may fail."""
    sys.stderr.flush()
    saved_fd, null_fd = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_fd, 2)
    try:
        yield
    finally:
        os.dup2(saved_fd, 2)
        os.close(saved_fd)
        os.close(null_fd)


class _PredictorActor:
    """A classifier in a process of Ray: a table of image names -> a batch of predictions as JSON."""

    def __init__(self, model: list[Any], top: int) -> None:  # in a list, or Ray would replace it by the bytes
        import ray

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(ray.get(model[0]))
            self.classifier = Classifier(file, CPU)  # or every actor would open the machine's GPU
        self.top = top

    def __call__(self, photos: Any) -> dict[str, list[str]]:
        sources = map(_deserialize_source, photos["photo"].to_pylist())
        predictions = (self.classifier.predict_source(path, source, self.top) for path, source in sources)
        return {"prediction": [json.dumps(prediction.to_dict()) for prediction in predictions]}


def _serialize_source(item: tuple[str, ImageSource]) -> str:
    """Name and source of an image as JSON, also undecodable names; absolute, since actors run in another folder."""
    path, source = item
    if isinstance(source, bytes):
        return json.dumps([path, "bytes", b64encode(source).decode()])
    kind = next(name for name, source_type in SOURCE_TYPES.items() if type(source) is source_type)
    if isinstance(source, str):
        source = os.path.abspath(source)
    elif isinstance(source, ContainedImage) and not is_url(source.container):
        source = source._replace(container=os.path.abspath(source.container))
    return json.dumps([path, kind, *([source] if isinstance(source, str) else source)])


def _deserialize_source(text: str) -> tuple[str, ImageSource]:
    path, kind, *fields = json.loads(text)
    return path, SOURCE_TYPES[kind](*fields)
