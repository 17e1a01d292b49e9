"""`fieldmark look`: counts, shapes, and a page of labelled photos before and after augmentation."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.core.errors import FieldmarkError
from fieldmark.core.progress import Reporter
from fieldmark.data.catalog import Photo
from fieldmark.data.image import preprocess
from fieldmark.pipeline.preview import AUGMENTED_VIEWS, preview, sample_images
from fieldmark.recipes.recipe import Recipe

SMALL = Recipe(image_size=64, train_size=48)
QUIET = Reporter(quiet=True)


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]


def test_it_shows_photos_as_they_are_judged_and_trained_on(small_photos: Path, tmp_path: Path):
    found = preview(small_photos, SMALL, 5, tmp_path / "out", QUIET).to_dict()
    assert found["photos"] == sum(found["classes"].values()) == len(list(small_photos.glob("*/*.jpg")))
    assert (found["batch"], found["judged"]) == ([32, 3, 48, 48], [3, 64, 64])
    page = (tmp_path / "out" / "look.html").read_text(encoding="utf-8")
    assert found["files"] == [str(tmp_path / "out" / "look.html")]
    shown = pictures(page)
    assert [picture.size for picture in shown] == 5 * [(64, 64), *AUGMENTED_VIEWS * [(48, 48)]]
    looks = {"size": 64, "crop": 1.0, "interpolation": "bicubic", "fit": "squash"}
    for k, row in enumerate(found["preview"]):
        judged = preprocess(small_photos / row["path"], looks)
        assert np.abs(np.asarray(shown[3 * k]).astype(int) - judged).mean() < 8  # JPEG on the page
        assert shown[3 * k + 1].tobytes() != shown[3 * k + 2].tobytes()
        assert row["label"] in page


def test_as_many_classes_as_can_be_and_the_same_ones_again():
    table = tuple(Photo(f"{label}/{k}", label) for label in "abc" for k in range(4 if label == "c" else 2))
    chosen = sample_images(table, 3, 0)
    assert {photo.label for photo in chosen} == set("abc")
    assert sample_images(table, 3, 0) == chosen and len({tuple(sample_images(table, 3, seed)) for seed in range(8)}) > 1
    assert set(sample_images(table, 99, 0)) == set(table)


def test_odd_names_bad_photos_grey_and_chinese(drawing, tmp_path: Path, here):
    photos = tmp_path / "photos"
    for number, name in enumerate(("麻雀", "<b>tit")):
        (photos / name).mkdir(parents=True)
        for k in range(3):
            drawing(number, k).save(photos / name / f"{k}.png")
    (photos / "麻雀" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copytree(photos, tmp_path / "before")
    words = ("look", photos, "--image-size", 64, "--channels", 1, "--lang", "zh", "--augment", "none", "--count", 8)
    done = here(*words, "--out", tmp_path / "out", "--json")
    found = json.loads(done.out)
    assert done.code == 1 and [row["path"] for row in found["preview"] if "error" in row] == ["麻雀/bad.jpg"]
    assert found["batch"] == [32, 1, 64, 64] and found["classes"] == {"<b>tit": 3, "麻雀": 4}
    page = (tmp_path / "out" / "look.html").read_text(encoding="utf-8")
    assert "麻雀" in page and "<b>" not in page and "&lt;b&gt;tit" in page and 'lang="zh-CN"' in page
    shown = pictures(page)
    assert {picture.mode for picture in shown} == {"L"} and shown[0].tobytes() == shown[1].tobytes()
    assert "\n麻雀/bad.jpg: truncated" in here(*words, "--out", tmp_path / "again").out
    assert "exists: give another --out" in here(*words, "--out", tmp_path / "out").refusal
    assert {p.name: p.read_bytes() for p in photos.rglob("*.png")} == {
        p.name: p.read_bytes() for p in (tmp_path / "before").rglob("*.png")
    }


def test_what_a_training_would_be_refused_for(small_photos: Path, tmp_path: Path):
    with pytest.raises(FieldmarkError, match="inception_v3"):
        preview(small_photos, Recipe(backbone="inception_v3", image_size=32), 4, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
