"""Same photo, same answer: a run's test photos through torch, model.onnx, further exports and a server.

    python benchmarks/same_predictions.py RUN [EXPORT...]

A row for each way: on how many photos its label is that of model.onnx, the largest difference of a probability, and its
accuracy. Pixels are compared first: those decoded from the file, from its bytes, and again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import torch

from fieldmark.core import runtime
from fieldmark.data.dataset import Normalize
from fieldmark.data.image import preprocess
from fieldmark.data.splits import read_split_file
from fieldmark.inference import bundle
from fieldmark.inference.classifier import Classifier
from fieldmark.inference.run_folder import load_catalog

Asked = Callable[[bytes], np.ndarray]
"""A photo's bytes -> probabilities."""


@contextmanager
def server(model: str, classes: list[str]) -> Iterator[Asked]:
    """What `fieldmark serve` answers; it tells the likeliest five classes."""
    command = [sys.executable, "-m", "fieldmark.cli", "serve", model, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        url = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")["url"]
        with httpx.Client() as client:

            def ask(content: bytes) -> np.ndarray:
                (answer,) = client.post(f"{url}/predict", files=[("photo", ("photo", content))]).json()
                told = {row["label"]: row["confidence"] for row in answer["top"]}
                return np.array([told.get(name, np.nan) for name in classes])

            try:
                yield ask
            finally:
                process.terminate()


@runtime.torch_settings()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("exports", nargs="*")
    asked = parser.parse_args()
    catalog, classifier = load_catalog(asked.run), Classifier(asked.run)
    look, classes, t = classifier.info.preprocessing, classifier.classes, classifier.info.temperature
    photos = [photo for photo in read_split_file(asked.run / "split.csv") if photo.split == "test"]
    files = [catalog.source / photo.path for photo in photos]
    contents = [file.read_bytes() for file in files]
    labels = np.array([classes.index(photo.label) for photo in photos])
    pixels = [preprocess(content, look) for content in contents]
    equal = sum(np.array_equal(preprocess(file, look), one) for file, one in zip(files, pixels, strict=True))
    print(f"{len(photos)} test photos; pixels of file and bytes equal to the bit: {equal}")
    network, normalise = bundle.load_network(asked.run), Normalize(tuple(look["mean"]), tuple(look["std"]))

    def by_torch(content: bytes) -> np.ndarray:
        with torch.inference_mode():
            x = normalise(torch.from_numpy(preprocess(content, look))[None].permute(0, 3, 1, 2))
            return (network(x) / t).softmax(1)[0].numpy()

    def by(model: Classifier) -> Asked:
        return lambda content: model.infer_source(content)["probabilities"]

    with server(str(asked.run), classes) as served:
        ways = {"model.onnx": by(classifier), "torch": by_torch, "serve": served}
        ways |= {export: by(Classifier(export)) for export in asked.exports}
        found = {name: np.stack([ask(content) for content in contents]) for name, ask in ways.items()}
    for name, probabilities in found.items():
        difference = np.nanmax(np.abs(probabilities - found["model.onnx"]))
        told, first = np.nanargmax(probabilities, 1), found["model.onnx"].argmax(1)
        agreed, right = np.mean(told == first), np.mean(told == labels)
        print(f"{name:<30} labels agree {agreed:7.2%}   largest difference {difference:.1e}   accuracy {right:.2%}")


if __name__ == "__main__":
    main()
