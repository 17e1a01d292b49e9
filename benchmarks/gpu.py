"""Does a GPU give what the CPU gives, and how fast? Trains, resumes, predicts and times on both, within ten minutes.

    python benchmarks/gpu.py --out gpu.json                 # needs one GPU and elpv-dataset (`fieldmark[demo]`)
    python benchmarks/gpu.py --images MY_IMAGES --out gpu.json
    python benchmarks/gpu.py --dry-run --images-per-class 16 --epochs 2   # the CPU in the place of the GPU

1. Trains on the CPU and on the GPU with the same seed, in 32 bits: the same split, nearly the same linear probe, test
   accuracies within two standard errors of their difference.
2. Kills a training on the GPU in its fine-tuning, resumes it, and holds it against the undisturbed one.
3. Predicts the test images by torch on the GPU and by onnxruntime on the CPU: the same probabilities.
4. Times training and inference in images a second, on the GPU in bfloat16 too.

Exit code: 0 if all checks hold, 1 if one fails or the time is over, 2 without a GPU.
"""

import argparse
import csv
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fieldmark
from fieldmark.core import runtime
from fieldmark.core.errors import FieldmarkError
from fieldmark.data.dataset import Normalize
from fieldmark.data.image import preprocess
from fieldmark.data.splits import read_split_file
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.pipeline.demo import copy_solar_cells

ROOT = Path(__file__).resolve().parents[1]
PROBE_LOSS, AGREEMENT, RESUMED_LOSS, PROBABILITY = 0.02, 0.9, 1e-3, 2e-3
"""How far the two may be apart: validation loss of the linear probe; share of equal test predictions, at least;
validation losses of the resumed training; a probability. TF32, which PyTorch allows in convolutions, has 10 bits."""
BATCH, REPEATS = 64, 5


@dataclass(frozen=True)
class Check:
    """A measured value and the limit that it has to keep."""

    name: str
    value: float
    limit: float
    holds: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.name}: {self.value:.4g} (limit {self.limit:.4g})"


def at_most(name: str, value: float, limit: float) -> Check:
    return Check(name, float(value), limit, bool(value <= limit))


def at_least(name: str, value: float, limit: float) -> Check:
    return Check(name, float(value), limit, bool(value >= limit))


# ---- trainings, each a process of its own


@dataclass(frozen=True)
class Trainings:
    """Starts trainings on the images in `folder`, until `deadline` (`time.monotonic()`)."""

    images: Path
    folder: Path
    epochs: int
    further: tuple[str, ...]
    deadline: float

    def command(self, name: str, *words: str) -> list[str]:
        out = str(self.folder / name)
        command = [
            sys.executable,
            "-m",
            "fieldmark.cli",
            "train",
            str(self.images),
            "--out",
            out,
            "--json",
            "--seed",
            "0",
        ]
        return [*command, "--epochs", str(self.epochs), *self.further, *words]

    def environment(self, device: str) -> dict[str, str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        return os.environ | {"PYTHONPATH": str(ROOT), "FIELDMARK_CACHE": str(self.folder / "cache")} | hidden

    def run(self, name: str, device: str, *words: str) -> float:
        """Train -> seconds from start to end.

        Raises:
            RuntimeError: it failed.
            subprocess.TimeoutExpired: the time is over.
        """
        began = time.monotonic()
        done = subprocess.run(
            self.command(name, *words),
            env=self.environment(device),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=max(1.0, self.deadline - began),
        )
        if done.returncode:
            raise RuntimeError(f"the training {name} ended with {done.returncode}: {done.stderr[-2000:]}")
        return time.monotonic() - began

    def kill_in_fine_tuning(self, name: str, device: str, *words: str) -> bool:
        """Start a training and kill it after an epoch of fine-tuning -> whether it was still running."""
        log = (self.folder / f"{name}.log").open("wb")
        with (
            log,
            subprocess.Popen(
                self.command(name, *words), env=self.environment(device), cwd=self.folder, stdout=log, stderr=log
            ) as process,
        ):
            try:
                while process.poll() is None and not self._has_fine_tuned(name):
                    if time.monotonic() > self.deadline:
                        raise subprocess.TimeoutExpired(name, 0)
                    time.sleep(0.02)
                return process.poll() is None
            finally:
                process.send_signal(signal.SIGKILL)

    def _has_fine_tuned(self, name: str) -> bool:
        history = self.folder / name / "history.csv"
        return history.exists() and any(row.get("phase") == "2" for row in read_csv(history))


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def read_metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def read_losses(run: Path) -> list[float]:
    """Validation loss of each epoch."""
    return [float(row["val_loss"]) for row in read_csv(run / "history.csv")]


# ---- checks


def compare_trainings(on_cpu: Path, on_gpu: Path) -> list[Check]:
    """Two trainings of one seed on two devices."""
    one, other = (read_csv(run / "predictions.csv") for run in (on_cpu, on_gpu))
    splits = [(run / "split.csv").read_bytes() for run in (on_cpu, on_gpu)]
    same = [a["predicted"] == b["predicted"] for a, b in zip(one, other, strict=True)]
    probe = [
        next(float(row["val_loss"]) for row in reversed(read_csv(run / "history.csv")) if row["phase"] == "1")
        for run in (on_cpu, on_gpu)
    ]
    accuracy = [read_metrics(run)["test"]["accuracy"] for run in (on_cpu, on_gpu)]
    mean = statistics.fmean(accuracy)
    error = math.sqrt(2 * max(mean * (1 - mean), 1 / len(one)) / len(one))
    return [
        at_least("CPU and GPU have the same split", float(splits[0] == splits[1]), 1),
        at_most("difference of the linear probe's validation loss", abs(probe[0] - probe[1]), PROBE_LOSS),
        at_most("difference of the test accuracy", abs(accuracy[0] - accuracy[1]), 2 * error),
        at_least("share of equal test predictions", statistics.fmean(same), AGREEMENT),
    ]


def compare_resumed(whole: Path, resumed: Path, was_killed: bool) -> list[Check]:
    """A training that was killed and resumed, and one that was not."""
    losses, again = read_losses(whole), read_losses(resumed)
    differences = [abs(a - b) for a, b in zip(losses, again, strict=True)]
    return [
        at_least("the training was killed before its end", float(was_killed), 1),
        at_most("difference of a validation loss after resuming", max(differences), RESUMED_LOSS),
    ]


def equal_weights(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights to the bit."""
    networks = [bundle.load_network(run).state_dict() for run in (one, other)]
    return all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


@dataclass(frozen=True)
class TestImages:
    """The test images of a run as its network takes them."""

    pixels: list[np.ndarray]
    inputs: torch.Tensor  # float32 (n, 3, h, w)


def read_test_images(run: Path, images: Path, info: bundle.BundleInfo) -> TestImages:
    look = info.preprocessing
    photos = [photo for photo in read_split_file(run / "split.csv") if photo.split == "test"]
    pixels = [preprocess(images / photo.path, look) for photo in photos]
    normalise = Normalize(tuple(look["mean"]), tuple(look["std"]))
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return TestImages(pixels, normalise(stacked))


def compare_predictions(run: Path, images: Path, device: str) -> tuple[list[Check], dict[str, float]]:
    """model.onnx on the CPU and the network on a device: their probabilities, and images a second."""
    classifier, network = Classifier(run), bundle.load_network(run).to(device).eval()
    test = read_test_images(run, images, classifier.info)

    def by_torch(precision: torch.dtype = torch.float32) -> np.ndarray:
        parts = []
        with torch.inference_mode(), torch.autocast(device, precision, enabled=precision != torch.float32):
            for k in range(0, len(test.inputs), BATCH):
                logits = network(test.inputs[k : k + BATCH].to(device)).float()
                parts.append((logits / classifier.info.temperature).softmax(1).cpu())
        return torch.cat(parts).numpy()

    def by_onnx() -> np.ndarray:
        return np.stack([classifier.infer(image)["probabilities"] for image in test.pixels])

    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        exact, reference = by_torch(), by_onnx()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    checks = [
        at_most(
            "difference of a probability, torch on the GPU and onnxruntime",
            np.abs(exact - reference).max(),
            PROBABILITY,
        ),
        at_least("share of equal classes", float((exact.argmax(1) == reference.argmax(1)).mean()), 0.99),
    ]
    n = len(test.pixels)
    speed = {
        "inference by onnxruntime, one image at a time": n / median_seconds(by_onnx),
        f"inference by torch on {device}, batch {BATCH}": n / median_seconds(by_torch),
        f"inference by torch on {device}, batch {BATCH}, bfloat16": n
        / median_seconds(lambda: by_torch(torch.bfloat16)),
    }
    return checks, speed


def median_seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()  # copies its result to the CPU, which waits for the device
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def training_speed(run: Path) -> float:
    """Images a second in an epoch of fine-tuning, as the median over epochs."""
    images = sum(photo.split == "train" for photo in read_split_file(run / "split.csv"))
    seconds = [float(row["seconds"]) for row in read_csv(run / "history.csv") if row["phase"] == "2"]
    return images / statistics.median(seconds)


# ---- all of it


def take_images(given: Path | None, limit: int, out: Path) -> Path:
    """At most so many images of each class, copied: of the folder that is given, or of the demo's solar cells."""
    source = given or copy_solar_cells(out.with_name("all"))
    for folder in sorted(filter(Path.is_dir, source.iterdir())):
        (out / folder.name).mkdir(parents=True)
        files = sorted(filter(Path.is_file, folder.iterdir()))
        for file in files[:: max(1, len(files) // limit)][:limit]:
            shutil.copyfile(file, out / folder.name / file.name)
    return out


def measure(trainings: Trainings, gpu: str) -> dict[str, Any]:
    """Everything, as plain values; `gpu` is "cuda", or "cpu" in a dry run."""
    folder, exact = trainings.folder, ("--precision", "32")
    seconds = {"cpu": trainings.run("cpu", "cpu", *exact), "gpu": trainings.run("gpu", gpu, *exact)}
    seconds["gpu, automatic precision"] = trainings.run("auto", gpu)
    checks = compare_trainings(folder / "cpu", folder / "gpu")
    was_killed = trainings.kill_in_fine_tuning("resumed", gpu, *exact)
    trainings.run("resumed", gpu, *exact, "--resume")
    checks += compare_resumed(folder / "gpu", folder / "resumed", was_killed)
    predicted, speed = compare_predictions(folder / "gpu", trainings.images, gpu)
    for name, run in (("CPU, 32 bits", "cpu"), ("GPU, 32 bits", "gpu"), ("GPU, automatic precision", "auto")):
        speed[f"fine-tuning, {name}"] = training_speed(folder / run)
    return {
        "checks": [asdict(check) for check in [*checks, *predicted]],
        "resumed_to_the_bit": equal_weights(folder / "gpu", folder / "resumed"),
        "images_per_second": speed,
        "seconds_of_training": seconds,
        "test_accuracy": {name: read_metrics(folder / name)["test"]["accuracy"] for name in ("cpu", "gpu", "auto")},
    }


def describe_machine(gpu: str) -> dict[str, Any]:
    environment = {str(name): value for name, value in runtime.describe_environment().items()}
    if gpu == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = round(properties.total_memory / 2**30, 1)
        environment |= {"gpu": properties.name, "gpu_memory_GiB": memory, "cuda": str(torch.version.cuda)}
    return environment | {"system": platform.platform(), "fieldmark": fieldmark.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="class folders; by default the demo's solar cells")
    parser.add_argument("--images-per-class", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="last: options of every training")
    parser.add_argument("--seconds", type=float, default=600, help="after which it stops")
    parser.add_argument("--dry-run", action="store_true", help="the CPU in the place of the GPU")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    began = time.monotonic()
    if not (options.dry_run or torch.cuda.is_available()):
        print("no GPU: torch sees no CUDA device, so nothing was measured (--dry-run tries the script on the CPU)")
        return 2
    gpu = "cpu" if options.dry_run else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        try:
            images = take_images(options.images, options.images_per_class, Path(folder) / "images")
            further = tuple(options.train)
            trainings = Trainings(images, Path(folder), options.epochs, further, began + options.seconds)
            result = measure(trainings, gpu)
        except subprocess.TimeoutExpired:
            print(f"stopped: the {options.seconds:.0f} s are over (fewer --images-per-class, or more --seconds)")
            return 1
        except (FieldmarkError, RuntimeError) as error:
            print(f"stopped: {error}")
            return 1
    result |= {"dry_run": options.dry_run, "machine": describe_machine(gpu), "seconds": time.monotonic() - began}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_result(result)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


def print_result(result: dict[str, Any]) -> None:
    machine = result["machine"]
    where = (
        "the CPU in the place of a GPU (dry run)" if result["dry_run"] else f"{machine['gpu']}, CUDA {machine['cuda']}"
    )
    print(f"{where}; torch {machine['torch']}; {result['seconds']:.0f} s in all")
    for check in result["checks"]:
        print(Check(**check))
    print(f"weights of the resumed training equal to the bit: {'yes' if result['resumed_to_the_bit'] else 'no'}")
    for name, rate in result["images_per_second"].items():
        print(f"{rate:10.1f} images/s  {name}")
    for name, seconds in result["seconds_of_training"].items():
        print(f"{seconds:10.1f} s  whole training on the {name}")
    for name, accuracy in result["test_accuracy"].items():
        print(f"{100 * accuracy:10.1f} %  test accuracy, {name}")


if __name__ == "__main__":
    with runtime.torch_settings():
        code = main()
    sys.exit(code)
