"""Fixtures that several test modules share."""

import atexit
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Workers of pytest-xdist have a core each, and so have the processes that they start: two threads on it would wait for
# each other. What a test says of threads and bits holds for one thread as for two. Before numpy is imported, whose
# OpenBLAS counts the cores then; where there are fewer, its threads spin (test_alike and test_prepare: 21 s, so 17).
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
OWN = CORES
if CORES and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    OWN = [CORES[int(worker.removeprefix("gw")) % len(CORES)]]
    os.sched_setaffinity(0, OWN)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from addresses import WebServer, serving  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

# No example is timed, since the machine may be busy; examples of one test may share its folder.
CHECKS = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
settings.register_profile("fieldmark", deadline=None, suppress_health_check=CHECKS)
settings.load_profile("fieldmark")

# No test, nor a process that one starts, writes into the cache of whoever runs it. The workers share one.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["FIELDMARK_CACHE"] = tempfile.mkdtemp(prefix="fieldmark-")
    atexit.register(shutil.rmtree, os.environ["FIELDMARK_CACHE"], ignore_errors=True)


@contextmanager
def running_on(cores: list[int]) -> Iterator[None]:
    """This process, and those that it starts, run on these cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """All of the machine's cores again, from here to the end of the module: for what needs several."""
    with running_on(CORES):
        yield


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A name and a function that fills a folder -> that folder.

    The workers share the folder: the first that needs it makes it, the other waits. It is made on the worker's core,
    under `all_cores` too, so that the bits are the same whoever makes it.
    """
    folder = tmp_path_factory.getbasetemp()
    common = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "common"

    def make(name: str, function: Callable[[Path], None]) -> Path:
        place, done = common / name, common / f"{name}.done"
        common.mkdir(exist_ok=True)
        with FileLock(common / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                with running_on(OWN):
                    function(place)
                done.touch()
        return place

    return make


LONG = (
    *("commands", "multiple_processes", "resume", "main", "serve", "search", "check", "page", "settings", "compose"),
    *("train", "compare", "full_disk", "onnx", "bad_input", "attacks", "ray", "zoo", "profile", "docs"),
)
"""Modules that come first, or the worker that has one of them at the end lets the other wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}.py" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the photos {name} in {SHARED}, which are not here")
    return folder


@pytest.fixture(scope="session")
def trashnet() -> Path:
    """TrashNet: six class folders, 2,527 photos of 512 x 384 pixels."""
    return _shared("trashnet")


@pytest.fixture(scope="session")
def birds100() -> Path:
    """A hundred bird species of CUB-200-2011 in train/ and test/, 227 x 227 pixels."""
    return _shared("birds100")


def synthetic(kind: int, number: int) -> Image.Image:
    """A red disc, a green square or a blue cross, 80 to 110 pixels wide, on noise: no two alike to the audit."""
    rng = np.random.default_rng((kind, number))
    w, h = int(rng.integers(80, 111)), int(rng.integers(64, 81))
    coarse = Image.fromarray(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((w, h), Image.Resampling.BICUBIC)
    drawn, r = ImageDraw.Draw(image), int(rng.integers(14, 25))
    x, y = int(rng.integers(r, w - r)), int(rng.integers(r, h - r))
    colour = [int(c) for c in rng.integers(0, 40, 3)]
    colour[kind] = int(rng.integers(215, 256))
    box = (x - r, y - r, x + r, y + r)
    if kind == 0:
        drawn.ellipse(box, tuple(colour))
    elif kind == 1:
        drawn.rectangle(box, tuple(colour))
    else:
        drawn.line((x - r, y, x + r, y), tuple(colour), 12)
        drawn.line((x, y - r, x, y + r), tuple(colour), 12)
    noise = rng.integers(-12, 13, (h, w, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def small_photos(make_once) -> Path:
    """Three classes of 16 synthetic photos of about 96 x 72 pixels, which a network tells apart at once."""

    def draw(folder: Path) -> None:
        for kind, label in enumerate(("disc", "square", "cross, blue")):
            (folder / "photos" / label).mkdir(parents=True)
            for number in range(16):
                synthetic(kind, number).save(folder / "photos" / label / f"{number:02}.jpg", quality=90)

    return make_once("small", draw) / "photos"


@pytest.fixture(scope="session")
def small_run(small_photos: Path, make_once) -> Path:
    """The folder of a finished run on `small_photos`, through both phases; never write into it."""

    def train(folder: Path) -> None:
        import fieldmark

        recipe = fieldmark.Recipe(image_size=64, train_size=64, epochs=1, batch=8)
        fieldmark.train(small_photos, recipe, out=folder / "run")

    return make_once("run", train) / "run"


@pytest.fixture(scope="session")
def crops_model(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `small_run`, with the metadata of a training with --crop-boxes."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(small_run / "bundle" / "model.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == "fieldmark")
    info = json.loads(entry.value)
    info["preprocessing"]["boxes"] = True
    entry.value = json.dumps(info)
    onnx.save(model, file := tmp_path_factory.mktemp("crops") / "model.onnx")
    return file


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float = 0.0  # of the whole process

    @property
    def json(self) -> Any:
        """What stdout holds: one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def refusal(self) -> str:
        """The one line on stderr of a command that could not do its work."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.startswith("fieldmark: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("fieldmark: ").strip()


@pytest.fixture(scope="session")
def command() -> Callable[..., Done]:
    """Runs `fieldmark ARGUMENTS` as a process of its own, in which Python's warnings are heard."""

    def run(*arguments: object, stdin: bytes = b"", **environment: str) -> Done:
        heard = os.environ | {"PYTHONWARNINGS": "default"} | environment
        program, began = [sys.executable, "-m", "fieldmark.cli", *map(str, arguments)], time.monotonic()
        done = subprocess.run(program, input=stdin, capture_output=True, env=heard, timeout=300)
        assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode(), time.monotonic() - began)

    return run


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs `fieldmark ARGUMENTS` in this process: saves the seconds in which torch is imported."""

    def run(*arguments: object) -> Done:
        from fieldmark.cli import main

        monkeypatch.setattr(sys, "argv", ["fieldmark", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def small_options() -> list[str]:
    """The settings of `small_run` as words on the command line."""
    return shlex.split("--image-size 64 --train-size 64 --epochs 1 --batch 8")


@pytest.fixture(scope="session")
def tiny_options() -> list[str]:
    """The quickest training there is: from scratch, on 32 x 32 pixels; what it learns is worth nothing."""
    network = "--backbone vgg11_mnist --head linear --weights none"
    return shlex.split(f"{network} --image-size 32 --train-size 32 --epochs 1 --batch 8")


@pytest.fixture(scope="session")
def trained(small_photos: Path, small_options: list[str], make_once, command: Callable[..., Done]) -> tuple[Path, Done]:
    """What `small_run` is, made on the command line: its folder and how the command ended; never write into it.

    The folder is there, but without a checkpoint: --resume then starts anew.
    """

    def train(folder: Path) -> None:
        run = folder / "run"
        run.mkdir()
        done = command("train", small_photos, "--out", run, "--resume", "--json", *small_options)
        (folder / "done.json").write_text(json.dumps(asdict(done)))

    folder = make_once("trained", train)
    return folder / "run", Done(**json.loads((folder / "done.json").read_text()))


@dataclass(frozen=True)
class Ended:
    """How a run of `start` ended: what it said is on stdout and stderr together."""

    code: int
    seconds: float
    said: str


@pytest.fixture(scope="session")
def start(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ended]]:
    """Starts a run on `small_photos` in a folder, or goes on with it. -> how it ended. The jobs are those of forked.py:
    quick, since torch is there already, and killed where one wants.
    """
    said = tmp_path_factory.mktemp("said") / "said.txt"
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads do not live through a fork
    program = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone) as server:
        stdout = server.stdout
        assert server.stdin and stdout

        def start(out: Path, options: list[str], **job: Any) -> Ended:
            job |= {"photos": str(small_photos), "out": str(out), "options": options, "said": str(said)}
            print(json.dumps(job), file=server.stdin, flush=True)
            code, seconds = stdout.readline().split()
            written = said.read_text(errors="replace")
            assert "Traceback" not in written, written
            return Ended(int(code), float(seconds), written)

        yield start
        server.stdin.close()


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    """A server that answers well, badly, late or never."""
    with serving() as server:
        yield server


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are asked again at once, and the environment permits no private ones."""
    from fieldmark.data import http

    monkeypatch.setattr(http, "BACKOFF_SECONDS", 0.01)
    monkeypatch.delenv(http.ALLOW_VARIABLE, raising=False)


@pytest.fixture(scope="session")
def packed(drawing) -> Callable[[Path, int], Any]:
    """Folder, pixels of a side -> thirty packed photos of three classes: 18 to train on, 6 to choose by, 6 to test."""
    from fieldmark.audit.audit import DecodedImage
    from fieldmark.data.cache.pack import MemmapWriter
    from fieldmark.data.dataset import DatasetSplits

    def pack(folder: Path, side: int) -> DatasetSplits:
        packer = MemmapWriter(folder)
        for number in range(30):
            photo = np.asarray(drawing(number % 3, 200 + number).resize((side, side)))
            packer.add(DecodedImage(f"{number:064x}", photo, (0, 0), np.zeros((16, 16, 3))))
        return DatasetSplits(packer.finish(), np.arange(30) % 3, np.arange(18), np.arange(18, 24), np.arange(24, 30))

    return pack


@pytest.fixture(scope="session")
def few(packed, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Those of 73 pixels."""
    return packed(tmp_path_factory.mktemp("few"), 73)


@pytest.fixture
def trainer(few, tmp_path: Path) -> Callable[..., Any]:
    """Settings -> a Trainer of EfficientNet-Lite0 on `few`, in a folder of its own."""
    import torch

    from fieldmark.core.progress import Reporter
    from fieldmark.recipes.recipe import Recipe
    from fieldmark.training import distributed
    from fieldmark.training.model_factory import build_network
    from fieldmark.training.trainer import Trainer

    def make(words: str = "", data: Any = few, loggers: Any = None, **settings: Any) -> Trainer:
        usual = {"image_size": 64, "train_size": 64, "batch": 6, "epochs": 2, "backbone": "efficientnet_lite0"}
        recipe = Recipe(**usual | settings)
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.replace(backbone=f"{recipe.backbone}{words}"), 3)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        return Trainer(network, data, recipe, folder, Reporter(quiet=True), distributed.make_fabric(recipe), loggers)

    return make


@pytest.fixture(scope="session")
def drawing() -> Callable[[int, int], Image.Image]:
    """`synthetic`, for photos beside those of `small_photos`: numbers from 100 on."""
    return synthetic
