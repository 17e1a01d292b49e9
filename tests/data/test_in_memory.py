"""DataFrames and datasets of Python as sources of images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from fieldmark.data.image import decode
from fieldmark.data.in_memory import write_manifest
from fieldmark.data.readers import read_catalog


def test_a_table_refers_to_its_images(small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(small_photos)
    paths = sorted(path.relative_to(small_photos) for path in small_photos.glob("*/*.jpg"))
    table = pandas.DataFrame({"Path": paths, "label": [path.parent.name for path in paths], "width": 1})
    table["split"] = ["test" if k % 5 == 0 else None for k in range(len(paths))]
    table["group"] = [float("nan") if k % 2 else k for k in range(len(paths))]
    catalog = read_catalog(write_manifest(table, tmp_path / "data"))
    assert sorted(photo.path for photo in catalog.photos) == sorted(str(small_photos / path) for path in paths)
    assert {photo.label for photo in catalog.photos} == {path.parent.name for path in paths}
    assert sum(photo.split == "test" for photo in catalog.photos) == -(-len(paths) // 5)
    assert sum(photo.group is None for photo in catalog.photos) == len(paths) // 2
    assert catalog.read_bytes(catalog.photos[0]) == Path(catalog.photos[0].path).read_bytes()


class Pairs(torch.utils.data.Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Rows(Pairs):
    """As Hugging Face's: a mapping for each row, names of the classes in the features."""

    class ClassLabel:
        names = ("cat", "dog")

    features = {"image": None, "label": ClassLabel}  # noqa: RUF012


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8))


def test_a_dataset_is_written_without_loss(small_photos: Path, tmp_path: Path):
    dataset = ImageFolder(small_photos)
    catalog = read_catalog(write_manifest(dataset, tmp_path / "data"))
    assert list(catalog.classes) == dataset.classes and len(catalog.photos) == len(dataset)
    for index in (0, 20, 47):
        photo = catalog.photos[index]
        kept = np.asarray(decode(catalog.read_bytes(photo)))
        assert np.array_equal(kept, np.asarray(dataset[index][0])) and photo.label == dataset.classes[dataset[index][1]]


def test_names_of_classes_and_splits(tmp_path: Path):
    rows = Rows([{"image": image(k), "label": k % 2} for k in range(6)])
    catalog = read_catalog(write_manifest({"train": rows, "validation": rows, "test": rows}, tmp_path / "rows"))
    assert catalog.classes == ("cat", "dog")
    assert sorted({photo.split for photo in catalog.photos if photo.split}) == ["test", "train", "val"]
    pairs = Pairs([(np.asarray(image(k)), k % 3) for k in range(6)])
    assert read_catalog(write_manifest(pairs, tmp_path / "pairs")).classes == ("0", "1", "2")
    texts = [(image(k), ["ü", "玻璃"][k % 2]) for k in range(4)]
    assert read_catalog(write_manifest(texts, tmp_path / "texts")).classes == ("ü", "玻璃")


def truncated() -> Image.Image:
    """An image that is opened, and cannot be loaded."""
    content = io.BytesIO()
    image(0).resize((200, 200)).save(content, "JPEG")
    return Image.open(io.BytesIO(content.getvalue()[:900]))


def test_another_table_does_as_well(small_photos: Path, tmp_path: Path):
    """Anything with columns by name."""

    class Frame:
        def __init__(self, columns: dict[str, list[Any]]) -> None:
            self.values = columns

        columns = property(lambda self: list(self.values))

        def __getitem__(self, name: str) -> list[Any]:
            return self.values[name]

    paths = sorted(small_photos.glob("*/*.jpg"))
    frame = Frame({"file_name": paths, "label": [k % 2 for k in range(len(paths))]})
    assert read_catalog(write_manifest(frame, tmp_path / "data")).classes == ("0", "1")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (pandas.DataFrame({"file": ["a.jpg"], "score": [0.5]}), ValueError, "needs path and label"),
        (pandas.DataFrame({"path": [], "label": []}), ValueError, "empty"),
        (Pairs([(torch.zeros(3, 4, 4), 0)]), TypeError, "item 0 .*Tensor.*without a transform to tensors"),
        (Rows([{"pixels": 1, "label": 0}]), TypeError, "item 0 .*pixels, label"),
        (Pairs([]), ValueError, "empty"),
        (pandas.DataFrame({"path": ["a.jpg", "b.jpg"], "label": ["a", None]}), ValueError, "row 1 .* has no label"),
        (pandas.DataFrame({"path": ["a.jpg", pandas.NA], "label": [1, 2]}), ValueError, "row 1 .* has no path"),
        (Pairs([(truncated(), 0)]), ValueError, "item 0 .* cannot be read: truncated"),
        (3, TypeError, "int is not taken: give a path, a DataFrame"),
        ({"a": 1}, TypeError, "dict is not taken"),
    ],
)
def test_what_is_no_dataset_ends_in_one_line(data: Any, error: type[Exception], message: str, tmp_path: Path):
    with pytest.raises(error, match=message):
        write_manifest(data, tmp_path / "data")
