"""Every oddity of a photo file ends as an upright RGB image or as a reason."""

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import profiles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark.data.image import UnreadableImageError, center_crop, decode, preprocess

ORIENTATION = 0x0112
TURN = Image.Transpose
# EXIF orientation -> how an upright photo has to be turned to lie in the file as the camera would store it.
STORED = {1: None, 2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM} | {
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """Smooth colours, different in each corner."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 128 + 0 * x], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * width + 1) * 20)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind):
    assert difference(decode(encoded(scene(), kind)), scene()) == 0


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "鸟 'a\" b.jpeg"
    path.write_bytes(encoded(scene(), "WEBP", lossless=True))
    assert difference(decode(path), scene()) == 0
    assert difference(decode(str(path)), scene()) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photos_stand_upright(orientation, kind):
    undo = STORED[orientation]
    image = scene() if undo is None else scene().transpose(undo)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    assert difference(decode(encoded(image, kind, exif=exif, **options)), scene()) < 4


def test_damaged_exif_leaves_the_photo_as_it_is():
    content = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff damaged", quality=95)
    assert difference(decode(content), scene()) < 4


def test_cmyk_of_adobe_is_not_inverted():
    assert difference(decode(encoded(scene().convert("CMYK"), "JPEG", quality=95)), scene()) < 6
    assert difference(decode(encoded(scene().convert("CMYK"), "TIFF")), scene()) < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_deep_grey_is_scaled_not_clipped(kind):
    shallow = np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) % 256
    photo = decode(encoded(Image.fromarray(shallow * 257), kind))
    assert photo.mode == "RGB"
    assert (np.asarray(photo) == shallow[..., None]).all()


def test_deep_colours_of_a_png():
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = np.asarray(decode(b"\x89PNG\r\n\x1a\n" + chunks), float)
    assert np.abs(found - deep / 257).max() <= 1


def test_float_grey():
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    for scale in (1, 255):
        photo = np.asarray(decode(encoded(Image.fromarray(values * scale), "TIFF")))
        assert np.abs(photo[..., 0] - values * 255).max() <= 0.5
    for wrong in (values * 1000, values - 5, np.full_like(values, np.nan)):
        with pytest.raises(UnreadableImageError, match="floating-point"):
            decode(encoded(Image.fromarray(wrong), "TIFF"))
    with pytest.raises(UnreadableImageError, match="32-bit"):
        decode(encoded(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)), "TIFF"))


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 10, 10))
    palette = Image.new("P", (20, 10), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(0, (0, 0, 10, 10))
    files = [
        encoded(clear, "PNG"),
        encoded(clear, "WEBP", lossless=True),
        encoded(palette, "PNG", transparency=b"\xff\x00"),
        encoded(palette, "GIF", transparency=1),
    ]
    for photo in map(decode, files):
        assert photo.getpixel((2, 2)) == (0, 0, 255)
        assert photo.getpixel((18, 2)) == (255, 255, 255)
    grey = Image.merge("LA", [Image.new("L", (9, 9), 40), Image.new("L", (9, 9), 0)])
    assert decode(encoded(grey, "PNG")).getpixel((4, 4)) == (255, 255, 255)
    assert decode(encoded(Image.new("1", (9, 9), 1), "PNG")).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert difference(decode(content), frames[0]) < 2


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=60, deadline=None)
def test_the_shorter_side_is_exact_and_the_longer_bounded(width, height, shorter, kind):
    photo = decode(encoded(Image.new("RGB", (width, height), (9, 99, 199)), kind), shorter=shorter)
    assert min(photo.size) == shorter
    assert max(photo.size) <= 2 * shorter
    assert (photo.width >= photo.height) == (width >= height) or photo.width == photo.height
    assert np.abs(np.asarray(photo, int) - (9, 99, 199)).max() <= 3


def test_a_strip_keeps_its_middle():
    strip = Image.new("RGB", (1, 5000), "red")
    strip.paste("lime", (0, 2400, 1, 2600))
    photo = decode(encoded(strip, "PNG"), shorter=64)
    assert photo.size == (64, 128)
    assert np.asarray(photo)[..., 1].min() == 255


def test_reduced_decoding_shows_the_same_photo(trashnet):
    path = trashnet / "glass" / "glass1.jpg"
    full = decode(path)
    for shorter in (48, 96, 180, 256):
        slow = full.resize((round(full.width * shorter / full.height), shorter), Image.Resampling.BICUBIC)
        assert difference(decode(path, shorter=shorter), slow) < 2.5
        assert decode(path, shorter=shorter).tobytes() == decode(path.read_bytes(), shorter=shorter).tobytes()


def test_centre_and_prepare():
    photo = decode(encoded(scene(90, 60), "PNG"))
    middle = center_crop(photo, 20)
    assert middle.shape == (20, 20, 3)
    assert middle.dtype == np.uint8
    assert (middle == np.asarray(photo)[20:40, 35:55]).all()
    with pytest.raises(ValueError, match="no centre"):
        center_crop(photo, 61)
    seen = preprocess(encoded(scene(90, 60), "PNG"), {"size": 56, "crop": 0.875, "mean": [0.5]})
    assert (seen == center_crop(decode(encoded(scene(90, 60), "PNG"), shorter=64), 56)).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is no photo\n" * 9, "not a photo .text"),
        ("这不是照片".encode(), "not a photo .text"),
        (b"%PDF-1.7\n\0\1", "PDF"),
        (b"PK\x03\x04\0\0", "zip"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><title>404</title>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xff\x0a\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0" * 999, "not a photo"),
        (b"\xff\xd8\xff\xe0", "truncated or damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (encoded(scene(), "JPEG")[:-200], "truncated"),
        (encoded(scene(), "PNG")[:-100], "truncated"),
    ],
)
def test_reasons_are_for_people(content, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(content)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(300 * 2**20)
    for name, reason in [("gone.jpg", "no such"), (".", "not a file"), ("pipe.jpg", "not a file"), ("huge.png", "MiB")]:
        with pytest.raises(UnreadableImageError, match=reason):
            decode(tmp_path / name)
    with pytest.raises(UnreadableImageError, match="null"):
        decode("a\0b.jpg")


def test_a_bomb_is_refused_at_once_and_in_little_memory(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb())
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fieldmark.data.image import UnreadableImageError, decode\n"
        "start = time.process_time()\n"
        "try: decode(sys.argv[1], shorter=256)\n"
        "except UnreadableImageError as error: print(error)\n"
        # The peak of this program alone: ru_maxrss would count what its parent held when it was forked.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"
        "print(time.process_time() - start, int(peak) / 1024)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    reason, figures, torch = done.stdout.splitlines()
    seconds, mib = map(float, figures.split())
    assert "30000 x 30000 pixels, more than the limit of 89,478,485" in reason
    assert seconds < 1
    assert mib < 300
    assert torch == "False"
    assert not done.stderr


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_half_a_bomb_is_refused_too_whatever_the_warnings_filter(action):
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(UnreadableImageError, match="pixels, more than the limit of"):
            decode(bomb(10_000, 12_000))


def files() -> dict[str, bytes]:
    kinds = {"PNG": {}, "JPEG": {}, "GIF": {}, "WEBP": {}, "TIFF": {}, "BMP": {}, "PPM": {}}
    found = {kind: encoded(scene(30, 20), kind, **options) for kind, options in kinds.items()}
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    profile = profiles.rgb_profile(profiles.DISPLAY_P3)
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)
    return found | {
        "TIFF, 16 bits": encoded(deep, "TIFF"),
        "TIFF, floats": encoded(Image.fromarray(np.asarray(deep, np.float32) / 65535), "TIFF"),
        "TIFF, palette": encoded(scene(30, 20).quantize(9), "TIFF"),
        "progressive, a profile": encoded(scene(30, 20), "JPEG", progressive=True, icc_profile=profile),
        "TIFF, LZW": encoded(scene(30, 20), "TIFF", compression="tiff_lzw"),
        "palette": encoded(scene(30, 20).quantize(9), "PNG", transparency=b"\0\x80"),
        "EXIF": encoded(scene(30, 20), "JPEG", exif=exif),
    }


FILES = files()


@given(st.sampled_from(sorted(FILES)), st.data())
@settings(max_examples=600, deadline=None)
def test_damage_gives_an_image_or_a_reason_and_no_warning(kind, data):
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            photo = decode(damaged, shorter=data.draw(st.sampled_from([None, 16])))
        except UnreadableImageError as error:
            assert str(error)
        else:
            assert photo.mode == "RGB"
    assert [warning for warning in heard if not issubclass(warning.category, Image.DecompressionBombWarning)] == []


def test_threads_give_the_same_pixels():
    content = encoded(scene(300, 200), "JPEG")
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(decode(content, 64).tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {decode(content, 64).tobytes()}
    assert len(seen) == 8


def test_the_source_is_left_alone(tmp_path):
    path = Path(tmp_path / "a.png")
    path.write_bytes(encoded(scene(), "PNG"))
    before = path.stat().st_mtime_ns, path.read_bytes()
    decode(path, shorter=20)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


@pytest.mark.parametrize(("w", "h"), [(90, 60), (60, 90), (400, 50), (64, 64), (3, 500)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_squash_keeps_the_whole_image(w: int, h: int, kind: str):
    photo = scene(w, h)
    seen = preprocess(encoded(photo, kind), {"size": 64, "crop": 1.0, "fit": "squash"})
    expected = decode(encoded(photo, kind)).resize((64, 64), Image.Resampling.BICUBIC)
    assert seen.shape == (64, 64, 3)
    assert np.abs(seen.astype(int) - np.asarray(expected)).mean() < 3  # a JPEG is decoded at a smaller scale
    corners = np.asarray(expected)[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    if kind == "PNG":
        assert (np.abs(seen[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) - corners) <= 1).all()
