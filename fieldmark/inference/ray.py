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
from fieldmark.data.image import Unreadable
from fieldmark.data.locate import Broken, Held, Remote, Source, each, is_remote
from fieldmark.inference import bundle
from fieldmark.inference.writers import Answer

LEAST, MOST, GROWTH = 200, 2_000, 100
"""Photos of the first blocks and the most of one; they grow with every so many, or there would be too many of them. A
block is what is done again when a predictor dies."""
AT_ONCE = 50
"""Photos between two hand-overs."""
KINDS: dict[str, Any] = {"file": str, "held": Held, "remote": Remote, "broken": Broken}


class Cluster:
    """The model on the Ray cluster at `address` ("auto", "HOST:6379"); as `Classifier`, but for the order of answers.

    Without an address, a cluster of this machine's cores is begun for each stream, and ended. Every machine needs
    Fieldmark and sees the photos under the same names; the model is sent to it.

    Raises:
        FieldmarkError: no model, or an address of another kind.
        ModuleNotFoundError: ray is not installed.
    """

    def __init__(self, model: str | Path, address: str | None = None) -> None:
        self.file, self.address = bundle.find(model), address
        if address and address.startswith("ray://"):  # Ray Data does not work through Ray's client
            raise FieldmarkError(f"--address {address}: ask from a machine of the cluster, with --address auto")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of its next version's default
        self.ray = importlib.import_module("ray")

    def stream(
        self, photos: Iterable[str | Path], top: int = 5, done: Callable[[str], bool] = lambda path: False
    ) -> Iterator[Answer]:
        """What `Classifier.stream` gives, in any order. Raises FieldmarkError for a cluster without processors."""
        import pyarrow as arrow

        ray, address = self.ray, self.address
        how: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": runtime.cores()}
        if not address:
            how |= {"include_dashboard": False}
        ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
        try:
            with warnings.catch_warnings(action="ignore"):  # of its own settings, which it reads
                ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            whole = ray.put(self.file.read_bytes())  # named, so that it is there for a predictor that starts again
            sources = (place for place in each(photos) if not done(place[0]))
            blocks = list[Any]()
            while some := list(islice(sources, min(MOST, LEAST * (1 + len(blocks) // GROWTH)))):
                blocks.append(ray.put(arrow.table({"photo": list(map(_written, some))})))
            if not blocks:
                return
            if not (cores := int(ray.cluster_resources().get("CPU", 0))):
                raise FieldmarkError(f"the Ray cluster at {address} has no processors: start some of its machines")
            answered = ray.data.from_arrow_refs(blocks).map_batches(
                _Judge,
                fn_constructor_args=([whole], top),
                batch_size=AT_ONCE,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=cores),
                num_cpus=1,
            )
            tables: Iterator[Any] = iter(answered.iter_batches(batch_size=None, batch_format="pyarrow"))
            with _hushed():
                first = next(tables)
            for table in chain([first], tables):
                yield from map(json.loads, table["answer"].to_pylist())
        finally:
            ray.shutdown()


@contextmanager
def _hushed() -> Iterator[None]:
    """Lets go of what Ray's C++ writes to stderr when predictors begin: how they would fail to begin again."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Judge:
    """A predictor in a process of Ray's."""

    def __init__(self, model: list[Any], top: int) -> None:  # in a list, or Ray would pass the bytes themselves
        import ray

        from fieldmark.inference.classifier import Classifier

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(ray.get(model[0]))
            self.classifier = Classifier(file)
        self.top = top

    def __call__(self, photos: Any) -> dict[str, list[str]]:
        return {"answer": [json.dumps(self._answer(*_read(text))) for text in photos["photo"].to_pylist()]}

    def _answer(self, path: str, source: Source) -> Answer:
        try:
            return self.classifier.told(path, self.classifier.look(source), self.top)
        except Unreadable as error:
            return {"path": path, "error": str(error)}


def _written(place: tuple[str, Source]) -> str:
    """A photo's name and place as JSON, whatever bytes their names hold; Ray's processes run in another folder."""
    path, source = place
    kind = next(name for name, of in KINDS.items() if type(source) is of)
    if isinstance(source, str):
        source = os.path.abspath(source)
    elif isinstance(source, Held) and not is_remote(source.holder):
        source = Held(os.path.abspath(source.holder), source.name)
    return json.dumps([path, kind, *([source] if isinstance(source, str) else source)])


def _read(text: str) -> tuple[str, Source]:
    path, kind, *words = json.loads(text)
    return path, KINDS[kind](*words)
