"""Photos -> answers by many machines: the predictor, once for each core, under Ray Data.

Ray hands out the photos, starts a predictor again where one dies, and gives what that one had in hand to another, so
that each photo has one answer. This process lists photos, whose names wait in Ray's store, and passes answers on; it
holds no more than a few blocks.
"""

import importlib
import json
import logging
import os
import sys
import tempfile
import warnings
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
"""Photos of the first blocks and the most of one; they grow with every so many, or there would be too many of them. A
block is what is done again when a predictor dies."""
BATCH_SIZE = 50
"""Photos between two hand-overs."""
SOURCE_TYPES: dict[str, Any] = {"file": str, "held": ContainedImage, "remote": RemoteImage, "broken": UnreadableSource}


class RayPredictor:
    """The model on the Ray cluster at `address` ("auto", "HOST:6379"); as `Classifier`, but for the order of answers.

    Without an address, a cluster of this machine's cores is begun for each stream, and ended. Every machine needs
    Fieldmark and sees the photos under the same names; the model is sent to it.

    Raises:
        FieldmarkError: no model, or an address of another kind.
        ModuleNotFoundError: ray is not installed.
    """

    def __init__(self, model: str | Path, address: str | None = None) -> None:
        self.file, self.address = bundle.find_onnx_file(model), address
        if address and address.startswith("ray://"):  # Ray Data does not work through Ray's client
            raise FieldmarkError(f"--address {address}: ask from a machine of the cluster, with --address auto")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of its next version's default
        self.ray = importlib.import_module("ray")

    def stream(
        self, photos: Iterable[str | Path], top: int = 5, skip: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Prediction]:
        """What `Classifier.stream` gives, in any order. Raises FieldmarkError for a cluster without processors."""
        import pyarrow as arrow

        Classifier(self.file, CPU).warn_about_crops()
        ray, address = self.ray, self.address
        init_options: dict[str, Any] = (
            {"address": address} if address else {"address": "local", "num_cpus": runtime.available_cpus()}
        )
        if not address:
            init_options |= {"include_dashboard": False}
        ray.init(**init_options, log_to_driver=False, logging_level=logging.ERROR)
        try:
            with warnings.catch_warnings(action="ignore"):  # of its own settings, which it reads
                ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            model_ref = ray.put(self.file.read_bytes())  # named, so that it is there for a predictor that starts again
            sources = (item for item in find_images(photos) if not skip(item[0]))
            blocks = list[Any]()
            while block := list(
                islice(sources, min(MAX_BLOCK_SIZE, MIN_BLOCK_SIZE * (1 + len(blocks) // BLOCKS_PER_GROWTH_STEP)))
            ):
                blocks.append(ray.put(arrow.table({"photo": list(map(_serialize_source, block))})))
            if not blocks:
                return
            if not (cores := int(ray.cluster_resources().get("CPU", 0))):
                raise FieldmarkError(f"the Ray cluster at {address} has no processors: start some of its machines")
            results = ray.data.from_arrow_refs(blocks).map_batches(
                _PredictorActor,
                fn_constructor_args=([model_ref], top),
                batch_size=BATCH_SIZE,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=cores),
                num_cpus=1,
            )
            tables: Iterator[Any] = iter(results.iter_batches(batch_size=None, batch_format="pyarrow"))
            with _silence_stderr():
                first = next(tables)
            for table in chain([first], tables):
                yield from (Prediction.from_dict(json.loads(row)) for row in table["prediction"].to_pylist())
        finally:
            ray.shutdown()


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Lets go of what Ray's C++ writes to stderr when predictors begin: how they would fail to begin again."""
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
    """A predictor in a process of Ray's."""

    def __init__(self, model: list[Any], top: int) -> None:  # in a list, or Ray would pass the bytes themselves
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
    """A photo's name and place as JSON, whatever bytes their names hold; Ray's processes run in another folder."""
    path, source = item
    kind = next(name for name, source_type in SOURCE_TYPES.items() if type(source) is source_type)
    if isinstance(source, str):
        source = os.path.abspath(source)
    elif isinstance(source, ContainedImage) and not is_url(source.container):
        source = ContainedImage(os.path.abspath(source.container), source.name)
    return json.dumps([path, kind, *([source] if isinstance(source, str) else source)])


def _deserialize_source(text: str) -> tuple[str, ImageSource]:
    path, kind, *fields = json.loads(text)
    return path, SOURCE_TYPES[kind](*fields)
