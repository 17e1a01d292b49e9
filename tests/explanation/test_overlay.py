"""Overlays: zero evidence draws nothing, and file names stay in their folder."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark.explanation import overlay

SIDES = st.integers(1, 40)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def map_of(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((height, width), np.float32)


@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES, seed=st.integers(0, 99))
def test_zero_evidence_leaves_the_image_unchanged(height: int, width: int, rows: int, columns: int, seed: int):
    photo, nothing = noise(height, width, seed), np.zeros((rows, columns))
    for scale in (None, 1.0):
        np.testing.assert_array_equal(overlay.overlay_heatmap(photo, nothing, scale), photo)


@given(height=SIDES, width=SIDES, rows=SIDES, columns=SIDES, seed=st.integers(0, 99), factor=st.floats(1e-6, 1e6))
def test_any_map_fits_any_photo_and_its_own_scale(
    height: int, width: int, rows: int, columns: int, seed: int, factor: float
):
    photo, evidence = noise(height, width, seed), map_of(rows, columns, seed)
    drawn = overlay.overlay_heatmap(photo, evidence)
    assert drawn.dtype == np.uint8 and drawn.shape == photo.shape
    scaled = overlay.overlay_heatmap(photo, evidence * np.float32(factor))
    assert np.abs(drawn.astype(int) - scaled).max() <= 1  # rounding


@given(seed=st.integers(0, 99), value=st.floats(-2, 2))
def test_stronger_evidence_is_nearer_to_its_hue(seed: int, value: float):
    photo, hue = noise(8, 8, seed), overlay.NEGATIVE_COLOUR if value < 0 else overlay.POSITIVE_COLOUR
    ways = [
        overlay.overlay_heatmap(photo, np.full((2, 2), part * value), 1.0) - np.array(hue, float)
        for part in (0, 0.5, 1)
    ]
    far = [np.abs(way) for way in ways]
    assert (far[1] <= far[0] + 1).all() and (far[2] <= far[1] + 1).all()
    if abs(value) >= 1:
        np.testing.assert_allclose(far[2], (1 - overlay.MAX_OPACITY) * far[0], atol=0.51)


def test_one_outlier_does_not_fade_the_others():
    evidence = np.ones((16, 16))
    evidence[3, 4] = 1000
    assert overlay.robust_maximum(evidence) == 1
    assert overlay.robust_maximum(np.eye(1, 100)) == 1  # but a single position stays visible
    assert overlay.robust_maximum(np.zeros((3, 3))) == 0


@pytest.mark.parametrize("size", [(32, 48), (224, 224), (300, 256)])
def test_the_legend_stands_below(size: tuple[int, int]):
    photo = noise(*size, seed=1)
    picture = np.asarray(overlay.overlay_with_legend(photo, map_of(8, 8, 2)))
    strip = overlay.legend(picture.shape[1], 0.3)
    height, width = picture.shape[0] - strip.shape[0], picture.shape[1]
    assert min(height, width) == max(overlay.MIN_SIDE, min(size)) and height * size[1] == width * size[0]
    bar = strip[6].astype(int)
    assert bar[0, 2] > bar[0, 0] and bar[-1, 0] > bar[-1, 2], "blue on the left, orange on the right"
    assert np.ptp(bar[width // 2]) < 8, "and nothing in the middle"
    assert (strip[15:] < 90).any(), "with numbers"


def test_the_data_uri_is_a_small_jpeg():
    uri = overlay.overlay_data_uri(noise(256, 256, 0), map_of(8, 8, 0), side=120)
    assert uri.startswith("data:image/jpeg;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert picture.format == "JPEG" and picture.size == (120, 120)


@given(st.lists(st.text(st.characters(blacklist_categories=()), max_size=300), max_size=30))
def test_file_names_are_unique_and_safe(paths: list[str]):
    taken: dict[str, int] = {}
    names = [overlay.unique_stem(path, taken) for path in [*paths, *paths, "..", "/", "a/../..", "C:\\x", "con\0.jpg"]]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name == Path(name).name and name.strip(".") and len(f"{name}.integrated_gradients.png".encode()) < 256
        assert (Path("/out") / f"{name}.png").resolve().parent == Path("/out")


def test_file_names_keep_letters_and_digits():
    taken: dict[str, int] = {}
    names = [
        overlay.unique_stem(path, taken) for path in ("a/玉米 1.jpg", "b/玉米 1.jpg", "x/IMG_1.JPG", "y/img_1.jpg")
    ]
    assert names == ["玉米-1", "玉米-1-2", "IMG_1", "img_1-2"]


# ---- predict --heatmap


def test_predict_writes_heatmaps(here, small_run: Path, small_photos: Path, tmp_path: Path):
    (tmp_path / "00.jpg").write_text("not a photo")
    photos = [small_photos / "disc" / "00.jpg", tmp_path / "00.jpg", small_photos / "square" / "00.jpg"]
    done = here("predict", small_run, *photos, "--heatmap", tmp_path / "heat", "--json")
    assert done.code == 1
    answers = done.json
    files = [Path(answer.pop("heatmap")) for answer in answers if "heatmap" in answer]
    assert answers == here("predict", small_run, *photos, "--json").json
    assert len(files) == 2 and sorted((tmp_path / "heat").iterdir()) == sorted(files)
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG" and picture.width >= overlay.MIN_SIDE
    assert "exists" in here("predict", small_run, *photos, "--heatmap", tmp_path / "heat").refusal
