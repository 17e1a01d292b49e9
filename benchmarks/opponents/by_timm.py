"""train/, val/ and test/ of class folders -> timm's train.py, its best checkpoint tested; predictions as CSV.

    python benchmarks/opponents/by_timm.py TREE --weights lite0.safetensors --seed 0 --out predictions.csv

`train.py` lies in the GitHub repository huggingface/pytorch-image-models, and no package brings it. Without `--script`
its steps on a CPU are done here by timm's own loader, loss, optimiser and schedule (it uses none of its AMP, EMA and
mixup by default); with it the script itself runs, of version 1.0 or later, which knows `--device`. Its defaults are for
ImageNet from scratch (300 epochs), so LINE is the one fine-tuning example of its documentation
(hfdocs/source/training_script.mdx), with 10 epochs in place of 30, a warm-up of 1 epoch in place of 5 as they are so
few, and a worker process per core. What the example leaves open stays at the script's defaults: crops of 8 to 100 % of
the image, flips, colour jitter 0.4, label smoothing 0.1. Further options go to the script, and win over LINE.
"""

import argparse
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import predictions
import torch
from timm.data.config import resolve_data_config
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
from timm.models import create_model
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.misc import natural_key
from torch import Tensor, nn

NETWORK = "tf_efficientnet_lite0"
LINE = "--batch-size 32 --epochs 10 --opt adamw --lr 1e-4 --weight-decay 0.01 --warmup-epochs 1"
MEAN, STD = 127 / 255, 128 / 255
WORKERS = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options, further = parser.parse_known_args()
    classes = sorted((folder.name for folder in (options.tree / "train").iterdir()), key=natural_key)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        if options.script:
            network = run_script(options, further, len(classes), Path(folder))
        else:
            network = train(options, further, len(classes))
        for split in ("val", "test"):
            images = ImageDataset(str(options.tree / split))
            outputs = torch.cat([logits for logits, _ in infer(network, images)])
            files = map(str, images.filenames(absolute=True))
            predictions.write(options.out, split, files, outputs.softmax(1), classes)


def run_script(options: argparse.Namespace, further: list[str], classes: int, out: Path) -> nn.Module:
    """train.py as if from the command line -> its best checkpoint."""
    words = {
        "data-dir": options.tree,
        "val-split": "val",
        "model": NETWORK,
        "num-classes": classes,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "workers": WORKERS,
        "device": "cpu",
        "seed": options.seed,
        "output": out,
        "experiment": "run",
        "checkpoint-hist": 1,
        "model-kwargs": f"pretrained_cfg_overlay={{'file': '{options.weights}'}}",
    }
    sys.argv = [str(options.script), "--pretrained", *LINE.split()]
    for name, value in words.items():
        sys.argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    sys.argv += further
    runpy.run_path(str(options.script), run_name="__main__")
    checkpoint = out / "run" / "model_best.pth.tar"
    return create_model(NETWORK, num_classes=classes, checkpoint_path=str(checkpoint)).eval()


def train(options: argparse.Namespace, further: list[str], classes: int) -> nn.Module:
    """What train.py does on a CPU with LINE -> the network of its best epoch."""
    parser = argparse.ArgumentParser()
    for name, kind in (("batch-size", int), ("epochs", int), ("lr", float), ("weight-decay", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--opt")
    parser.add_argument("--warmup-epochs", type=int)
    line = parser.parse_args([*LINE.split(), *further])
    torch.manual_seed(options.seed)
    published = {"file": str(options.weights)}
    network = create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=published, num_classes=classes)
    loader = create_loader(
        ImageDataset(str(options.tree / "train")),
        input_size=(3, 224, 224),
        batch_size=line.batch_size,
        is_training=True,
        interpolation="random",
        color_jitter=0.4,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    optimizer = create_optimizer_v2(network, opt=line.opt, lr=line.lr, weight_decay=line.weight_decay, momentum=0.9)
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=line.epochs, warmup_epochs=line.warmup_epochs, warmup_lr=1e-5, min_lr=0.0
    )
    assert schedule is not None
    validation, best, kept = ImageDataset(str(options.tree / "val")), -1.0, {}
    for epoch in range(line.epochs):
        network.train()
        for images, labels in loader:
            loss(network(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        accuracy = measure_accuracy(network.eval(), validation)
        if accuracy > best:
            best, kept = accuracy, {name: tensor.clone() for name, tensor in network.state_dict().items()}
        schedule.step(epoch + 1, accuracy)
        print(f"epoch {epoch}: {100 * accuracy:.1f} % of the validation images")
    network.load_state_dict(kept)
    return network


def measure_accuracy(network: nn.Module, images: ImageDataset) -> float:
    return sum(int((logits.argmax(1) == labels).sum()) for logits, labels in infer(network, images)) / len(images)


def infer(network: nn.Module, images: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, labels) of each batch, as timm's validate.py sees the images."""
    config = resolve_data_config({"mean": [MEAN] * 3, "std": [STD] * 3}, model=network)
    loader = create_loader(
        images,
        batch_size=32,
        input_size=config["input_size"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    with torch.inference_mode():
        for batch, labels in loader:
            yield network(batch), labels


if __name__ == "__main__":
    main()
