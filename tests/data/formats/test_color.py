"""Colours with a profile become those of sRGB; photos of sRGB stay as they are, to the bit."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import profiles
import pytest
from PIL import Image, ImageCms

from fieldmark.data.formats import color
from fieldmark.data.image import decode

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (24, 32, 3)).astype(np.uint8)
P3, ADOBE = profiles.rgb_profile(profiles.DISPLAY_P3), profiles.rgb_profile(profiles.ADOBE_RGB, 2.19921875)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content), int)


@pytest.mark.parametrize(
    ("profile", "primaries", "gamma"),
    [(P3, profiles.DISPLAY_P3, None), (ADOBE, profiles.ADOBE_RGB, 2.19921875)],
    ids=["Display P3", "Adobe RGB"],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_wide_colours_become_srgb(profile, primaries, gamma, kind):
    found = pixels(encoded(Image.fromarray(COLORS), kind, icc_profile=profile))
    assert np.abs(found - profiles.in_srgb(COLORS, primaries, gamma)).max() <= 2
    assert np.abs(found - COLORS).max() > 20


def test_a_jpeg_at_a_smaller_scale_is_converted_too():
    photo = Image.new("RGB", (640, 480), (40, 200, 60))
    found = np.asarray(decode(encoded(photo, "JPEG", quality=95, icc_profile=P3), 64), float)
    assert np.abs(found - profiles.in_srgb(np.array((40, 200, 60)), profiles.DISPLAY_P3)).max() <= 3


@pytest.mark.parametrize(
    "profile",
    [profiles.srgb_profile(), profiles.rgb_profile(profiles.SRGB), b"damaged", P3[:200], profiles.grey_profile(1.0)],
    ids=["sRGB", "sRGB of another maker", "no profile", "cut off", "of grey"],
)
def test_srgb_and_what_is_no_profile_of_it_change_no_bit(profile):
    assert (pixels(encoded(Image.fromarray(COLORS), icc_profile=profile)) == COLORS).all()


def test_a_profile_of_colour_on_grey_is_ignored():
    grey = Image.fromarray(COLORS[..., 0])
    assert (pixels(encoded(grey, icc_profile=ADOBE)) == COLORS[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_with_a_gamma(mode):
    levels = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    image = {
        "L": Image.fromarray(levels),
        "LA": Image.merge("LA", [Image.fromarray(levels), Image.new("L", (256, 4), 255)]),
        "1": Image.fromarray(levels > 99),
        "I;16": Image.fromarray(levels.astype(np.uint16) * 257),
    }[mode]
    source = levels if mode != "1" else 255 * (levels > 99)
    for gamma in (1.0, 1.8):
        wanted = 255 * profiles.linear_to_srgb((source / 255.0) ** gamma)
        found = pixels(encoded(image, icc_profile=profiles.grey_profile(gamma)))
        assert np.abs(found - wanted[..., None]).max() <= 2
        assert (found == found[..., :1]).all()
    assert (pixels(encoded(image, icc_profile=profiles.grey_profile(None))) == source[..., None]).all()


def test_transparency_and_palettes_keep_their_profile():
    alpha = Image.new("L", (32, 24), 255)
    alpha.paste(0, (0, 0, 16, 24))
    wanted = profiles.in_srgb(COLORS, profiles.DISPLAY_P3)
    found = pixels(encoded(Image.merge("RGBA", [*Image.fromarray(COLORS).split(), alpha]), icc_profile=P3))
    assert (found[:, :16] == 255).all()
    assert np.abs(found[:, 16:] - wanted[:, 16:]).max() <= 2
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    found = pixels(encoded(palette, icc_profile=P3))
    assert np.abs(found - profiles.in_srgb(np.array((200, 100, 50)), profiles.DISPLAY_P3)).max() <= 2


def test_cmyk_by_its_profile():
    """Cyan of this printer is a dark green: Lab (40, -40, 20)."""

    def lab(c: float, m: float, y: float, k: float) -> tuple[float, float, float]:
        if k:
            return 0, 0, 0
        return (40, -40, 20) if c else (100 - 30 * m - 10 * y, 40 * m, 50 * y)

    profile = profiles.cmyk_profile(lab)
    image = Image.new("CMYK", (30, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (10, 0, 20, 10))
    image.paste((0, 0, 0, 255), (20, 0, 30, 10))
    for kind, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        found = pixels(encoded(image, kind, icc_profile=profile, **options))
        white, green, black = found[5, 4], found[5, 14], found[5, 25]
        assert (white >= 253).all() and (black <= 3).all()
        assert np.abs(green - (0, 112, 61)).max() <= 6  # by the formulas of CIE Lab and sRGB
    assert (pixels(encoded(image, "TIFF"))[5, 14] == (0, 255, 255)).all()


def test_lab_needs_no_profile():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = Image.new("RGB", (9, 9), (200, 120, 80))
    lab = ImageCms.applyTransform(image, to_lab)
    assert lab is not None
    assert np.abs(pixels(encoded(lab, "TIFF")) - (200, 120, 80)).max() <= 4


def test_threads_give_the_same_pixels():
    contents = [encoded(Image.fromarray(COLORS), icc_profile=profile) for profile in (P3, ADOBE)] * 8
    color._color_conversion.cache_clear()
    barrier = threading.Barrier(8)

    def work(k: int) -> list[bytes]:
        barrier.wait()
        return [decode(content).tobytes() for content in contents]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert all(result == results[0] for result in results)
    assert results[0][:2] == [decode(content).tobytes() for content in contents[:2]]


def test_the_cache_of_profiles_is_bounded():
    for k in range(40):
        decode(encoded(Image.new("RGB", (4, 4)), icc_profile=profiles.rgb_profile(profiles.ADOBE_RGB, 1 + k / 32)))
    assert color._color_conversion.cache_info().currsize <= 32
