"""train/, val/ and test/ of class folders -> fastai's `fine_tune(5)` with its defaults; figures as JSON.

    FASTAI/bin/python benchmarks/opponents/by_fastai.py TREE --weights lite0.safetensors --seed 0

The lines of fastai's vision tutorial with the smallest photos that it uses, `Resize(224)`, and its `aug_transforms()`.
All else is what fastai chooses: batches of 64, Adam at 2e-3 with one frozen epoch, then 5 of all layers from 1e-5 to
1e-3, a head of its own with two layers behind average and maximum pooling, a worker process per core (2 on 2 cores),
torch's own number of threads, glibc's own allocator. `pretrained_cfg_overlay` is how timm, and fastai through it, takes
weights from a file: fastai then freezes the body and normalises by their mean and standard deviation.
"""

import argparse
import importlib
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

EPOCHS = 5
NETWORK = "tf_efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # fastai's tables of epochs
        figures = run(options.tree, options.weights, options.seed)
    print(json.dumps(figures))


def run(tree: Path, weights: Path, seed: int) -> dict[str, float]:
    vision = importlib.import_module("fastai.vision.all")  # by name, as fastai lives in an environment of its own
    vision.set_seed(seed)
    photos = vision.ImageDataLoaders.from_folder(
        tree, valid="val", item_tfms=vision.Resize(224), batch_tfms=vision.aug_transforms()
    )
    published = {"file": str(weights), "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    learner = vision.vision_learner(photos, NETWORK, metrics=vision.accuracy, pretrained_cfg_overlay=published)
    learner.fine_tune(EPOCHS)
    test = photos.test_dl(vision.get_image_files(tree / "test"), with_labels=True)
    probabilities, labels = learner.get_preds(dl=test)
    return {
        "test": (probabilities.argmax(1) == labels).double().mean().item(),
        "n": len(labels),
        "validation": learner.recorder.values[-1][-1],
    }


if __name__ == "__main__":
    main()
