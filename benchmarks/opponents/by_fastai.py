"""train/, val/ and test/ of class folders -> fastai's `fine_tune(5)` with its defaults; predictions as CSV.

    FASTAI/bin/python benchmarks/opponents/by_fastai.py TREE --weights lite0.safetensors --seed 0 --out predictions.csv

The lines of fastai's vision tutorial with the smallest images that it uses, `Resize(224)`, and its `aug_transforms()`.
All else is what fastai chooses: batches of 64, Adam at 2e-3 with one frozen epoch, then 5 of all layers from 1e-5 to
1e-3, a head of its own with two layers behind average and maximum pooling, a worker process per core (2 on 2 cores),
torch's own number of threads, glibc's own allocator. `pretrained_cfg_overlay` is how timm, and fastai through it, takes
weights from a file: fastai then freezes the body and normalises by their mean and standard deviation.
"""

import argparse
import importlib
import sys
from contextlib import redirect_stdout
from pathlib import Path

import predictions

NETWORK = "tf_efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # fastai's tables of epochs
        run(options.tree, options.weights, options.seed, options.epochs, options.out)


def run(tree: Path, weights: Path, seed: int, epochs: int, out: Path) -> None:
    vision = importlib.import_module("fastai.vision.all")  # by name, as fastai lives in an environment of its own
    vision.set_seed(seed)
    images = vision.ImageDataLoaders.from_folder(
        tree, valid="val", item_tfms=vision.Resize(224), batch_tfms=vision.aug_transforms()
    )
    published = {"file": str(weights), "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    learner = vision.vision_learner(images, NETWORK, metrics=vision.accuracy, pretrained_cfg_overlay=published)
    learner.fine_tune(epochs)
    for split in ("val", "test"):
        files = vision.get_image_files(tree / split)
        probabilities, _ = learner.get_preds(dl=images.test_dl(files, with_labels=True))
        predictions.write(out, split, files, probabilities, list(images.vocab))


if __name__ == "__main__":
    main()
