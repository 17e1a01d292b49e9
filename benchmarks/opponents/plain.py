"""train/, val/ and test/ of class folders -> a well-tuned plain PyTorch loop; predictions as CSV.

    python benchmarks/opponents/plain.py TREE --weights lite0.safetensors --out predictions.csv

What somebody writes who knows how: photos decoded once into memory, channels_last, glibc told to keep its memory, a
thread per core and waiting ones asleep (`fieldmark.core.runtime.prepare`, so that both sides have the same), SGD with
Nesterov momentum over all layers, one cycle as long as the time allows, random resized crops and flips, label
smoothing, dropout as the weights' authors had it, no decay on norms and biases, the best of several looks at the
validation photos.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import predictions
import torch
from PIL import Image
from timm.models import create_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fieldmark.core import runtime

NETWORK = "tf_efficientnet_lite0"
BATCH, SIZE, SHORTER = 32, 224, 256
CLOSING = 3.0  # seconds kept for what no measurement foresees
LEAST = 10  # steps
Photos = list[tuple[Tensor, int]]
"""uint8 (3, h, w), shorter side SHORTER; label."""


def age() -> float:
    """Seconds since this process began (Linux): imports are part of the time."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def read(folder: Path) -> Photos:
    def decoded(sample: tuple[str, int]) -> tuple[Tensor, int]:
        with Image.open(sample[0]) as image:
            image.draft("RGB", (SHORTER, SHORTER))
            shrink = SHORTER / min(image.size)
            width, height = (round(shrink * side) for side in image.size)
            pixels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).permute(2, 0, 1), sample[1]

    with ThreadPoolExecutor(runtime.available_cpus()) as pool:
        return list(pool.map(decoded, ImageFolder(str(folder)).samples))


def batch(photos: Photos, look: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """-> float (n, 3, SIZE, SIZE) as the weights expect it, labels (n,)."""
    pixels = torch.stack([look(photo) for photo, _ in photos])
    normal = pixels.to(torch.float32, memory_format=torch.channels_last).sub_(127).div_(128)
    return normal, torch.tensor([label for _, label in photos])


class Training:
    """The network and what it learns from."""

    def __init__(self, tree: Path, weights: Path) -> None:
        self.train, self.val, self.test = (read(tree / side) for side in ("train", "val", "test"))
        classes = 1 + max(label for _, label in self.train)
        published = {"file": str(weights)}
        network = create_model(
            NETWORK, pretrained=True, pretrained_cfg_overlay=published, num_classes=classes, drop_rate=0.2
        )
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vary = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()])
        self.centre = v2.CenterCrop(SIZE)
        self.order: list[int] = []

    def gradients(self) -> None:
        """A step on the next photos, but for the optimiser's part."""
        if len(self.order) < BATCH:  # the few left over of a pass are dropped
            self.order = torch.randperm(len(self.train)).tolist()
        rows, self.order = self.order[:BATCH], self.order[BATCH:]
        self.network.train()
        inputs, labels = batch([self.train[row] for row in rows], self.vary)
        cross_entropy(self.network(inputs), labels, label_smoothing=0.1).backward()

    def probabilities(self, photos: Photos) -> Tensor:
        """-> (n, classes)."""
        self.network.eval()
        parts = []
        with torch.inference_mode():
            for k in range(0, len(photos), BATCH):
                inputs, _ = batch(photos[k : k + BATCH], self.centre)
                parts.append(self.network(inputs).softmax(1))
        return torch.cat(parts)

    def accuracy(self, photos: Photos) -> float:
        labels = torch.tensor([label for _, label in photos])
        return (self.probabilities(photos).argmax(1) == labels).double().mean().item()

    def plan(self, until: float) -> tuple[int, list[int]]:
        """How many steps fit, and after which of them to look at the validation photos: each pass of the second half.

        The measured steps leave nothing behind but their mark on the norms' running statistics.
        """
        step = statistics.median(seconds(self.gradients) for _ in range(5))
        self.network.zero_grad()
        look = seconds(lambda: self.accuracy(self.val[: 2 * BATCH])) / len(self.val[: 2 * BATCH])
        passes = max(1, len(self.train) // BATCH)
        left = (
            until - age() - CLOSING - look * (len(self.test) + 2 * len(self.val))
        )  # the validation photos once more at the end
        steps = int(left / (step + look * len(self.val) / passes / 2))
        if steps < LEAST:
            raise SystemExit(f"plain.py: {until:.0f} s are too few for {LEAST} steps: give more --seconds")
        return steps, list(range(steps, steps // 2, -passes))


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600, help="of the whole process, from its start")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    training = Training(options.tree, options.weights)
    network = training.network
    steps, looks = training.plan(options.seconds)
    decay, other = ([p for p in network.parameters() if (p.ndim > 1) is kind] for kind in (True, False))
    groups = [{"params": decay, "weight_decay": 1e-4}, {"params": other}]
    optimizer = SGD(groups, lr=options.lr, momentum=0.9, nesterov=True)
    schedule = OneCycleLR(optimizer, max_lr=options.lr, total_steps=steps, pct_start=0.3, cycle_momentum=False)
    best, kept = -1.0, {}
    for k in range(1, steps + 1):
        training.gradients()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if k in looks and (accuracy := training.accuracy(training.val)) >= best:
            best, kept = accuracy, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)
    for split, photos in (("val", training.val), ("test", training.test)):
        folder = ImageFolder(str(options.tree / split))
        files = [file for file, _ in folder.samples]
        predictions.write(options.out, split, files, training.probabilities(photos), folder.classes)


if __name__ == "__main__":
    main()
