"""Folder of photos -> answers: against decoding plus inference, onnxruntime alone, and timm's own loop.

    python benchmarks/predict.py PHOTOS --networks efficientnet_lite0 resnet50 --rounds 3

Each network has random weights, which cost the same, and its published preprocessing. In each round, one after the
other: decoding and the network alone, in one thread (cores / their seconds together is the bound); `Classifier.stream`
over the files; onnxruntime alone on decoded photos, all cores in a call, the better of 1 and 8 photos; timm's loop
(create_loader with two workers, torch.inference_mode, as in its inference.py; the better of 32 and its 256 photos a
batch). Shown are photos a second, medians, and the ratios of each round.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark.core import runtime
from fieldmark.data.image import preprocess
from fieldmark.data.locate import find_images
from fieldmark.exporters import onnx
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.models import build
from fieldmark.models.ood import make_scorer

THEIRS = {"efficientnet_lite0": "tf_efficientnet_lite0"}


def exported(name: str, folder: Path) -> Classifier:
    """The network with random weights, as a file that answers."""
    network = build(name).eval()
    known = make_scorer(network)
    names = [f"class {k}" for k in range(1000)]
    info = bundle.make_info(network, names, asdict(network.preprocessing), 1.0, 0.5, "none")
    onnx.export_onnx(network, known, info, folder / f"{name}.onnx")
    return Classifier(folder / f"{name}.onnx")


def alone(classifier: Classifier, photos: list[np.ndarray]) -> float:
    """Photos a second of onnxruntime with all cores in each call, at the better size of a batch."""
    import onnxruntime as ort

    options, rates = ort.SessionOptions(), []
    options.intra_op_num_threads = runtime.available_cpus()
    session = ort.InferenceSession(str(classifier.file), options, providers=["CPUExecutionProvider"])
    for batch in (1, 8):
        stacks = [np.stack(photos[k : k + batch]) for k in range(0, len(photos) - batch + 1, batch)]
        session.run(None, {"photos": stacks[0]})
        began = time.perf_counter()
        for stack in stacks:
            session.run(None, {"photos": stack})
        rates.append(len(stacks) * batch / (time.perf_counter() - began))
    return max(rates)


def timms(name: str, folder: str, most: int) -> float:
    """Photos a second of timm's loop over the folder."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    model, rates = timm.create_model(THEIRS.get(name, name)).eval(), []
    config = resolve_data_config({}, model=model)
    for batch in (32, 256):
        data: Any = create_dataset("", root=folder)
        data = torch.utils.data.Subset(data, range(0, len(data), max(1, len(data) // most)))
        loader = create_loader(
            data,
            batch_size=batch,
            use_prefetcher=False,
            num_workers=2,
            input_size=config["input_size"],
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            device=torch.device("cpu"),
        )
        data.dataset.transform = data.transform  # what the loader has set
        began, n = time.perf_counter(), 0
        with torch.inference_mode():
            for photos, _ in loader:
                model(photos).softmax(-1).topk(5)
                n += len(photos)
        rates.append(n / (time.perf_counter() - began))
    return max(rates)


def round_of(name: str, classifier: Classifier, folder: str, files: list[str]) -> dict[str, float]:
    """Photos a second of everything, once."""
    began = time.perf_counter()
    photos = [preprocess(file, classifier.info.preprocessing) for file in files]
    seen = time.perf_counter()
    for photo in photos:
        classifier.infer(photo)
    done = time.perf_counter()
    answers = sum(prediction.error is None for prediction in classifier.stream(files))
    ours = time.perf_counter() - done
    assert answers == len(files)
    return {
        "decode, one core": len(files) / (seen - began),
        "network, one core": len(files) / (done - seen),
        "bound": runtime.available_cpus() * len(files) / (done - began),
        "fieldmark": len(files) / ours,
        "onnxruntime alone": alone(classifier, photos),
        "timm": timms(name, folder, len(files)),
    }


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--networks", nargs="+", default=["efficientnet_lite0", "resnet50"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=300, help="so many photos")
    asked = parser.parse_args()
    files = [path for path, _ in find_images([asked.photos])]
    files = files[:: max(1, len(files) // asked.count)][: asked.count]
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.networks:
            rates: dict[str, list[float]] = defaultdict(list)
            classifier: Any = exported(name, Path(folder))
            for _ in range(asked.rounds):
                for what, rate in round_of(name, classifier, asked.photos, files).items():
                    rates[what].append(rate)
            print(f"{name}, {len(files)} photos")
            for what, found in rates.items():
                ratio = [ours / theirs for ours, theirs in zip(rates["fieldmark"], found, strict=True)]
                spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
                print(f"  {what:<18} {statistics.median(found):7.1f} photos/s   fieldmark / this: {spread}", flush=True)


if __name__ == "__main__":
    main()
