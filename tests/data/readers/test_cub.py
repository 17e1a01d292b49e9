"""CUB-200-2011 as it is shipped."""

import pytest
from containers import cub, png

from fieldmark.core.errors import FieldmarkError
from fieldmark.data.readers import read_catalog


def test_cub_as_shipped(tmp_path):
    root = cub(tmp_path / "CUB_200_2011", [(label, png(k)) for k, label in enumerate((1, 1, 2, 2), 1)])
    catalog = read_catalog(root)
    assert catalog.classes == ("001.Bird_1", "002.Bird_2")
    assert [(photo.split, photo.box) for photo in catalog.photos][:2] == [
        ("test", (1.0, 2.0, 20.0, 10.0)),
        ("train", (2.0, 2.0, 20.0, 10.0)),
    ]
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 9\n4 2\n")
    with pytest.raises(FieldmarkError, match="photo 3 do"):
        read_catalog(root)
