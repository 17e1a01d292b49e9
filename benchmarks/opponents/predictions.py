"""Class probabilities of the validation and test images -> a CSV file that benchmarks/suite.py reads."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("split", "file", "predicted", "true_probability")


def write(
    file: Path, split: str, images: Iterable[str | Path], probabilities: Iterable[Any], classes: Sequence[str]
) -> None:
    """Append a row an image.

    Args:
        images: paths in class folders, in the order of `probabilities`.
        probabilities: one array or tensor (classes,) an image.
        classes: the names of the classes, in the order of the network's outputs.
    """
    is_new = not file.exists()
    with file.open("a", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle)
        if is_new:
            rows.writerow(COLUMNS)
        for image, of_classes in zip(map(Path, images), probabilities, strict=True):
            probability = dict(zip(classes, map(float, of_classes), strict=True))
            predicted = max(probability, key=probability.__getitem__)
            rows.writerow([split, image.name, predicted, probability[image.parent.name]])
