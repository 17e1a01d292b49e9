"""What stands out is named, and hardly anything of real photos is."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from fieldmark.audit.outliers import ImageStats, find_outliers, image_stats
from fieldmark.data.decoded import thumbnail
from fieldmark.data.image import decode


def of(image: Image.Image, kind: str = "PNG", **options) -> ImageStats:
    packed = io.BytesIO()
    image.save(packed, kind, **options)
    seen = decode(packed.getvalue(), 128)
    return image_stats(packed.getvalue(), np.asarray(seen), thumbnail(seen))


def scene(seed: int = 0, size: tuple[int, int] = (160, 120), level: float = 1.0) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((10, 10, 1)))
    return Image.fromarray((level * pixels).astype(np.uint8)).resize(size)


CASES = {
    "blank": Image.new("RGB", (160, 120), (90, 120, 80)),
    "dark": scene(level=0.1),
    "bright": Image.fromarray(255 - np.asarray(scene(level=0.07))),
    "blurred": scene().filter(ImageFilter.GaussianBlur(5)),
    "small": scene(size=(24, 18)),
    "long": scene(size=(640, 150)),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_named_once(kind):
    usual = [of(scene(k)) for k in range(1, 6)]
    (found,) = find_outliers(["1", "2", "3", "4", "5", "x"], [*usual, of(CASES[kind])])
    assert (found.path, found.kind) == ("x", kind)


def test_what_the_file_says():
    exif = Image.Exif()
    exif[0x0110] = "Pixel 7"
    assert of(scene(), "JPEG", exif=exif)[:4] == ((160, 120), "RGB", "JPEG", "Pixel 7")
    assert of(scene().convert("L"))[:4] == ((160, 120), "L", "PNG", "")


def test_how_a_file_was_compressed():
    plain, exif = of(scene(), "JPEG"), Image.Exif()
    exif[0x0110] = "Pixel 7"
    assert (plain.quality, plain.is_progressive, plain.has_exif, plain.has_icc, plain.dpi) == (
        75,
        False,
        False,
        False,
        0,
    )
    for quality in (10, 40, 92, 100):
        assert of(scene(), "JPEG", quality=quality).quality == quality
    full = of(scene(), "JPEG", progressive=True, exif=exif, icc_profile=b"profile", dpi=(300, 300))
    assert (full.is_progressive, full.has_exif, full.has_icc, full.dpi) == (True, True, True, 300)
    png = of(scene(), dpi=(72, 72))
    assert (png.quality, png.is_progressive, png.has_exif) == (0, False, False) and round(png.dpi) == 72
    assert image_stats(b"no image", np.zeros((20, 30, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)).size == (30, 20)


@pytest.mark.parametrize(
    ("image", "border"),
    [
        (scene(), -1),
        (ImageOps.expand(scene(), 20, "black"), 0),
        (ImageOps.expand(scene(), 20, (114, 114, 114)), 114),
        (ImageOps.pad(scene(), (160, 160), color="white"), -1),  # bars on two sides are what tall things have
    ],
)
def test_a_uniform_border(image, border):
    assert of(image).border == pytest.approx(border, abs=1)
    assert of(image, "JPEG").border == pytest.approx(border, abs=2)


@pytest.mark.parametrize("photos", ["trashnet", "birds100"])
def test_blur_is_told_from_smoothness(photos, request):
    files = sorted(Path(request.getfixturevalue(photos)).rglob("*.jpg"))
    random.Random(0).shuffle(files)
    seen = [decode(file, 256) for file in files[:100]]
    stats = [image_stats(b"", np.asarray(image), thumbnail(image)) for image in seen]
    names = [str(k) for k in range(100)]
    assert sum(found.kind == "blurred" for found in find_outliers(names, stats)) <= 2
    soft = [image.filter(ImageFilter.GaussianBlur(3)) for image in seen[:20]]
    stats[:20] = [image_stats(b"", np.asarray(image), thumbnail(image)) for image in soft]
    blurred = {found.path for found in find_outliers(names, stats) if found.kind == "blurred"}
    assert len(blurred & set(names[:20])) >= 19 and len(blurred - set(names[:20])) <= 2


@pytest.mark.parametrize(
    ("measure", "usual", "unusual"),
    [("brightness", 12, 0.5), ("brightness", 250, 254.9), ("contrast", 2, 0.1), ("sharpness", 0.5, 0.1)],
)
def test_what_is_usual_in_a_set_is_no_outlier(measure, usual, unusual):
    """All are dark, bright, flat or soft: that is the camera. One that is far more so is named all the same."""
    spread = np.random.default_rng(0).normal(1, 0.1, 50)
    values = 255 - (255 - usual) * spread if usual > 200 else usual * spread
    stats = [of(scene())._replace(**{measure: value}) for value in (*values, unusual)]
    assert [found.path for found in find_outliers([str(k) for k in range(51)], stats)] == ["50"]
