"""train/, val/ and test/ of class folders -> timm's own train.py, its best checkpoint tested; figures as JSON.

    python benchmarks/opponents/by_timm.py TREE --weights lite0.safetensors --script train.py --seed 0

The script is `train.py` of the GitHub repository huggingface/pytorch-image-models, which no package brings; it must
know `--device` (versions before 1.0 do not run without a GPU). Its defaults are for ImageNet from scratch (300 epochs),
so LINE is the one fine-tuning example of its documentation (hfdocs/source/training_script.mdx), with 10 epochs in place
of 30, a warm-up of 1 epoch in place of 5 as they are so few, and a worker process per core. What the example leaves
open stays at the script's defaults: crops of 8 to 100 % of the photo, flips, colour jitter 0.4, label smoothing 0.1.
Further options go to the script, and win over LINE.
"""

import argparse
import csv
import json
import os
import runpy
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch
from timm.data.config import resolve_data_config
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.models import create_model

NETWORK = "tf_efficientnet_lite0"
LINE = "--batch-size 32 --epochs 10 --opt adamw --lr 1e-4 --weight-decay 0.01 --warmup-epochs 1"
MEAN, STD = 127 / 255, 128 / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        validation = train(options, further, Path(folder))
        test, n = judge(options.tree / "test", Path(folder) / "run" / "model_best.pth.tar")
    print(json.dumps({"test": test, "n": n, "validation": validation}))


def train(options: argparse.Namespace, further: list[str], out: Path) -> float:
    """train.py as if from the command line -> the best accuracy on the validation photos."""
    classes = len(list((options.tree / "train").iterdir()))
    words = {
        "data-dir": options.tree,
        "val-split": "val",
        "model": NETWORK,
        "num-classes": classes,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "workers": os.cpu_count(),
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
    with redirect_stdout(sys.stderr):
        runpy.run_path(str(options.script), run_name="__main__")
    with (out / "run" / "summary.csv").open(encoding="utf-8") as file:
        return max(float(row["eval_top1"]) for row in csv.DictReader(file)) / 100


def judge(photos: Path, checkpoint: Path) -> tuple[float, int]:
    """Accuracy of a checkpoint on a folder of class folders, and the number of photos: timm's validate.py in short."""
    classes = len(list(photos.iterdir()))
    network = create_model(NETWORK, num_classes=classes, checkpoint_path=str(checkpoint)).eval()
    seen = resolve_data_config({"mean": [MEAN] * 3, "std": [STD] * 3}, model=network)
    loader = create_loader(
        ImageDataset(str(photos)),
        batch_size=32,
        input_size=seen["input_size"],
        interpolation=seen["interpolation"],
        mean=seen["mean"],
        std=seen["std"],
        crop_pct=seen["crop_pct"],
        num_workers=os.cpu_count() or 1,
        device=torch.device("cpu"),
    )
    right = n = 0
    with torch.inference_mode():
        for batch, labels in loader:
            right += int((network(batch).argmax(1) == labels).sum())
            n += len(labels)
    return right / n, n


if __name__ == "__main__":
    main()
