"""CUB-200-2011 as it is shipped."""

import pytest
from containers import png

from fieldmark.errors import FieldmarkError
from fieldmark.photos.inputs import read


def test_cub_as_shipped(tmp_path):
    root = tmp_path / "CUB_200_2011"
    lines: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    for k in range(1, 5):
        name = f"{(k - 1) // 2 + 1:03}.Bird_{(k - 1) // 2 + 1}"
        path = root / "images" / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
        lines["images"].append(f"{k} {name}/{k}.png")
        lines["image_class_labels"].append(f"{k} {(k - 1) // 2 + 1}")
        lines["train_test_split"].append(f"{k} {k % 2}")
        lines["bounding_boxes"].append(f"{k} {float(k)} 2.0 20.0 10.0")
    for name, text in lines.items():
        (root / f"{name}.txt").write_text("\n".join(text))
    (root / "classes.txt").write_text("1 001.Bird_1\n2 002.Bird_2\n")
    catalog = read(root)
    assert catalog.classes == ("001.Bird_1", "002.Bird_2")
    assert [(photo.split, photo.box) for photo in catalog.photos][:2] == [
        ("train", (1.0, 2.0, 20.0, 10.0)),
        ("test", (2.0, 2.0, 20.0, 10.0)),
    ]
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 9\n4 2\n")
    with pytest.raises(FieldmarkError, match="photo 3 do"):
        read(root)
