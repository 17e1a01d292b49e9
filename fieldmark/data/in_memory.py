"""Tables and datasets of Python -> a manifest on the disk, which readers, runs and resumed runs can come back to."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fieldmark.core import io
from fieldmark.data.image import UnreadableImageError, decode
from fieldmark.data.readers.columns import find_columns
from fieldmark.data.split_names import resolve_split

MANIFEST_NAME = "manifest.csv"
ACCEPTED = (
    "a path, a DataFrame with the columns path and label, or a dataset of (PIL image, label), such as torchvision's "
    "and Hugging Face's"
)


class LabelledImages(Protocol):
    """A dataset of torch or Hugging Face: by index (image, label), or a mapping with these."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def is_on_disk(data: Any) -> bool:
    """Whether this is the path of a dataset."""
    return isinstance(data, str | os.PathLike)


def write_manifest(data: Any, folder: Path) -> Path:
    """Write a DataFrame or a dataset of (PIL image, label) into `folder`, and return its manifest.

    The images of a DataFrame stay where they are; those of a dataset are written as PNG files. A mapping has a dataset
    for each split: train, val or test.

    Raises:
        TypeError: `data` is something else, or its items are.
        ValueError: a column is missing, or a file is named twice.
    """
    if _is_table(data):
        rows = list(_rows_of_table(data))
    elif isinstance(data, Mapping) and data and all(resolve_split(str(name), data) for name in data):
        splits = {name: resolve_split(str(name), data) or "" for name in data}
        rows = [row for name, part in data.items() for row in _write_images(part, folder, splits[name])]
    elif isinstance(data, Mapping) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(f"{type(data).__name__} is not taken: give {ACCEPTED}")
    else:
        rows = list(_write_images(data, folder, ""))
    if not rows:
        raise ValueError(f"the {type(data).__name__} is empty")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MANIFEST_NAME
    io.write_csv(file, rows, list(rows[0]))
    return file


def _is_table(data: Any) -> bool:
    """Whether this is a DataFrame, of pandas or of another library."""
    return hasattr(data, "columns") and hasattr(data, "__getitem__") and not isinstance(data, Mapping)


def _rows_of_table(table: Any) -> Iterator[dict[str, Any]]:
    """Rows of a manifest, with absolute paths."""
    names = [str(name).strip().lower() for name in table.columns]
    series = (table[column] for column in table.columns)
    rows = [
        {name: "" if _is_missing(value) else value for name, value in zip(names, values, strict=True)}
        for values in zip(*series, strict=True)
    ]
    if not rows:
        return
    try:
        columns = find_columns(rows)
    except ValueError as error:
        raise ValueError(f"the DataFrame {error}") from None
    has_split = any(columns.split(row) for row in rows)
    for number, row in enumerate(rows):
        path, label = row[columns.path], columns.label(row)
        if path == "" or label is None:
            raise ValueError(f"row {number} of the DataFrame has no {'path' if path == '' else 'label'}")
        split = {"split": columns.split(row) or ""} if has_split else {}
        yield {
            "path": os.path.abspath(path),
            "label": label,
            **split,
            **{n: row[n] for n in ("group", "box") if n in row},
        }


def _is_missing(value: Any) -> bool:
    """Whether it is None, NaN or pandas' own missing value."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA
        return True


def _write_images(dataset: LabelledImages, folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Write the images of a dataset as PNG files, and give the rows of its manifest."""
    names = _class_names(dataset)
    images_folder = folder / "images" / split
    images_folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(dataset)):
        image, label = _image_and_label(dataset[index], index)
        file = images_folder / f"{index:06d}.png"
        try:
            pixels = decode(image)
        except UnreadableImageError as error:
            raise ValueError(f"item {index} of the dataset cannot be read: {error}") from None
        with io.atomic_path(file) as partial:
            pixels.save(partial, format="PNG", compress_level=1)
        row = {"path": file.relative_to(folder).as_posix(), "label": _class_name(label, names)}
        yield row | ({"split": split} if split else {})


def _image_and_label(item: Any, index: int) -> tuple[Image.Image, Any]:
    if isinstance(item, Mapping):
        image = next((item[name] for name in ("image", "img") if name in item), None)
        label = next((item[name] for name in ("label", "labels", "fine_label") if name in item), None)
    else:
        image, label = item if isinstance(item, Sequence) and len(item) == 2 else (None, None)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image) or label is None:
        found = ", ".join(item) if isinstance(item, Mapping) else type(image if image is not None else item).__name__
        raise TypeError(
            f"item {index} of the dataset has {found}; it must be (PIL image, label), without a transform to tensors"
        )
    return image, label


def _class_names(dataset: Any) -> Sequence[str] | None:
    """Names of numbered classes: `classes` of torchvision, the feature `label` of Hugging Face."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        found: Iterable[Any] = (features[name] for name in ("label", "labels", "fine_label") if name in features)
        return getattr(next(iter(found), None), "names", None)
    classes = getattr(dataset, "classes", None)
    return list(map(str, classes)) if isinstance(classes, Sequence) and not isinstance(classes, str) else None


def _class_name(label: Any, names: Sequence[str] | None) -> str:
    if isinstance(label, str):
        return label
    number = int(label)
    return names[number] if names and 0 <= number < len(names) else str(number)
