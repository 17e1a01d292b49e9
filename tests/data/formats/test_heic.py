"""HEIC photos: upright once, opaque, the primary image; without the extra one clear reason."""

import io
import sys
import threading

import numpy as np
import pillow_heif
import profiles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark.data.image import UnreadableImageError, decode, read_header

TURN = Image.Transpose
# EXIF orientation -> how an upright photo has to be turned to lie in the file as the camera would store it.
STORED = {
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}


def scene() -> Image.Image:
    y, x = np.mgrid[:60, :90]
    return Image.fromarray(np.stack([x * 255 // 90, y * 255 // 60, 128 + 0 * x], axis=2).astype(np.uint8))


def heic(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def camera_file(orientation: int) -> bytes:
    """As a camera stores it: the pixels as the sensor has them, turned by the container and named in EXIF as well."""
    stored, exif, buffer = scene().transpose(STORED[orientation]), Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x0110] = orientation, "Phone 9"
    pillow_heif.encode("RGB", stored.size, stored.tobytes(), buffer, exif=exif.tobytes(), quality=95)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_stands_upright(orientation):
    content = camera_file(orientation)
    assert b"irot" in content or b"imir" in content
    assert difference(decode(content), scene()) < 3
    assert read_header(content) == ((90, 60), "RGB", "HEIC", "Phone 9")


def test_deep_colours_and_deep_grey():
    grey, buffer = scene().convert("L"), io.BytesIO()
    deep = np.asarray(scene(), np.uint16) * 257
    pillow_heif.encode("RGB;16", (90, 60), deep.tobytes(), buffer, quality=-1)
    assert difference(decode(buffer.getvalue()), scene()) < 2
    buffer = io.BytesIO()
    pillow_heif.encode("L;16", (90, 60), (np.asarray(grey, np.uint16) * 257).tobytes(), buffer, quality=-1)
    assert difference(decode(buffer.getvalue()), grey.convert("RGB")) < 1


def test_transparency_lies_on_white():
    alpha = Image.new("L", (90, 60), 255)
    alpha.paste(0, (0, 0, 45, 60))
    found = np.asarray(decode(heic(Image.merge("RGBA", [*scene().split(), alpha]))), int)
    assert found[30, 10].min() > 250
    assert np.abs(found[30, 80] - np.asarray(scene(), int)[30, 80]).max() < 12


def test_of_several_images_the_primary_one_is_read():
    images, buffer = pillow_heif.from_pillow(scene()), io.BytesIO()
    images.add_from_pillow(Image.new("RGB", (64, 48), "red"))
    images.save(buffer, primary_index=1)
    assert decode(buffer.getvalue()).size == (64, 48)
    assert np.asarray(decode(buffer.getvalue()))[9, 9, 0] > 250


def test_its_colours_become_srgb():
    plain = Image.new("RGB", (64, 48), (40, 200, 60))
    plain.info["icc_profile"] = profiles.rgb_profile(profiles.DISPLAY_P3)
    wanted = profiles.in_srgb(np.array((40, 200, 60)), profiles.DISPLAY_P3)
    assert np.abs(np.asarray(decode(heic(plain), 32, squash=True), float)[9, 9] - wanted).max() < 4


def test_its_size_is_checked_before_it_is_decoded(monkeypatch):
    content = heic(scene())
    monkeypatch.setenv("FIELDMARK_MAX_PIXELS", "5000")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    monkeypatch.setattr(pillow_heif.HeifImage, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match="90 x 60 pixels, more than the limit of 5,000"):
        decode(content)


def test_without_the_extra_one_reason_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for content in (heic(scene()), b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"):
        with pytest.raises(UnreadableImageError, match=r"pip install 'fieldmark\[heic\]'"):
            decode(content)


def test_pillow_itself_stays_as_it_was():
    decode(heic(scene()))
    assert "HEIF" not in Image.OPEN


WHOLE = heic(scene())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_gives_an_image_or_a_reason(data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content[: data.draw(st.integers(1, len(content)))]), 16).mode == "RGB"
    except UnreadableImageError as error:
        assert str(error)


def test_threads_give_the_same_pixels():
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(decode(WHOLE, 32).tobytes())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and set(found) == {decode(WHOLE, 32).tobytes()}
